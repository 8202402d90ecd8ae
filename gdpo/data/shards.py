"""LR-HR pairs in Parquet shards, read in any order; every row is checked by its SHA-256.

    shards = Shards(folder)         # a folder of shards, or of parts with shards
    for i in shards.order(seed, epoch):    # the same order on every machine
        shards[i], shards.ids[i]

Pairs are numbered by photograph and position in the photograph, not by part and file. An order is a
shuffle of all these numbers, so it depends on the pairs and not on the number of parts. A pair is
read without its neighbours (gdpo/data/rows.py): on a disk with fast seeks, a full shuffle costs the
same as sequential reading.
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa

from gdpo.data.operations import resize_to, to_levels
from gdpo.data.rows import AGAIN, RowGroup, opened
from gdpo.data.schema import PARTS_KEY, Box, Pair, to_pair
from gdpo.data.writer import write_shards
from gdpo.seeds import numpy_generator
from gdpo.walk import is_hidden, walk

__all__ = ["Box", "Pair", "Shards", "enlarge", "shard_files", "write_shards"]

CACHE_MB = 512  # cache of the small columns, enough for a million pairs


def enlarge(lr: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Enlarge an LR image to the model's input size: uint8 (h, w, 3) -> uint8 (*size, 3).

    mode: "area" (blocks), "bilinear" or "bicubic". Source: the released data set, which draws the
    mode per image; here it is `Pair.degradation["enlarge"]`.
    """
    return to_levels(255 * resize_to(lr.astype(np.float32) / 255, size, mode))


def shard_files(folder: Path) -> list[Path]:
    """The shards below `folder`, sorted.

    Skips folders with a leading dot, which hold the leftovers of killed writers.
    """
    if not folder.is_dir():
        return []
    tree = walk(folder)
    files = [path for path in [*tree.files, *tree.broken] if path.suffix == ".parquet"]
    return sorted(path for path in files if not is_hidden(path, folder))


class Shards:
    """Random access to the pairs of a folder of shards; `shards.ids[i]` belongs to `shards[i]`.

    Caches the small columns of the row groups used last. ValueError naming the shard (and row) if
    it is missing, of another schema, or damaged. ValueError naming the part if it is missing, or
    left over from a run with other parts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._groups: list[tuple[Path, int]] = []
        self._cache: OrderedDict[int, RowGroup] = OrderedDict()
        self._cached = 0
        paths = shard_files(folder)
        if not paths:
            raise ValueError(f"{folder}: no shards here; run the degrade stage")
        table = pa.concat_tables([self._keys(path) for path in paths])
        # Before the test for pairs: an empty part is allowed, a missing one is not, and its message
        # says which.
        self._check_parts(paths)
        if not table.num_rows:
            raise ValueError(
                f"{folder}: the shards have no pairs; run the index and degrade stages again"
            )
        # Number the pairs by photograph and position, independent of parts and files.
        table = table.sort_by([(name, "ascending") for name in ("source", "top", "left", "id")])
        self.ids: list[str] = table["id"].to_pylist()
        self._group_of = table["group"].to_numpy()
        sources = table["source"].combine_chunks().dictionary_encode()
        self._sources: list[str] = sources.dictionary.to_pylist()
        self._source_of = sources.indices.to_numpy()
        self._row_of = table["row"].to_numpy()
        if len(set(self.ids)) < len(self.ids):
            twice = next(a for a, b in zip(self.ids, self.ids[1:], strict=False) if a == b)
            raise ValueError(
                f"{folder}: the pair {twice} occurs twice; delete the folder and {AGAIN}"
            )

    def _keys(self, path: Path) -> pa.Table:
        """Sort keys and positions of the pairs of one shard: source, top, left, id, group, row."""
        with opened(path) as file:
            tables = []
            for number in range(file.num_row_groups):
                read = file.read_row_group(
                    number, columns=["id", "source", "box"], use_threads=False
                )
                read.validate(full=True)
                corners = read["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
                columns = {
                    "source": read["source"],
                    "top": corners[:, 0],
                    "left": corners[:, 1],
                    "id": read["id"],
                }
                # Positions in Arrow columns of int32: as Python tuples, those of 1.5 million pairs
                # would be the largest part of memory.
                group = np.full(read.num_rows, len(self._groups), np.int32)
                tables.append(
                    pa.table(
                        {**columns, "group": group, "row": np.arange(read.num_rows, dtype=np.int32)}
                    )
                )
                self._groups.append((path, number))
        return pa.concat_tables(tables) if tables else _NO_KEYS

    def _check_parts(self, paths: list[Path]) -> None:
        """ValueError unless the parts present are those that every shard in a part names."""
        for path in paths:
            if path.parent == self.folder:
                continue
            with opened(path) as file:
                wanted = json.loads((file.schema_arrow.metadata or {}).get(PARTS_KEY, b"[]"))
            present = {other.parent.name for other in paths}
            if wanted and present != set(wanted):
                missing, odd = sorted(set(wanted) - present), sorted(present - set(wanted))
                what = (
                    f"part {missing[0]} is missing, run it"
                    if missing
                    else f"part {odd[0]} is left over, delete it"
                )
                raise ValueError(
                    f"{self.folder}: {what}; {path} belongs to the parts {', '.join(wanted)}"
                )

    def photograph_of(self, index: int) -> str:
        """The name of the photograph that a pair was cut from."""
        return self._sources[self._source_of[index]]

    def photographs(self) -> dict[str, int]:
        """The number of pairs of each photograph."""
        counts = np.bincount(self._source_of, minlength=len(self._sources)).tolist()
        return dict(zip(self._sources, counts, strict=True))

    def fingerprint(self) -> str:
        """SHA-256 over the stored hashes of all rows, file by file, without reading an image.

        A row that no longer matches its stored hash is detected only when it is read.
        """
        digest = hashlib.sha256()
        # By the stored hashes and not by the bytes: half a terabyte would take hours, and a row
        # that no longer matches its hash is refused on reading.
        for path in dict.fromkeys(path for path, _ in self._groups):
            with opened(path) as file:
                for batch in file.iter_batches(columns=["sha256"], use_threads=False):
                    digest.update("".join(batch["sha256"].to_pylist()).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        return to_pair(self._group(int(self._group_of[index])).row(int(self._row_of[index])))

    def _group(self, number: int) -> RowGroup:
        """One row group, from the cache or the file."""
        if number not in self._cache:
            self._cache[number] = RowGroup(*self._groups[number])
            self._cached += self._cache[number].table.nbytes
            # At least one row group stays, however large it is; without it every read would load
            # the group again.
            while len(self._cache) > 1 and self._cached > CACHE_MB * 1e6:
                self._cached -= self._cache.popitem(last=False)[1].table.nbytes
        self._cache.move_to_end(number)
        return self._cache[number]

    def order(self, seed: int, epoch: int) -> list[int]:
        """The shuffled indices of one epoch; deterministic in the arguments."""
        order: list[int] = numpy_generator(seed, "order", epoch).permutation(len(self)).tolist()
        return order


_NO_KEYS = pa.table(
    {
        "source": pa.array([], pa.string()),
        "top": pa.array([], pa.int32()),
        "left": pa.array([], pa.int32()),
        "id": pa.array([], pa.string()),
        "group": pa.array([], pa.int32()),
        "row": pa.array([], pa.int32()),
    }
)
