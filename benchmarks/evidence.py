"""Does GDPO help? The sample pipeline over several training seeds, judged on photographs that
nothing was chosen on.

    python benchmarks/evidence.py --photos FOLDER --seeds 5

Of each photograph in FOLDER the central 384 x 384 pixels are used (four tiles). Per seed, every
stage from degrade to evaluate runs in its own folder under work/evidence, with the values of
params.yaml. The unit of every test is the photograph: tiles and noises of one photograph are
averaged first. GDPO-SR is compared with NAOSD and with a control trained on the same rollouts with
advantages shuffled inside each group; "pooled" averages the seeds of a photograph before the test.
Writes benchmarks/results/evidence.json and evidence.md; exits 1 when a claim does not hold.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.evaluate.statistics import Difference, paired_difference, within_image_std
from gdpo.files import written_aside
from gdpo.images import read_photo, write_png
from gdpo.metrics.score import higher_is_better
from gdpo.train.loop import Hooks
from tasks.params import load
from tasks.stages import degrade, evaluate, finetune, index, pretrain, rollout, select
from tasks.tools.prior import SUFFIXES

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks/results"
PAIRS = (("gdpo", "naosd"), ("gdpo", "control"), ("control", "naosd"), ("naosd", "bicubic"))
# What the issue asks of GDPO-SR against NAOSD and its control.
SIDE = 384
MIN_REWARD, MAX_PSNR_LOSS, LEVEL = 0.3, 0.05, 0.01

Table = dict[str, dict[str, np.ndarray]]  # model -> metric -> (photographs, measurements)


def main() -> int:
    """Run the seeds that are not there yet, and write the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", default="scikit-image", help="a folder of photographs used for no choice"
    )
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    tables, units, seconds = [], [], []
    for seed in range(1, args.seeds + 1):
        config = configured(args.photos, seed)
        root = REPO / "work/evidence" / str(seed)
        run_stages(config, root)
        scores = root / "reports/evaluate/sample/per_image.parquet"
        tables.append(read_table(scores))
        units.append(within_image_std(read_table(scores, tiles=True)["naosd"]["reward"]))
        seconds.append(int((root / "seconds").read_text()))
    result = {
        "photographs": args.photos
        if args.photos == "scikit-image"
        else sorted(p.name for p in Path(args.photos).rglob("*.*")),
        "seeds": [compared(table, unit) for table, unit in zip(tables, units, strict=True)],
        "pooled": (summary := compared(pooled(tables), float(np.mean(units)))),
        "claims": claims(summary),
        "params": load(REPO / "params.yaml").model_dump(exclude={"seed"}),
        "machine": machine(),
        "seconds": seconds,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with written_aside(RESULTS / "evidence.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n")
    with written_aside(RESULTS / "evidence.md") as part:
        part.write_text(markdown(result))
    sys.stdout.write(markdown(result))
    return 0 if all(claim["holds"] for claim in result["claims"]) else 1


def configured(photos: str, seed: int) -> Config:
    """params.yaml with this seed and these evaluation photographs."""
    plain = load(REPO / "params.yaml").model_dump()
    plain["seed"] = seed
    plain["model"]["base"] = str(REPO / plain["model"]["base"])
    plain["pretrain"]["init"] = plain["pretrain"]["init"] and str(REPO / plain["pretrain"]["init"])
    if photos != "scikit-image":
        plain["degrade"]["evaluation"] = [{"path": str(centres(Path(photos)))}]
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


def run_stages(config: Config, root: Path) -> None:
    """Every stage whose output is missing below `root`; its file `seconds` adds up what they
    took.
    """
    steps: list[tuple[str, Any]] = [
        ("data/photos", index.run),
        ("reports/degrade", degrade.run),
        ("models/naosd", pretrain.run),
        ("data/selected", select.run),
        ("data/rollouts", rollout.run),
        ("models/gdpo", finetune.run),
        ("models/control", lambda c, r, h: finetune.run(c, r, h, "control")),
        ("reports/evaluate/sample", lambda c, r, h: evaluate.run(c, r, h, "sample")),
    ]
    for output, stage in steps:
        if not (root / output).exists():
            started = time.monotonic()
            stage(config, root, Hooks())
            spent = int((root / "seconds").read_text()) if (root / "seconds").exists() else 0
            (root / "seconds").write_text(str(spent + round(time.monotonic() - started)))


def read_table(path: Path, *, tiles: bool = False) -> Table:
    """Scores by model and metric, (photographs, noises), or (tiles, noises); tiles share the id up
    to the last dash.
    """
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["unit"] = row["image"] if tiles else row["image"].rpartition("-")[0]
    photos = sorted({row["unit"] for row in rows})
    metrics = [name for name in rows[0] if name not in ("image", "model", "noise", "unit")]
    table: Table = {}
    for model in sorted({row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == model]
        per_photo = [[row for row in mine if row["unit"] == photo] for photo in photos]
        table[model] = {metric: _tile_means(per_photo, metric) for metric in metrics}
    return table


def _tile_means(per_photo: list[list[dict[str, Any]]], metric: str) -> np.ndarray:
    """(photographs, noises): the mean over a photograph's tiles for each noise."""
    noises = sorted({row["noise"] for row in per_photo[0]})
    return np.array(
        [
            [np.mean([r[metric] for r in rows if r["noise"] == n]) for n in noises]
            for rows in per_photo
        ]
    )


def pooled(tables: list[Table]) -> Table:
    """Seeds side by side as further measurements of a photograph."""
    return {
        model: {
            metric: np.concatenate([t[model][metric] for t in tables], axis=1) for metric in metrics
        }
        for model, metrics in tables[0].items()
    }


def compared(table: Table, unit: float) -> dict[str, Any]:
    """Means of every model, paired differences with interval and p over photographs, and the gain
    of the reward.

    unit: NAOSD's within-image standard deviation of the reward, of single tiles.
    """
    differences = {}
    for a, b in PAIRS:
        found: dict[str, Difference] = {
            m: paired_difference(table[a][m], table[b][m]) for m in table[a]
        }
        differences[f"{a}-{b}"] = {metric: vars(difference) for metric, difference in found.items()}
    return {
        "means": {
            model: {m: float(v.mean()) for m, v in metrics.items()}
            for model, metrics in table.items()
        },
        "differences": differences,
        "reward_gain_in_naosd_stds": differences["gdpo-naosd"]["reward"]["mean"] / unit,
    }


def claims(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of the README, each with what was measured on the pooled seeds."""
    over_naosd, over_control = (
        result["differences"][f"gdpo-{other}"] for other in ("naosd", "control")
    )
    perception = [m for m in ("niqe", "piqe") if m in over_naosd]
    better = {
        m: (d["mean"] > 0) == higher_is_better(m) and d["p"] < LEVEL
        for m, d in over_naosd.items()
        if m in perception
    }
    gain = result["reward_gain_in_naosd_stds"]
    made = [
        (
            "the reward rises by >= 0.3 of NAOSD's within-image standard deviation",
            gain,
            gain >= MIN_REWARD,
        ),
        (
            "the reward gain over NAOSD has p < 0.01",
            over_naosd["reward"]["p"],
            over_naosd["reward"]["p"] < LEVEL,
        ),
        (
            "a no-reference metric improves over NAOSD with p < 0.01",
            [m for m in better if better[m]],
            any(better.values()),
        ),
        (
            "PSNR falls by no more than 0.05 dB",
            over_naosd["psnr_y"]["mean"],
            over_naosd["psnr_y"]["mean"] >= -MAX_PSNR_LOSS,
        ),
        (
            "the reward beats the shuffled control with p < 0.01",
            over_control["reward"]["p"],
            over_control["reward"]["mean"] > 0 and over_control["reward"]["p"] < LEVEL,
        ),
    ]
    return [{"claim": text, "measured": value, "holds": bool(holds)} for text, value, holds in made]


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "peft", "pyiqa", "numpy")
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """The same as a page."""
    photographs = result["photographs"]
    count = photographs if isinstance(photographs, str) else f"{len(photographs)} photographs"
    lines = [
        f"# Evidence: {len(result['seeds'])} training seeds, {count}",
        "",
        "| claim | measured | holds |",
        "|---|---|---|",
    ]
    for claim in result["claims"]:
        measured = claim["measured"]
        shown = f"{measured:.3g}" if isinstance(measured, float) else ", ".join(measured) or "none"
        lines.append(f"| {claim['claim']} | {shown} | {'yes' if claim['holds'] else 'NO'} |")
    for title, part in [
        ("Pooled", result["pooled"]),
        *((f"Seed {i + 1}", s) for i, s in enumerate(result["seeds"])),
    ]:
        metrics = list(part["means"]["naosd"])
        lines += [
            "",
            f"## {title}",
            "",
            "| | " + " | ".join(metrics) + " |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for model in ("bicubic", "naosd", "gdpo", "control"):
            lines.append(
                f"| {model} | "
                + " | ".join(f"{part['means'][model][m]:.3f}" for m in metrics)
                + " |"
            )
        for pair, found in part["differences"].items():
            cells = (
                f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] p={d['p']:.2g}"
                for d in found.values()
            )
            lines.append(f"| {pair} | " + " | ".join(cells) + " |")
    machine_ = result["machine"]
    lines += [
        "",
        f"Reward gain pooled: {result['pooled']['reward_gain_in_naosd_stds']:.2f} of NAOSD's "
        "within-image standard "
        f"deviation. Measured on {machine_['cores']} cores, commit {machine_['commit'][:12]}, "
        "torch "
        f"{machine_['versions']['torch']}; seconds per seed {result['seconds']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
