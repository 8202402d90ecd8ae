"""Stage `vlcot-report`: reports/vlcot/index.html with its assets, the page of RealSR-R1.

Reads the outputs of its other stages. Links are relative; equal inputs give equal bytes; names are
HTML-escaped.
"""

from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from gdpo.vlcot.folder import IDENTITIES, load_model
from gdpo.vlcot.spoken import cut
from gdpo.vlcot.start import initial_model
from gdpo.vlcot.words import degradation_words
from tasks import paths
from tasks.files.results import read_summary
from tasks.report import by_metric, curves, tables, vlcot_page
from tasks.report.benchmark_page import html_of
from tasks.report.gallery import evenly, read_text
from tasks.report.html import copy_assets, environment
from tasks.run.training import device

KNOWN = 1000  # training pairs that the probe of the page is fitted on


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the page. Errors: ValueError naming a missing input."""
    with written_aside(root / f"{paths.VLCOT_REPORTS}/assets") as assets:
        (assets / "figures").mkdir(parents=True)
        copy_assets(assets)
        text = _render(_page(config, root, assets))
    with written_aside(root / f"{paths.VLCOT_REPORTS}/index.html") as part:
        part.write_bytes(text.encode("utf-8", "replace"))


def _render(page: dict[str, Any]) -> str:
    templates = environment()
    templates.filters["metric_label"] = tables.label
    return templates.get_template("vlcot.html").render(page, name="", menu=[], base="")


def _steps(root: Path, folder: str) -> int:
    return len(read_text(root, f"{folder}/metrics.jsonl").splitlines())


def _page(config: Config, root: Path, assets: Path) -> dict[str, Any]:
    benchmark = config.evaluate.benchmarks[0]
    summary = read_summary(f"{paths.VLCOT_EVALUATED}/{benchmark}", root)
    models = {}
    for name, identity in IDENTITIES.items():
        if identity.role == "control":  # what it says means nothing
            continue
        model = load_model(root / paths.VLCOT_MODELS / name, device=device())
        models[name] = model.card.label, model
    card = models[paths.GRPO_RUNS[0]][1].card
    pairs = Shards(root / paths.HELD_OUT)
    cuts = [
        cut(pairs[i], card.stages[-1], card.scale, config.vlcot.ranges)
        for i in evenly(list(range(len(pairs))), vlcot_page.PICTURES)
    ]
    held_out = [
        cut(pairs[i], card.stages[-1], card.scale, config.vlcot.ranges) for i in range(len(pairs))
    ]
    trained = Shards(root / paths.TRAIN)
    known = [
        (pair.lr, degradation_words(pair.degradation, config.vlcot.ranges))
        for pair in (trained[i] for i in evenly(list(range(len(trained))), KNOWN))
    ]
    runs = {name: f"{paths.GRPO_REPORTS}/{name}" for name in paths.GRPO_RUNS}
    coldstart = {Path(paths.COLDSTART).name: paths.COLDSTART_REPORTS}
    return {
        "title": card.label,
        "stages": card.stages,
        "pictures": vlcot_page.thoughts(cuts, models, assets, config.seed),
        "words": html_of(vlcot_page.words_table(held_out, models, known, config.seed)),
        "summary": summary,
        "changed": by_metric.changed(summary),
        "enlarged": by_metric.enlarged(summary),
        "steps": {
            "coldstart": _steps(root, paths.COLDSTART_REPORTS),
            "grpo": _steps(root, runs[paths.GRPO_RUNS[0]]),
        },
        "init": initial_model(config),
        "models": html_of(by_metric.scores_table(summary)),
        "differences": html_of(by_metric.differences_table(summary)),
        "grpo": curves.trainings(root, assets, "grpo", runs, IDENTITIES),
        "coldstart": curves.trainings(root, assets, "coldstart", coldstart, IDENTITIES),
    }
