"""Print the last evaluation of a benchmark from reports/evaluate/<benchmark>/summary.json: `gdpo-sr
summary`.
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
SAMPLE = "sample"  # the default benchmark without a params.yaml
REPORT = Path("reports/index.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --benchmark and --json."""
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help="default: the first of evaluate.benchmarks in params.yaml",
    )
    parser.add_argument("--json", action="store_true", help="print summary.json itself")


def main(args: argparse.Namespace) -> int:
    """Print two tables, the verdict and the path of the report; or the JSON."""
    summary = read(Path.cwd(), args.benchmark)
    print(json.dumps(summary, indent=2) if args.json else text(summary, Path.cwd()))
    return 0


def read(root: Path, benchmark: str | None = None) -> Mapping[str, Any]:
    """The summary.json of a benchmark under `root`; None: the first benchmark in root/params.yaml.

    Errors: ValueError naming a missing or damaged file.
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
    """The summary as plain text; also the last output of `make demo`."""
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
    """The content of a Prefect table artifact: {heading: text} per model, and the verdict as its
    description.
    """
    table = models_table(summary)
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    return rows, verdict_sentence(summary)
