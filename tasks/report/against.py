"""Compare an evaluation with an earlier one: `python -m tasks evaluate --against latest`, as the
nightly run does.

    latest    promoted/<benchmark>/per_image.parquet, the promoted model's run
    PATH      another per_image.parquet, or a folder with one

Compares GDPO-SR in this run with GDPO-SR in the earlier run, paired by image, over the noises that
both runs have. A metric regressed if its 95 % interval lies entirely on the worse side of 0. Each
metric is judged by itself: of twenty unchanged metrics, one regresses by chance. The regressed
metrics come first on stderr and in reports/against/<benchmark>.json (not a DVC output: it depends
on what is promoted). After a regression the exit code is 4.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.metrics.score import METRICS, higher_is_better
from tasks.report.tables import interval_text, label, mean_text
from tasks.report.verdict import Changes, ImageMeans, Row, changes

REGRESSED = 4  # exit code
LATEST = "latest"
_TEXTS = ("image", "model", "noise")
# Settings that comparable runs share, and the advice if they differ.
_SAME = {
    "benchmark": "name another run",
    "color_fix": "evaluate both alike",
    "precision": "evaluate both alike",
}


def check(config: Config, root: Path, benchmark: str | None, against: str) -> int:
    """Compare with an earlier run and report; returns 0, or 4 after a regression. Errors: those of
    `place` and `compare`.
    """
    benchmark = benchmark or config.evaluate.benchmarks[0]
    before = place(config, root, benchmark, against)
    found, metadata = compare(
        root / "reports/evaluate" / benchmark / "per_image.parquet", before, _judged(config)
    )
    worse, rest = _sorted(found)
    content = {
        "benchmark": benchmark,
        "regressed": [row["metric"] for row in worse],
        "metrics": [*worse, *rest],
        **{name: value for name, value in asdict(found).items() if name != "rows"},
        "against": {
            "file": before.relative_to(root).as_posix()
            if before.is_relative_to(root)
            else before.name,
            **metadata,
        },
    }
    with written_aside(root / "reports/against" / f"{benchmark}.json") as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    verdict = f"{len(worse)} of {len(found.rows)} metrics regressed" if worse else "no regression"
    name = f"{label(found.model)} on {benchmark} against {content['against']['file']}"
    lines = [
        *(f"regressed: {_line(row)}" for row in worse),
        f"{name}: {verdict}, {found.images} images",
        *map(_line, rest),
    ]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return REGRESSED if worse else 0


def _judged(config: Config) -> str:
    """The model to compare: GDPO-SR, else the first model after the reference."""
    names = list(config.evaluate.models)
    return "gdpo" if "gdpo" in names else names[:2][-1]


def place(config: Config, root: Path, benchmark: str | None, against: str) -> Path:
    """The file of the run to compare with. Errors: ValueError naming it if it is missing."""
    if against == LATEST:
        path = (
            root / "promoted" / (benchmark or config.evaluate.benchmarks[0]) / "per_image.parquet"
        )
        if not path.is_file():
            shown = path.relative_to(root)
            raise ValueError(
                f"{shown}: no promoted run of this benchmark yet; promote one, or give --against "
                "a file"
            )
        return path
    path = root / against
    path = path / "per_image.parquet" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{against}: no per_image.parquet there (--against)")
    return path


def compare(now: Path, before: Path, model: str) -> tuple[Changes, dict[str, Any]]:
    """Paired differences of `model` (this run minus the earlier one), and the earlier run's commit
    and weights.

    Errors: ValueError naming the earlier file if its benchmark, settings, metric versions or images
    differ.
    """
    (rows, new), (old_rows, old) = _read(now), _read(before)
    for key, advice in _SAME.items():
        if new.get(key) != old.get(key):
            raise ValueError(
                f"{before}: {key} is {old.get(key)}, in this run {new.get(key)}; {advice}"
            )
    shared = [m for m in rows.column_names if m in METRICS and m in old_rows.column_names]
    for metric in shared:
        ours, theirs = (run.get("metrics", {}).get(metric) for run in (new, old))
        if ours != theirs:
            raise ValueError(
                f"{before}: {metric} is of version {theirs}, in this run {ours}; evaluate the "
                "earlier model again"
            )
    same_noises = new.get("seed") == old.get("seed")
    noises = min(new.get("noises", 0), old.get("noises", 0)) if same_noises else None
    a, b = (_image_means(table, shared, noises) for table in (rows, old_rows))
    found = changes(a, b, {metric: higher_is_better(metric) for metric in shared}, model)
    if not found.rows or found.images < max(found.of, len(b.get(model, {}))):
        raise ValueError(
            f"{before}: of other images, models or metrics than this run; evaluate the earlier "
            "model again"
        )
    return found, {"commit": old.get("commit"), "weights": old.get("weights", {}).get(model)}


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and origin of a per_image.parquet."""
    try:
        table = pq.read_table(path)
        metadata = {
            key.decode(): json.loads(value) for key, value in (table.schema.metadata or {}).items()
        }
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"{path}: not a file of the evaluate stage ({str(error).splitlines()[0]})"
        ) from error
    if not {*_TEXTS} <= {*table.column_names}:
        raise ValueError(
            f"{path}: not a file of the evaluate stage (no column image, model or noise)"
        )
    return table, metadata


def _image_means(table: pa.Table, metrics: list[str], noises: int | None) -> ImageMeans:
    """{model: {image: {metric: mean over noises}}} over the first `noises` noises (None: all)."""
    if noises is not None:
        table = table.filter(pc.less(table["noise"], noises))
    means = table.group_by(["model", "image"], use_threads=False).aggregate(
        [(metric, "mean") for metric in metrics]
    )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in means.to_pylist():
        found.setdefault(row["model"], {})[row["image"]] = {
            metric: row[f"{metric}_mean"] for metric in metrics
        }
    return found


def _sorted(found: Changes) -> tuple[list[Row], list[Row]]:
    """The regressed rows, sorted by distance from 0 in standard errors (largest first), and the
    other rows.
    """

    def regressed(row: Row) -> bool:
        end = row["high"] if higher_is_better(row["metric"]) else row["low"]
        return end is not None and (end < 0 if higher_is_better(row["metric"]) else end > 0)

    def distance(row: Row) -> float:
        return abs(row["mean"]) / row["standard_error"] if row["standard_error"] else float("inf")

    worse = sorted(filter(regressed, found.rows), key=distance, reverse=True)
    return worse, [row for row in found.rows if not regressed(row)]


def _line(row: Row) -> str:
    """One metric's difference and interval, as text."""
    interval = (
        "one image, no interval" if row["low"] is None else f"95 % interval {interval_text(row)}"
    )
    return f"{label(row['metric'])} {mean_text(row)} ({interval})"
