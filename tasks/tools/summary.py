"""Tool `summary`: prints the last evaluation of a benchmark (tasks/report/summary.py)."""

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = "gdpo-sr summary --benchmark sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --benchmark and --json."""
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help="default: the first of evaluate.benchmarks in params.yaml",
    )
    parser.add_argument("--json", action="store_true", help="print summary.json itself")


def main(args: argparse.Namespace) -> int:
    """Print the verdict, two tables and the path of the report; or the JSON."""
    from tasks.report.summary import read, text  # gdpo and its torch: seconds

    summary = read(Path.cwd(), args.benchmark)
    bold = sys.stdout.isatty()
    print(json.dumps(summary, indent=2) if args.json else text(summary, Path.cwd(), bold=bold))
    return 0
