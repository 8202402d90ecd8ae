"""Random access to the rows of a shard.

The small columns of a row group are read together; each image is read from its own file offset.

    chunk of an image column = [page header][length][image][length][image] ...
    PLAIN encoding, not compressed, one page

The length of the header is the chunk size minus the image sizes in the rows; the offset of each
image follows. A full shuffle is feasible because one pair costs a read of 400 kB, not of the 100 MB
of its row group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.schema import (
    IMAGES,
    PLAIN,
    SCHEMA,
    SCHEMA_VERSION,
    VERSION_KEY,
    Row,
    drawn,
    row_hash,
)
from gdpo.errors import one_line

LENGTH = 4  # bytes before each value of a PLAIN page
MAX_HEADER = 256
AGAIN = "run the degrade stage again"


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn Arrow's errors about a damaged or missing file into a one-line ValueError naming it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: damaged or missing shard ({one_line(error)}); {AGAIN}"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a shard. ValueError naming the file if its schema or schema version differs."""
    with damage_named(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(VERSION_KEY, b"").decode()
        if version != SCHEMA_VERSION or not schema.equals(SCHEMA):
            raise ValueError(f"{path}: not a shard of schema version {SCHEMA_VERSION}; {AGAIN}")
        yield file


class RowGroup:
    """One row group of a shard: its small columns in memory, its images in the file."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        with opened(path) as file:
            self.table = file.read_row_group(number, columns=PLAIN, use_threads=False)
            chunks = file.metadata.row_group(number)
            self._starts = {
                name: self._places(name, chunks.column(SCHEMA.names.index(name))) for name in IMAGES
            }

    def _places(self, name: str, chunk: pq.ColumnChunkMetaData) -> np.ndarray:
        """The file offset of each image of a column."""
        lengths = self.table[f"{name}_size"].to_numpy().astype(np.int64) + LENGTH
        # Parquet states the size of the page with its header; the header's own length is written
        # nowhere and varies with the numbers in it.
        header = chunk.total_compressed_size - int(lengths.sum())
        plain = (
            chunk.compression == "UNCOMPRESSED"
            and chunk.path_in_schema == name
            and not chunk.has_dictionary_page
        )
        if not plain or not 0 < header <= MAX_HEADER:
            raise ValueError(
                f"{self.path}: column {name} was not written by gdpo/data/writer.py; {AGAIN}"
            )
        starts: np.ndarray = chunk.data_page_offset + header + LENGTH + np.cumsum(lengths) - lengths
        return starts

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, index: int) -> Row:
        """One row, with `degradation` as drawn.

        ValueError naming shard and row if the row cannot be read or its SHA-256 differs.
        """
        where = f"{self.path}: row {index} of row group {self.number}"
        try:
            (row,) = self.table.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is damaged ({error}); {AGAIN}") from error
        row["degradation"] = drawn(row["degradation"])
        # Unbuffered: a buffer would read on for kilobytes after each image.
        with damage_named(self.path), self.path.open("rb", buffering=0) as file:
            for name in IMAGES:
                file.seek(int(self._starts[name][index]))
                row[name] = file.read(row[f"{name}_size"])
        # The check of every read, not of opening alone: a bit that flips on the disk would
        # otherwise train silently.
        if row_hash(row) != row["sha256"]:
            raise ValueError(f"{where} (id {row['id']}) is damaged, its SHA-256 differs; {AGAIN}")
        return row


def damages(path: Path) -> tuple[int, list[str]]:
    """Read every row of one shard: the number of rows, and one line per damaged row.

    A row group or file that cannot be read is one line.
    """
    rows, problems = 0, list[str]()
    try:
        with opened(path) as file:
            numbers = range(file.num_row_groups)
    except ValueError as error:
        return 0, [str(error)]
    for number in numbers:
        try:
            group = RowGroup(path, number)
        except ValueError as error:
            problems.append(str(error))
            continue
        rows += len(group)
        for index in range(len(group)):
            try:
                group.row(index)
            except ValueError as error:
                problems.append(str(error))
    return rows, problems
