"""Made-up outputs of every stage before `report`, with names that try to break out of the page and
of the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import summarise
from gdpo.images import write_png
from gdpo.model.card import IDENTITIES, Identity

NAMES = [
    "<script>alert(1)</script>",
    "../../\"quoted\" & 'single'",
    '"><img src=x onerror=alert(2)>',
    "$x_1$ ÿ",
    "plain.png-01",
]
HIGHER = {"psnr_y": True, "niqe": False, "reward": True}
RUNS = ("naosd", "gdpo", "control")
MODELS = EvaluatedModels({run: IDENTITIES[run] for run in RUNS})
VIEWS = ("lr", "bicubic", *MODELS.identities, "hr")
PAIRS = MODELS.comparisons()
# What every summary of these models states.
ABOUT: dict[str, Any] = {"benchmark": "sample", "origin": {"models": MODELS.to_origin()}}

_VALUE = {"mean": 20.0, "standard_error": 0.1, "within_image_std": 0.2}
_INTERVAL = {"mean": 0.5, "standard_error": 0.1, "low": 0.3, "high": 0.7, "p": 0.001, "effect": 0.4}
# The least that the summary of an evaluation holds.
SMALL = {
    **ABOUT,
    "images": 3,
    "noises": 8,
    "metrics": {"reward": {"higher_is_better": True}},
    "reward": {"perception": []},
    "models": {model: {"reward": _VALUE} for model in ("bicubic", "naosd", "gdpo", "control")},
    "differences": [
        {"pair": f"{a}-{b}", "a": a, "b": b, "metric": "reward", "verdict": "better", **_INTERVAL}
        for a, b in (("gdpo", "naosd"), ("control", "naosd"), ("gdpo", "control"))
    ],
}


def scores(images: int, noises: int, gain: float = 3.0) -> dict[str, dict[str, np.ndarray]]:
    """Scores of four models; GDPO-SR is better than NAOSD by `gain` within-image standard
    deviations.
    """
    rng = np.random.default_rng(0)
    level = {"psnr_y": 24.0, "niqe": 3.2, "reward": 0.0}
    spread = {"psnr_y": 0.2, "niqe": 0.1, "reward": 0.7}
    shift = {"bicubic": -3.0, "naosd": 0.0, "gdpo": gain, "control": 0.05}
    image = {metric: rng.normal(0, 0.1, (images, 1)) for metric in HIGHER}
    return {
        model: {
            metric: level[metric]
            + image[metric]
            + (1 if higher else -1) * shift[model] * spread[metric]
            + rng.normal(0, spread[metric], (images, 1 if model == "bicubic" else noises))
            for metric, higher in HIGHER.items()
        }
        for model in shift
    }


def photograph(index: int) -> str:
    """The photograph of an image: each has its own."""
    return f"photo{index}"


def _lines(path: Path, steps: int, keys: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(path.parent.name))
    path.parent.mkdir(parents=True)
    rows = [
        {"step": s, **{key: float(np.exp(-s / 30) + rng.normal(0, 0.05)) for key in keys}}
        for s in range(steps)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _rows(values: dict[str, dict[str, np.ndarray]], names: list[str]) -> list[dict[str, object]]:
    return [
        {
            "image": names[i],
            "photograph": photograph(i),
            "model": model,
            "noise": n,
            **{m: float(v[i, n]) for m, v in metrics.items()},
        }
        for model, metrics in values.items()
        for i in range(len(names))
        for n in range(next(iter(metrics.values())).shape[1])
    ]


def promote(root: Path, names: list[str] = NAMES, gain: float = 3.0) -> None:
    """Put scores of another run of the sample benchmark where the report looks for those of the
    promoted run.
    """
    (root / "promoted/sample").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(_rows(scores(len(names), 3, gain), names)),
        root / "promoted/sample/per_image.parquet",
    )


def _evaluation(
    out: Path,
    names: list[str],
    noises: int,
    pictures: dict[str, np.ndarray] | None,
    name_of: Mapping[str, str],
    cards: Mapping[str, Identity] = IDENTITIES,
) -> None:
    values = {
        name_of.get(run, run): by_metric for run, by_metric in scores(len(names), noises).items()
    }
    models = EvaluatedModels({name_of.get(run, run): cards[run] for run in RUNS})
    rng, files = np.random.default_rng(3), []
    for index, name in enumerate(names):
        folder = f"{index:03d}-image"
        for view in (*VIEWS, *(f"candidates/{n}" for n in range(noises if index == 0 else 0))):
            side = 8 if view == "lr" else 32
            made = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
            target = out / "images" / folder / f"{name_of.get(view, view)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_png(target, (pictures or {}).get(f"{index}/{view.split('/')[0]}", made))
        side = pictures[f"{index}/hr"].shape[0] if pictures else 32
        row = {
            "id": name,
            "source": photograph(index),
            "folder": folder,
            "height": side,
            "width": side,
        }
        files.append({**row, "detail_share": 0.4})
    origin = {f"setting_{i}": json.dumps(i) for i in range(13)} | {
        "code": json.dumps("0123abcd"),
        "weights": json.dumps({"gdpo": names[0]}),
        "models": json.dumps(models.to_origin()),
    }
    table = pa.Table.from_pylist(_rows(values, names)).replace_schema_metadata(origin)
    pq.write_table(table, out / "per_image.parquet")
    members = [
        {"metrics": {"psnr_y": 24.0 + n, "niqe": 3.0}, "reward": n / noises, "advantage": n - 1.0}
        for n in range(noises)
    ]
    _json(out / "candidates.json", [{"image": names[0], "folder": "000-image", "members": members}])
    summary = {
        "benchmark": "sample",
        "origin": {"models": models.to_origin()},
        "images": len(names),
        "photographs": len(names),
        "noises": noises,
        "files": files,
        "sets": {"fid": {models.baseline: [20.0, 22.0], "bicubic": [40.0]}},
        "reward": {"fidelity": ["psnr_y"], "perception": ["niqe"]},
        "metrics": {metric: {"higher_is_better": higher} for metric, higher in HIGHER.items()},
        **summarise(
            values,
            HIGHER,
            models.comparisons(),
            unit_of=models.baseline,
            photographs=[photograph(i) for i in range(len(names))],
        ),
    }
    _json(out / "summary.json", summary)


def outputs(
    root: Path,
    names: list[str] = NAMES,
    noises: int = 3,
    pictures: dict[str, np.ndarray] | None = None,
    name_of: Mapping[str, str] | None = None,
) -> None:
    """Write all inputs of the report under `root`.

    pictures: {"<index>/<view>": uint8 image} in place of noise. name_of: the name in
    evaluate.models of a training run, where it is another.
    """
    _evaluation(root / "reports/evaluate/sample", names, noises, pictures, name_of or {})
    _lines(root / "reports/pretrain/metrics.jsonl", 40, ("loss", "vsd"))
    for run in ("gdpo", "control"):
        _lines(root / "reports/finetune" / run / "metrics.jsonl", 60, ("loss", "implicit_accuracy"))
    skipped = [
        {"name": name, "reason": names[0], "detail": ""} for name in [*names, "\udcff no text"]
    ]
    photographs = {
        "photographs": {"used": 5, names[0]: len(skipped)},
        "sources": {},
        "skipped": skipped,
    }
    _json(
        root / "reports/photographs/report.json", {"evaluation": photographs, "train": photographs}
    )
    for part in ("00", "01", "evaluation"):
        _json(root / f"reports/degrade/{part}/report.json", {"photographs": 5, "pairs": 900})
    for checked in ("degrade/00", "select"):
        (root / "reports/data-docs" / checked).mkdir(parents=True)
        (root / "reports/data-docs" / checked / "index.html").write_text(
            "<!doctype html><title>Data Docs</title>"
        )
    _json(
        root / "data/selected/report.json", {"kept": 192, "reasons": {"too flat": 12, names[0]: 1}}
    )
    claim = {"text": names[0], "holds": False, "evidence": names[2]}
    _json(root / "benchmarks/results/evidence.json", {"seeds": [{}, {}], "claims": [claim]})
    (root / "benchmarks/results/evidence.md").write_text(f"# Evidence\n\n{names[0]}\n")
    rng = np.random.default_rng(4)
    groups = [
        {
            "id": f"{i:02d}",
            "detail_share": 0.4,
            "metrics": {
                name: rng.normal(mean, 0.1 if i else 0, 6).tolist()
                for name, mean in (("psnr_y", 24), ("niqe", 3))
            },
        }
        for i in range(30)
    ]
    for part in range(2):
        (root / f"data/rollouts/{part:02d}").mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(groups[part::2]), root / f"data/rollouts/{part:02d}/00000.parquet"
        )


def second_system(root: Path, names: list[str] = NAMES, noises: int = 2) -> None:
    """Write the evaluation of RealSR-R1 under `root`: of the same photographs."""
    from gdpo.vlcot.folder import IDENTITIES as OF_VLCOT  # slow to import

    name_of = {"naosd": "coldstart", "gdpo": "vlcot"}
    cards = {run: OF_VLCOT[name_of.get(run, run)] for run in RUNS}
    _evaluation(root / "reports/vlcot/evaluate/sample", names, noises, None, name_of, cards)
