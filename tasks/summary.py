"""Print what the last evaluation showed, from reports/evaluate/summary.json: `gdpo-sr summary`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdpo.evaluate.tables import differences_table, models_table, to_text
from gdpo.evaluate.verdict import verdict_sentence

EXAMPLE = "gdpo-sr summary"
SUMMARY = Path("reports/evaluate/summary.json")
REPORT = Path("reports/index.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json` for programs."""
    parser.add_argument("--json", action="store_true", help="print summary.json itself")


def main(args: argparse.Namespace) -> int:
    """Two tables, the verdict and where the report is; or the JSON."""
    summary = read(Path.cwd())
    print(json.dumps(summary, indent=2) if args.json else text(summary, Path.cwd()))
    return 0


def read(root: Path) -> Mapping[str, Any]:
    """The summary that the evaluate stage wrote under `root`."""
    path = root / SUMMARY
    if not path.is_file():
        raise ValueError(f"{SUMMARY}: not there yet; `dvc repro` makes it")
    try:
        summary: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{SUMMARY}: not JSON ({error}); `dvc checkout` brings it back") from error
    return summary


def text(summary: Mapping[str, Any], root: Path) -> str:
    """What `make demo` ends with."""
    models, differences = models_table(summary), differences_table(summary)
    parts = [to_text(models), models.caption, to_text(differences), differences.caption, verdict_sentence(summary)]
    return "\n\n".join(["", *parts, f"Report: {root / REPORT}"])


def artifact(summary: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """For a table artifact: one mapping from heading to text per model, and the verdict as its description."""
    table = models_table(summary)
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    return rows, verdict_sentence(summary)
