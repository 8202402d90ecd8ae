"""Print what the last evaluation of a benchmark showed, from
reports/evaluate/<benchmark>/summary.json: `gdpo-sr summary`.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.params import load
from tasks.report.tables import differences_table, models_table, to_text
from tasks.report.verdict import verdict_sentence

EXAMPLE = "gdpo-sr summary --benchmark sample"
SAMPLE = "sample"  # the benchmark where nothing says another
REPORT = Path("reports/index.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which benchmark, and `--json` for programs."""
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help="default: the first of evaluate.benchmarks in params.yaml",
    )
    parser.add_argument("--json", action="store_true", help="print summary.json itself")


def main(args: argparse.Namespace) -> int:
    """Two tables, the verdict and where the report is; or the JSON."""
    summary = read(Path.cwd(), args.benchmark)
    print(json.dumps(summary, indent=2) if args.json else text(summary, Path.cwd()))
    return 0


def read(root: Path, benchmark: str | None = None) -> Mapping[str, Any]:
    """The summary of a benchmark that the evaluate stage wrote under `root`; None: the first in
    root/params.yaml.
    """
    params = root / "params.yaml"
    first = (
        load(params).evaluate.benchmarks[0] if benchmark is None and params.is_file() else SAMPLE
    )
    path = Path("reports/evaluate", benchmark or first, "summary.json")
    if not (root / path).is_file():
        raise ValueError(f"{path}: not there yet; `dvc repro` makes it")
    try:
        summary: Mapping[str, Any] = json.loads((root / path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); `dvc checkout` brings it back") from error
    return summary


def text(summary: Mapping[str, Any], root: Path) -> str:
    """What `make demo` ends with."""
    models, differences = models_table(summary), differences_table(summary)
    parts = [
        to_text(models),
        models.caption,
        to_text(differences),
        differences.caption,
        verdict_sentence(summary),
    ]
    return "\n\n".join(["", *parts, f"Report: {root / REPORT}"])


def artifact(summary: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """For a table artifact: one mapping from heading to text per model, and the verdict as its
    description.
    """
    table = models_table(summary)
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    return rows, verdict_sentence(summary)
