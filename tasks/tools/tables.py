"""Tool `tables`: prints or writes the tables of tasks/report/paper_tables.py."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.report.tables import Table

EXAMPLE = "gdpo-sr tables --out reports/tables"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --out (output folder) and --json."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write each as Markdown, CSV and HTML instead"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the tables, or write them. Errors: ValueError naming a damaged file."""
    from tasks.report.paper_tables import paper_tables, write  # gdpo and its torch: seconds
    from tasks.report.tables import to_text

    all_tables = paper_tables(Path.cwd())
    if args.out:
        write(all_tables, args.out)
        sys.stdout.write(f"{args.out}: {len(all_tables)} tables\n")
    elif args.json:
        sys.stdout.write(
            json.dumps([asdict(table) for table in all_tables], indent=1, ensure_ascii=False) + "\n"
        )
    else:
        sys.stdout.write(
            "\n".join(
                f"{table.caption}\n\n{to_text(table)}\n" + _notes(table) for table in all_tables
            )
        )
    return 0


def _notes(table: "Table") -> str:
    return "".join(f"  {note}\n" for note in table.notes)
