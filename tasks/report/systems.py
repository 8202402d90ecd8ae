"""Both systems on one benchmark: GDPO-SR's and RealSR-R1's models in one table and one gallery.

    joint(root, benchmark)      both evaluations as the summary of one
    scores_table(joint)         a row per model, a column per metric
    paired_table(joint)         RealSR-R1 minus GDPO-SR, and both minus bicubic
    rows(root, joint, assets)   a row of pictures per photograph

The rewards stay apart: each is in the unit of its own system's baseline. Differences are paired by
photograph; tiles and noises are averaged first, since the systems may have other noise counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gdpo.config.evaluation import BICUBIC
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import LEVEL, Array, summarise
from gdpo.images import read_photo
from tasks.files.results import SUMMARY, read_summary
from tasks.files.scores import SCORES, ImageScores, read_scores
from tasks.report import tables
from tasks.report.gallery import VIEWER_IMAGES, Gallery, evenly
from tasks.report.tables import Summary, Table
from tasks.systems import SYSTEMS


def are_there(root: Path, benchmark: str) -> bool:
    """Whether both systems were evaluated on the benchmark."""
    places = [system.evaluations for system in SYSTEMS.values()]
    return all((root / place / benchmark / SUMMARY).is_file() for place in places)


def joint(root: Path, benchmark: str) -> dict[str, Any]:
    """Both evaluations as the summary of one, without rewards; a model's name is SYSTEM/NAME.

    Errors: ValueError naming the file that is missing, or what the evaluations do not share.
    """
    places = {name: system.evaluations for name, system in SYSTEMS.items()}
    summaries = {name: read_summary(f"{p}/{benchmark}", root) for name, p in places.items()}
    scores = {name: read_scores(root / p / benchmark / SCORES) for name, p in places.items()}
    models = {name: tables.evaluated(summary) for name, summary in summaries.items()}
    gdpo, vlcot = summaries.values()
    higher = {
        metric: bool(properties["higher_is_better"])
        for metric, properties in gdpo["metrics"].items()
        if metric != REWARD and metric in vlcot["metrics"]
    }
    _check_alike(benchmark, list(higher), *scores.values())
    photographs = scores["gdpo"].photographs
    cards = {
        f"{system}/{name}": card
        for system, own in models.items()
        for name, card in own.identities.items()
    }

    def named(system: str, name: str) -> str:
        return f"{system}/{name}" if name in models[system].identities else name

    # Enlargements and other methods' outputs are the same in both.
    values = {
        named(system, name): arrays
        for system, own in scores.items()
        for name, arrays in _arrays(own, list(photographs), list(higher)).items()
    }
    ours = {system: f"{system}/{own.ours}" for system, own in models.items()}
    starts = {system: f"{system}/{own.baseline}" for system, own in models.items()}
    return {
        "benchmark": benchmark,
        "images": len(photographs),
        "photographs": len(set(photographs.values())),
        "noises": {system: summary["noises"] for system, summary in summaries.items()},
        "metrics": {metric: {"higher_is_better": up} for metric, up in higher.items()},
        **summarise(
            {name: values[name] for name in [*(v for v in values if v not in cards), *cards]},
            higher,
            [
                *((names["vlcot"], names["gdpo"]) for names in (ours, starts)),
                *((model, BICUBIC) for model in ours.values()),
            ],
            unit_of=starts["gdpo"],
            photographs=list(photographs.values()),
        ),
        "sets": {
            metric: {
                named(system, name): by_noise
                for system, summary in summaries.items()
                for name, by_noise in summary["sets"][metric].items()
            }
            for metric in gdpo.get("sets", {})
            if metric in vlcot.get("sets", {})
        },
        "origin": {"models": EvaluatedModels(cards).to_origin()},
        # Of either: `_check_alike` has compared the photographs.
        "files": gdpo["files"],
    }


def _check_alike(
    benchmark: str, metrics: Sequence[str], gdpo: ImageScores, vlcot: ImageScores
) -> None:
    """ValueError naming what the two evaluations do not share."""
    stages = "`dvc repro evaluate vlcot-evaluate` evaluates both alike"
    for key in ("data", "color_fix"):
        if gdpo.origin.get(key) != vlcot.origin.get(key):
            raise ValueError(f"{benchmark}: GDPO-SR and RealSR-R1 have other {key}; {stages}")
    for metric in metrics:
        a, b = (run.origin.get("metrics", {}).get(metric) for run in (gdpo, vlcot))
        if a != b:
            raise ValueError(f"{benchmark}: {metric} is of version {a} and {b}; {stages}")
    if not gdpo.photographs or gdpo.photographs != vlcot.photographs:
        raise ValueError(f"{benchmark}: GDPO-SR and RealSR-R1 have other photographs; {stages}")


def _arrays(
    scores: ImageScores, images: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Array]]:
    """{model: {metric: (images, 1)}}: means over the noises."""
    return {
        model: {m: np.array([[by_image[image][m]] for image in images]) for m in metrics}
        for model, by_image in scores.image_means(metrics).items()
    }


def scores_table(summary: Summary) -> Table:
    """Every model's mean and standard error for every metric."""
    noises = summary["noises"]
    caption = (
        f"Mean ± standard error over {tables.sample(summary)}, of the mean over {noises['gdpo']} "
        f"noises of GDPO-SR’s models and {noises['vlcot']} samples of RealSR-R1’s. Bold: the best "
        "mean of the column. Rewards are not compared: each has its own system’s unit."
    ) + tables.no_published_niqe(summary["metrics"])
    return replace(tables.models_table(summary), caption=caption)


