"""The paper's tables with our figures beside the paper's: `gdpo-sr tables`, and `paper_tables` for
the report.

Our figures come from reports/evaluate/*/ (every evaluated benchmark), benchmarks/results/sweep.json
(Table 10, Fig. 7; benchmarks/sweep.py) and benchmarks/results/inference.json (Table 4;
benchmarks/inference.py). Missing files are skipped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.files import written_aside
from gdpo.metrics.table import METRICS
from tasks.report import paper
from tasks.report.published import Run, Values, tables
from tasks.report.tables import Table, to_csv, to_html, to_markdown, to_text

EXAMPLE = "gdpo-sr tables --out reports/tables"
RESULTS = Path("benchmarks/results")
SWEPT = ("table-10", "figure-7")  # tables from sweep.json
FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "html": to_html}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --out (output folder) and --json."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write each as Markdown, CSV and HTML instead"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the tables, or write them. Errors: ValueError naming a damaged file."""
    found = paper_tables(Path.cwd())
    if args.out:
        write(found, args.out)
        sys.stdout.write(f"{args.out}: {len(found)} tables\n")
    elif args.json:
        sys.stdout.write(
            json.dumps([asdict(table) for table in found], indent=1, ensure_ascii=False) + "\n"
        )
    else:
        sys.stdout.write(
            "\n".join(f"{table.caption}\n\n{to_text(table)}\n" + _notes(table) for table in found)
        )
    return 0


def _notes(table: Table) -> str:
    return "".join(f"  {note}\n" for note in table.notes)


def write(found: list[Table], folder: Path) -> None:
    """Write each table to folder/<name>.md, .csv and .html; replaces the folder."""
    with written_aside(folder) as part:
        part.mkdir()
        for table in found:
            for suffix, text in FORMATS.items():
                (part / f"{table.name}.{suffix}").write_text(text(table), encoding="utf-8")


def paper_tables(root: Path) -> list[Table]:
    """Tables 1-4, Fig. 7, Tables 8, 10 and 12, from the files under `root`.

    A cell without a measurement is empty, and the notes say why. Errors: ValueError naming a
    damaged file.
    """
    runs, weights = [], {}
    for folder in sorted(
        path.parent for path in (root / "reports/evaluate").glob("*/summary.json")
    ):
        runs.append(_run(folder))
        weights[folder.name] = _origin(folder).get("weights", {})
    sweep, inference = _read(root, "sweep.json", {}), _read(root, "inference.json", [])
    found = tables(runs, sweep["results"], inference["results"])
    others = [
        name
        for name, origin in sweep.get("origin", {}).items()
        if _differ(weights.get(name), origin["weights"])
    ]
    notes = [
        f"{name}: measured with other weights than those evaluated; `python benchmarks/sweep.py` "
        "again."
        for name in others
    ]
    return [
        replace(table, notes=[*table.notes, *notes]) if table.name in SWEPT else table
        for table in found
    ]


def _read(root: Path, name: str, absent: Any) -> dict[str, Any]:
    """A file of `RESULTS`; {"results": absent} if it is missing."""
    path = root / RESULTS / name
    if not path.is_file():
        return {"results": absent}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "results": content["results"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{RESULTS / name}: damaged ({error}); measure again, or take it from git"
        ) from error


def _differ(evaluated: Mapping[str, str] | None, swept: Mapping[str, str]) -> bool:
    """Whether an evaluated model has other weights than the sweep's model of the same name."""
    return any(
        swept.get(model, weights) != weights
        for model, weights in (evaluated or {}).items()
        if model in paper.MODELS.values()
    )


def _origin(folder: Path) -> dict[str, Any]:
    """The origin of a benchmark's results (tasks/run/provenance.py)."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get(
        "origin", {}
    )
    return found


def _run(folder: Path) -> Run:
    """Means over images for each noise, from the evaluate stage's files in `folder`."""
    path = folder / "per_image.parquet"
    try:
        table = pq.read_table(path)
        sets = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("sets", {})
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: not the results of a benchmark ({str(error).splitlines()[0]}); evaluate it "
            "again"
        ) from error
    metrics = [name for name in table.column_names if name in METRICS]
    means = table.group_by(["model", "noise"], use_threads=False).aggregate(
        [(metric, "mean") for metric in metrics]
    )
    models: dict[str, dict[str, Any]] = {}
    for row in means.sort_by("noise").to_pylist():
        for metric in metrics:
            models.setdefault(row["model"], {}).setdefault(metric, []).append(row[f"{metric}_mean"])
    for metric, values in sets.items():
        for model, by_noise in values.items():
            models[model][metric] = by_noise
    found: dict[str, Values] = dict(models)
    return Run(folder.name, 1 + max(table["noise"].to_pylist()), found)
