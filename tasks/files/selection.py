"""The pairs that `select` chose, from data/selected/manifest.parquet; its only reader.

The manifest has id, score and detail share in order of rank. scores.parquet beside it has every
patch, with its reason (tasks/stages/select.py).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.shards import Pair, Shards
from gdpo.errors import one_line
from tasks import paths

MANIFEST, SCORES = "manifest.parquet", "scores.parquet"


class Selected(Sequence[Pair]):
    """The pairs of data/selected/manifest.parquet, each read from data/shards/train on access.

    by_id: in the order of the groups in `Rollouts`; otherwise by rank.

    Errors: ValueError naming the missing or damaged manifest or shard, or a patch that is in no
    shard.
    """

    def __init__(self, root: Path, *, by_id: bool = False) -> None:
        path = root / paths.SELECTED / MANIFEST
        if not path.is_file():
            raise ValueError(f"{path}: no such file; run the select stage")
        self._shards = Shards(root / paths.TRAIN)
        # The manifest has ids and no positions: shards that were written again by another number of
        # parts keep their ids.
        self._index = {id_: i for i, id_ in enumerate(self._shards.ids)}
        try:
            self.ids: list[str] = pq.read_table(path, columns=["id"]).column("id").to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: damaged manifest ({one_line(error)}); run the select stage again"
            ) from error
        unknown = [id_ for id_ in self.ids if id_ not in self._index]
        if unknown:
            raise ValueError(
                f"{path}: patch {unknown[0]} is not in data/shards/train; run the select stage "
                "again"
            )
        if by_id:
            self.ids.sort()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """The pair at an index, or the pairs of a slice."""
        if isinstance(index, slice):
            return [self._shards[self._index[id_]] for id_ in self.ids[index]]
        return self._shards[self._index[self.ids[index]]]

    def fingerprint(self) -> str:
        """SHA-256 of the ids in order, and of the contents of the shards."""
        return hashlib.sha256(
            json.dumps([self.ids, self._shards.fingerprint()]).encode()
        ).hexdigest()
