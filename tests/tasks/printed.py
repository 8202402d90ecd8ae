"""The values of the paper's tables (arXiv 2603.16769v1), copied from its text apart from the code:
paper_tables.csv, and paper_table_4.csv for the cost of the methods.
"""

import csv
from pathlib import Path

TABLES = Path(__file__).with_name("paper_tables.csv")


def printed(table: str) -> dict[tuple[str, str], dict[str, float]]:
    """{(dataset, row): {column: value}} of a table of results."""
    return {
        (row.pop("dataset"), row.pop("row")): {
            column: float(value) for column, value in row.items() if value
        }
        for row in csv.DictReader(TABLES.read_text().splitlines())
        if row.pop("table") == table
    }
