"""Does GDPO help? The sample pipeline over several training seeds, judged on photographs that
nothing was chosen on.

    python -m benchmarks.evidence --seeds 5
    # The same rollouts, rewarded for PSNR alone:
    python -m benchmarks.evidence --seeds 5 --setting fidelity

The photographs are those of params.yaml (degrade.evaluation), or with --photos FOLDER the central
384 x 384 pixels of each photograph there. Per seed, every stage from degrade to evaluate runs in
its own folder under work/evidence, with the values of params.yaml. The unit of every test is the
photograph: tiles and noises of one photograph are averaged first. GDPO-SR is compared with NAOSD
and with a control trained on the same rollouts with advantages shuffled inside each group; "pooled"
averages the seeds of a photograph before the test.
The claims are those of the report (tasks/report/verdict.py), judged on the pooled seeds; of the
setting `fidelity`, that PSNR rises and NIQE does not get worse. Writes
benchmarks/results/evidence.json and evidence.md (evidence-fidelity); exits 1 when a claim does not
hold.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import REPO, RESULTS, commit
from gdpo.config import Config, Reward
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import Scores, summarise, within_image_std
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from gdpo.images import read_photo, write_png
from gdpo.metrics.score import higher_is_better
from gdpo.model.card import IDENTITIES
from tasks import paths
from tasks.files.scores import SCORES, ImageScores, read_scores
from tasks.params import load
from tasks.report.verdict import Claim, claims, evidence
from tasks.stages import degrade, evaluate, finetune, index, pretrain, rollout, select
from tasks.tools.prior import SUFFIXES

PAIRS = (("gdpo", "naosd"), ("gdpo", "control"), ("control", "naosd"), ("naosd", "bicubic"))
SIDE = 384
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "main": {},
    "fidelity": {"reward": {"perception": []}},
}
SURE = 0.01


def main() -> int:
    """Run the seeds that are not there yet, and write the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, help="a folder of photographs used for no choice, instead"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setting", choices=SETTINGS, default="main")
    args = parser.parse_args()
    name = "evidence" if args.setting == "main" else f"evidence-{args.setting}"
    tables, units, seconds = [], [], []
    names: list[str] = []
    for seed in range(1, args.seeds + 1):
        config = configured(args.photos, seed, args.setting)
        root = run_seed(config, seed, args.setting)
        scores = read_scores(root / f"{paths.EVALUATED}/sample" / SCORES)
        tables.append(by_photograph(scores))
        units.append(within_image_stds(scores))
        names = sorted({_photograph(image) for image in scores.table["image"].to_pylist()})
        seconds.append(int((root / "seconds").read_text()))
    unit = {metric: float(np.mean([own[metric] for own in units])) for metric in units[0]}
    summary = compared(pooled(tables), unit, config.reward)
    result = {
        "photographs": names,
        "seeds": [
            compared(table, own, config.reward) for table, own in zip(tables, units, strict=True)
        ],
        "pooled": summary,
        "setting": SETTINGS[args.setting],
        "claims": [asdict(claim) for claim in JUDGES[args.setting](summary)],
        "params": load(REPO / "params.yaml").model_dump(exclude={"seed"}),
        "machine": machine(),
        "seconds": seconds,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with written_aside(RESULTS / f"{name}.json") as part:
        part.write_text(compact(result))
    with written_aside(RESULTS / f"{name}.md") as part:
        part.write_text(markdown(result))
    sys.stdout.write(markdown(result))
    return 0 if all(claim["holds"] for claim in result["claims"]) else 1


def configured(photos: Path | None, seed: int, setting: str = "main") -> Config:
    """params.yaml with this seed and setting, and these evaluation photographs where a folder is
    given. Without validation, which changes no result.
    """
    plain = load(REPO / "params.yaml").model_dump()
    plain["seed"] = seed
    plain["finetune"]["validation"]["photographs"] = None
    for section, values in SETTINGS[setting].items():
        plain[section] |= values
    plain["model"]["base"] = str(REPO / plain["model"]["base"])
    plain["pretrain"]["init"] = plain["pretrain"]["init"] and str(REPO / plain["pretrain"]["init"])
    for split in ("train", "evaluation"):
        for source in plain["degrade"][split]:
            if source["path"] != "scikit-image" and "://" not in source["path"]:
                source["path"] = str(REPO / source["path"])
    if photos is not None:
        plain["degrade"]["evaluation"] = [{"path": str(centres(photos))}]
    return Config.model_validate(plain)


def centres(photos: Path) -> Path:
    """A folder with the central SIDE x SIDE pixels (or what there is) of every photograph below
    `photos`, made once.
    """
    name = hashlib.sha256(str(photos.resolve()).encode()).hexdigest()[:12]
    target = REPO / "work/evidence/photos" / name
    if not target.is_dir():
        with written_aside(target) as part:
            part.mkdir()
            for path in sorted(
                path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES
            ):
                image = read_photo(path)
                top, left = (max(0, (side - SIDE) // 2) for side in image.shape[:2])
                write_png(part / f"{path.stem}.png", image[top : top + SIDE, left : left + SIDE])
    return target


def run_seed(config: Config, seed: int, setting: str) -> Path:
    """Run a seed's stages; returns its folder. Another setting than the main one trains and is
    judged in a folder of its own, from the same rollouts, which do not depend on the reward.
    """
    folder = REPO / "work/evidence"
    main = folder / str(seed)
    run_stages(config, main, until="" if setting == "main" else paths.ROLLOUTS)
    if setting == "main":
        return main
    root = folder / f"{seed}-{setting}"
    for part in ("data", paths.NAOSD, paths.DEGRADED):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        if not (root / part).is_symlink():
            (root / part).symlink_to(main / part)
    run_stages(config, root)
    return root


def run_stages(config: Config, root: Path, until: str = "") -> None:
    """Every stage whose output is missing below `root`; its file `seconds` adds up what they
    took. until: the output of the last stage; default: all.
    """
    steps: list[tuple[str, Any]] = [
        (paths.PHOTOS, index.run),
        (paths.DEGRADED, degrade.run),
        (paths.NAOSD, pretrain.run),
        (paths.SELECTED, select.run),
        (paths.ROLLOUTS, rollout.run),
        (paths.GDPO, finetune.run),
        ("models/control", lambda c, r, h: finetune.run(c, r, h, "control")),
        (f"{paths.EVALUATED}/sample", lambda c, r, h: evaluate.run(c, r, h, "sample")),
    ]
    for output, stage in steps:
        if not (root / output).exists():
            started = time.monotonic()
            stage(config, root, Hooks())
            spent = int((root / "seconds").read_text()) if (root / "seconds").exists() else 0
            (root / "seconds").write_text(str(spent + round(time.monotonic() - started)))
        if output == until:
            return


def by_photograph(scores: ImageScores) -> Scores:
    """Scores (photographs, noises): the mean over a photograph's tiles, whose ids are equal up to
    the last dash.
    """
    rows = scores.table.to_pylist()
    photographs = sorted({_photograph(row["image"]) for row in rows})
    table: Scores = {}
    for model in sorted({row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == model]
        per_photo = [
            [row for row in mine if _photograph(row["image"]) == photo] for photo in photographs
        ]
        table[model] = {metric: _tile_means(per_photo, metric) for metric in scores.metrics}
    return table


def _photograph(image: str) -> str:
    return image.rpartition("-")[0]


def _tile_means(per_photo: list[list[dict[str, Any]]], metric: str) -> np.ndarray:
    """(photographs, noises): the mean over a photograph's tiles for each noise."""
    noises = sorted({row["noise"] for row in per_photo[0]})
    return np.array(
        [
            [np.mean([r[metric] for r in rows if r["noise"] == n]) for n in noises]
            for rows in per_photo
        ]
    )


def within_image_stds(scores: ImageScores) -> dict[str, float]:
    """NAOSD's within-image standard deviation of every metric, over single tiles."""
    rows = sorted(
        (row for row in scores.table.to_pylist() if row["model"] == "naosd"),
        key=lambda row: (row["image"], row["noise"]),
    )
    noises = 1 + max(row["noise"] for row in rows)
    return {
        metric: within_image_std(np.array([row[metric] for row in rows]).reshape(-1, noises))
        for metric in scores.metrics
    }


def pooled(tables: list[Scores]) -> Scores:
    """Seeds side by side as further measurements of a photograph."""
    return {
        model: {
            metric: np.concatenate([t[model][metric] for t in tables], axis=1) for metric in metrics
        }
        for model, metrics in tables[0].items()
    }


def compared(table: Scores, units: dict[str, float], reward: Reward) -> dict[str, Any]:
    """A summary as `evaluate` writes it, over photographs: means and paired differences.

    units: NAOSD's within-image standard deviation of every metric, for the differences' `effect`.
    reward: which metrics it is made of.
    """
    higher = {metric: metric == REWARD or higher_is_better(metric) for metric in table["naosd"]}
    summary = summarise(table, higher, PAIRS, unit_of="naosd")
    for row in summary["differences"]:
        row["effect"] = row["mean"] / units[row["metric"]] if units[row["metric"]] else None
    means = {
        model: {metric: values["mean"] for metric, values in metrics.items()}
        for model, metrics in summary["models"].items()
    }
    return {
        "means": means,
        "differences": summary["differences"],
        "reward": {"fidelity": reward.fidelity, "perception": reward.perception},
    }


def judged(summary: dict[str, Any]) -> list[Claim]:
    """The claims of the report on one of these summaries."""
    models = EvaluatedModels({name: IDENTITIES[name] for name in ("naosd", "gdpo", "control")})
    return claims({**summary, "benchmark": "sample", "origin": {"models": models.to_origin()}})


def judged_fidelity(summary: dict[str, Any]) -> list[Claim]:
    """The claims of the setting `fidelity`: PSNR rises surely, NIQE does not get surely worse."""
    rows = {(row["metric"], row["b"]): row for row in summary["differences"] if row["a"] == "gdpo"}
    psnr, niqe = [rows["psnr_y", b] for b in ("naosd", "control")], rows["niqe", "naosd"]
    told = "; ".join(f"against {row['b']} {evidence(row, ' dB')}" for row in psnr)
    rises = all(row["mean"] > 0 and row["p"] < SURE for row in psnr)
    return [
        Claim(f"PSNR rises against NAOSD and against the control, p < {SURE}", rises, told),
        Claim(
            "NIQE does not get surely worse than NAOSD’s",
            niqe["mean"] <= 0 or niqe["p"] >= SURE,
            evidence(niqe),
        ),
    ]


JUDGES = {"main": judged, "fidelity": judged_fidelity}


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "peft", "pyiqa", "numpy")
        },
    }


def compact(result: dict[str, Any]) -> str:
    """The result as JSON with six significant digits, one difference or section on each line."""
    plain = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    return re.sub(r'(?<=[\[,]) ?(\{"(?:pair|text|means)")', r"\n\1", json.dumps(plain)) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """The same as a page."""
    count = f"{len(result['photographs'])} photographs"
    lines = [
        f"# Evidence: {len(result['seeds'])} training seeds, {count}",
        "",
        "| claim | measured | holds |",
        "|---|---|---|",
    ]
    for claim in result["claims"]:
        holds = "yes" if claim["holds"] else "NO"
        lines.append(f"| {claim['text']} | {claim['evidence']} | {holds} |")
    for title, part in [
        ("Pooled", result["pooled"]),
        *((f"Seed {i + 1}", s) for i, s in enumerate(result["seeds"])),
    ]:
        lines += ["", f"## {title}", "", *_section(part)]
    measured = result["machine"]
    lines += [
        "",
        "Effects are in NAOSD's within-image standard deviations of single tiles. Measured on "
        f"{measured['cores']} cores, commit {measured['commit'][:12]}, torch "
        f"{measured['versions']['torch']}; seconds per seed {result['seconds']}.",
    ]
    return "\n".join(lines) + "\n"


def _section(part: dict[str, Any]) -> list[str]:
    """The table of one seed, or of the pooled seeds: means of the models, then the differences."""
    metrics = list(part["means"]["naosd"])
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for model in ("bicubic", "naosd", "gdpo", "control"):
        means = (f"{part['means'][model][metric]:.3f}" for metric in metrics)
        lines.append(f"| {model} | {' | '.join(means)} |")
    for a, b in PAIRS:
        cells = (
            f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] p={d['p']:.2g}"
            for d in part["differences"]
            if d["pair"] == f"{a}-{b}"
        )
        lines.append(f"| {a}-{b} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