def paired_table(summary: Summary) -> Table:
    """Every paired difference with its 95 % interval, p and verdict."""
    table = tables.differences_table(summary)
    spread_at = len(table.header) - 2  # a spread over noises is each system's own
    caption = (
        f"Paired over {tables.sample(summary)}, tiles and noises averaged first; Student's t "
        "interval and two-sided p, not adjusted for the number of rows. A verdict needs p < "
        f"{LEVEL}."
    ) + tables.no_published_niqe(summary["metrics"])
    return replace(
        table,
        caption=caption,
        header=[*table.header[:spread_at], *table.header[spread_at + 1 :]],
        rows=[[*row[:spread_at], *row[spread_at + 1 :]] for row in table.rows],
    )


def rows(root: Path, summary: dict[str, Any], assets: Path) -> list[dict[str, Any]]:
    """{name, pictures: [(label, address)]} of each photograph shown: LR, bicubic, the models of
    both systems without their controls, HR. Writes the pictures to `assets`.

    Photographs whose pictures one of the evaluations did not keep are left out.
    """
    gallery = Gallery(root, summary["benchmark"], summary)
    kept = []
    for file in summary["files"]:
        sources = _sources(root, summary, file["folder"])
        if all(path.is_file() for path in sources.values()):
            kept.append((file, sources))
    return [
        {
            "name": file["id"],
            "pictures": [
                (label, gallery.webp(read_photo(path), assets, f"{file['folder']}/{number}"))
                for number, (label, path) in enumerate(sources.items())
            ],
        }
        for file, sources in evenly(kept, VIEWER_IMAGES)
    ]


def _sources(root: Path, summary: Mapping[str, Any], folder: str) -> dict[str, Path]:
    """{label: file} of a photograph's pictures, in their order."""
    models = tables.evaluated(summary)

    def at(system: str, name: str) -> Path:
        evaluation = root / SYSTEMS[system].evaluations / summary["benchmark"]
        return evaluation / f"images/{folder}/{name}.png"

    shown = [name for name, card in models.identities.items() if card.role != "control"]
    return {
        "LR": at("gdpo", "lr"),
        models.label(BICUBIC): at("gdpo", BICUBIC),
        **{models.label(name): at(*name.split("/", 1)) for name in shown},
        "HR": at("gdpo", "hr"),
    }
