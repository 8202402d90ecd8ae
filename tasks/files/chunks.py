"""Rollouts in chunks, each with the pairs of one forward pass. Finished chunks survive a stop or a
kill.

    chunks = Chunks(folder, inputs, schema)        sets chunks of other inputs aside (gdpo.items)
    table, made = chunks.get(3, lambda: groups(model, pairs, config))
    chunks.join(path, metadata)                    all chunks in one file

The rows of a chunk are its groups. Its metadata lists the pairs without a group, {pair id: why}.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.items import ItemStore
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Group, Skipped, to_row
from gdpo.preference.rollout import rollout

# Minimum rows per Parquet row group. Training reads a whole row group for one group (3 ms at full
# size); the footer takes 500 bytes per row.
ROW_GROUP = 2

# Dictionaries and statistics do not help: latents never repeat and are never searched by value.
# Statistics also sit in page headers, which have no checksum.
PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}


def groups(model: NAOSD, pairs: list[Pair], config: Config) -> Iterator[Group | Skipped]:
    """The groups of a chunk, in its order; consecutive pairs of equal size share a forward pass."""
    for _, same in groupby(pairs, key=lambda pair: pair.hr.shape):
        yield from rollout(model, list(same), config)


def skipped(schema: pa.Schema) -> dict[str, str]:
    """{pair id: why it gave no group} of a chunk or a file of rollouts."""
    reasons: dict[str, str] = json.loads(schema.metadata[b"skipped"])
    return reasons


class Chunks:
    """Chunks of one rollout set below `folder`; inputs: text that identifies all they depend on."""

    def __init__(self, folder: Path, inputs: str, schema: pa.Schema) -> None:
        self._schema = schema
        self._files: dict[int, Path] = {}
        self._store = ItemStore(folder, inputs, "*.parquet")
        self._store.open()

    def get(
        self, number: int, make: Callable[[], Iterable[Group | Skipped]]
    ) -> tuple[pa.Table, bool]:
        """(chunk `number`, whether this call made it): the stored chunk, or a new one if missing or
        damaged.
        """
        path = self._files[number] = self._store.path(f"{number:08d}.parquet")
        try:
            # Damage counts as absence: making a chunk again costs seconds, and the next run would
            # stop at the same file.
            return pq.read_table(path, page_checksum_verification=True), False
        except (OSError, pa.ArrowException):
            return self._keep(path, make()), True

    def _keep(self, path: Path, outcomes: Iterable[Group | Skipped]) -> pa.Table:
        rows, without = [], {}
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                without[outcome.id] = outcome.reason
            else:
                rows.append(to_row(outcome))
        metadata = {**(self._schema.metadata or {}), "skipped": json.dumps(without)}
        table = pa.Table.from_pylist(rows, schema=self._schema.with_metadata(metadata))
        with self._store.write(path.name) as aside:
            pq.write_table(table, aside, **PARQUET_OPTIONS)
        return table

    def join(self, path: Path, metadata: dict[str, str]) -> None:
        """Write all requested chunks to one file, in the order of the requests, with `metadata`
        added to the schema's.
        """
        schema = self._schema.with_metadata({**(self._schema.metadata or {}), **metadata})
        with pq.ParquetWriter(path, schema, **PARQUET_OPTIONS) as writer:
            waiting: list[pa.Table] = []  # a few chunks in memory at a time
            for index, file in enumerate(self._files.values()):
                waiting.append(pq.read_table(file).replace_schema_metadata(schema.metadata))
                if index == len(self._files) - 1 or sum(map(len, waiting)) >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []

    def remove(self) -> None:
        """Delete all chunks."""
        self._store.remove()
