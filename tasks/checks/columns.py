"""Columns of the tables that are checked: reading, computing and expectations that several share.

Great Expectations judges one column at a time by its own expectations. A condition that it has none
for is computed here as a further column, which is then expected to be true or within a range.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gdpo.errors import one_line
from tasks.checks.expectations import Expectation, expect


def reduce_rows(operation: np.ufunc, start: float, column: pa.ChunkedArray) -> pa.Array:
    """Reduce each row of a column of (nested) lists to one number; NaN if the row contains one.
    Empty rows give `start`.
    """
    values = column.combine_chunks()
    rows = np.arange(len(values))
    # Flatten one level of lists at a time; `rows` maps each value to its row.
    while pa.types.is_list(values.type):
        rows = rows[pc.list_parent_indices(values).to_numpy()]
        values = pc.list_flatten(values)
    reduced = np.full(len(column), start)
    with np.errstate(invalid="ignore"):
        operation.at(reduced, rows, values.to_numpy(zero_copy_only=False))
    return pa.array(reduced)


def identity(column: str) -> list[Expectation]:
    """The column has no nulls and no duplicates."""
    return [expect("values_to_not_be_null", column), expect("values_to_be_unique", column)]


def complete(column: str, least: float, most: float) -> list[Expectation]:
    """No nulls, and every value between `least` and `most`."""
    between = expect("values_to_be_between", column, min_value=least, max_value=most)
    return [expect("values_to_not_be_null", column), between]


def in_range(name: str, least: float, most: float) -> list[Expectation]:
    """The columns `<name>_least` and `<name>_most` are complete and between `least` and `most`."""
    return [
        one for column in (f"{name}_least", f"{name}_most") for one in complete(column, least, most)
    ]


def is_true(column: str, says: str) -> list[Expectation]:
    """Every value of the column is True."""
    return [expect("values_to_be_in_set", column, says, value_set=[True])]


def with_columns(table: pa.Table, **columns: pa.Array) -> pa.Table:
    """The table with further columns."""
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def read_columns(
    folder: Path, columns: list[str], pattern: str = "*.parquet", but: str = ""
) -> pa.Table:
    """`columns` of all files in `folder` that match `pattern`, except the file named `but`."""
    paths = sorted(path for path in folder.glob(pattern) if path.name != but)
    if not paths:
        raise ValueError(
            f"{folder / pattern}: no such file; run the stage that writes it, or `dvc repro`"
        )
    return pa.concat_tables(_read_file(path, columns) for path in paths)


def _read_file(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: damaged ({one_line(error)}); run the stage that writes it again"
        ) from error
