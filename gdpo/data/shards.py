"""LR-HR pairs in Parquet shards: written in one stream, read in any order, every row checked by its SHA-256.

    write_shards(folder, pairs, shard_mb)      aside, then renamed: the folder is whole or is not there
    shards = Shards(folder)
    for i in shards.order(seed, epoch, rank, world)[position:]:      # the same order everywhere; resume = a position
        pair = shards[i]

A row group holds up to 256 rows and is read at once; an order shuffles row groups, and then the rows of a few of them
together, so that a pass over it reads each row group about once.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.operations import resize_to, to_levels
from gdpo.images import decode_image, encode_png
from gdpo.training import numpy_generator, written_aside

SCHEMA_VERSION = "1"
ROW_GROUP = 256
WINDOW = 4  # row groups whose rows are shuffled together
CACHE_MB = 512
_IMAGES = ("hr", "lr")


class Box(NamedTuple):
    """A crop of a photograph, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Pair:
    """One training or evaluation sample. hr, lr: uint8 (H, W, 3) RGB; degradation: the drawn parameters."""

    id: str
    source: str
    box: Box
    hr: np.ndarray
    lr: np.ndarray
    degradation: dict[str, Any]
    detail_share: float
    tags: str | None = None


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("box", pa.list_(pa.int32(), 4), nullable=False),
        pa.field("hr", pa.binary(), nullable=False),
        pa.field("lr", pa.binary(), nullable=False),
        pa.field("degradation", pa.string(), nullable=False),
        pa.field("detail_share", pa.float64(), nullable=False),
        pa.field("tags", pa.string()),
        pa.field("sha256", pa.string(), nullable=False),
    ],
    metadata={"gdpo-shard": SCHEMA_VERSION},
)


def enlarge(lr: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (*size, 3): the model's input at full size. mode: area (blocks), bilinear or bicubic.

    Source: the released data set, which draws the mode per image; it is `Pair.degradation["enlarge"]`.
    """
    return to_levels(resize_to(lr.astype(np.float32) / 255, size, mode))


def _row(pair: Pair) -> dict[str, Any]:
    row = {
        "id": pair.id,
        "source": pair.source,
        "box": list(pair.box),
        "hr": encode_png(pair.hr),
        "lr": encode_png(pair.lr),
        "degradation": json.dumps(pair.degradation, sort_keys=True),
        "detail_share": float(pair.detail_share),
        "tags": pair.tags,
    }
    return {**row, "sha256": row_hash(row)}


def row_hash(row: dict[str, Any]) -> str:
    """SHA-256 over everything in a row but the hash itself."""
    plain = {name: row[name] for name in SCHEMA.names if name not in (*_IMAGES, "sha256")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in _IMAGES:
        digest.update(len(row[name]).to_bytes(8, "big") + row[name])
    return digest.hexdigest()


def write_shards(folder: Path, pairs: Iterable[Pair], shard_mb: float) -> int:
    """Write `pairs` as folder/00000.parquet, ... of at most about `shard_mb` MB each; returns how many there were.

    The stream is consumed once and never held. Whatever was in `folder` is replaced when all of it is written; on any
    error nothing changes. ValueError if there is no pair, or an id comes twice.
    """
    count = 0
    with written_aside(folder) as part:
        part.mkdir()
        for number, rows in enumerate(_split(_unique(pairs), int(shard_mb * 1e6))):
            count += _write_shard(part / f"{number:05d}.parquet", rows)
        if not count:
            raise ValueError(f"{folder}: there is no pair to write")
    return count


def _unique(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise ValueError(f"{pair.source}: two patches have the id {pair.id}")
        seen.add(pair.id)
        yield _row(pair)


def _split(rows: Iterator[dict[str, Any]], limit: int) -> Iterator[Iterator[dict[str, Any]]]:
    """Cut one stream into streams of at most `limit` bytes (or one row); each must be used up before the next."""
    held = next(rows, None)

    def shard() -> Iterator[dict[str, Any]]:
        nonlocal held
        size = 0
        while held is not None and (size == 0 or size + _bytes(held) <= limit):
            size += _bytes(held)
            yield held
            held = next(rows, None)

    while held is not None:
        yield shard()


def _bytes(row: dict[str, Any]) -> int:
    return len(row["hr"]) + len(row["lr"]) + len(row["degradation"]) + 256


def _write_shard(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    compression = {name: "none" if name in _IMAGES else "zstd" for name in SCHEMA.names}
    count, group = 0, []
    # Statistics of an image column would repeat two whole images per page and row group.
    settings = {"compression": compression, "use_dictionary": ["source", "tags"], "write_statistics": ["id", "source"]}
    with pq.ParquetWriter(path, SCHEMA, **settings) as writer:
        for row in rows:
            group.append(row)
            count += 1
            if len(group) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    return count


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what Arrow says about a broken or vanished file into one line that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged or missing shard ({reason}); run the degrade stage again") from error


class Shards:
    """Random access to the pairs of a folder of shards; `shards.ids[i]` belongs to `shards[i]`.

    Keeps the row groups used last (up to 512 MB) as they lie in the file. ValueError naming the shard (and row) if one
    is missing, of another schema, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []
        self._groups: list[tuple[Path, int, int]] = []  # path, row group, index of its first row
        self._group_of: list[int] = []
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        paths = sorted(folder.glob("*.parquet"))
        if not paths:
            raise ValueError(f"{folder}: no shards here; run the degrade stage")
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        with _damage_named(path), pq.ParquetFile(path) as file:
            if file.schema_arrow.names != SCHEMA.names or (file.schema_arrow.metadata or {}) != SCHEMA.metadata:
                raise ValueError(f"{path}: not a shard of schema version {SCHEMA_VERSION}; run the degrade stage again")
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
                self._group_of += [len(self._groups)] * len(ids)
                self._groups.append((path, group, len(self.ids)))
                self.ids += ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        number = self._group_of[index]
        path, group, first = self._groups[number]
        index %= len(self)
        table = self._table(number)
        (row,) = table.slice(index - first, 1).to_pylist()
        where = f"{path}: row {index - first} of row group {group}"
        if row_hash(row) != row["sha256"]:
            raise ValueError(f"{where} (id {row['id']}) is damaged, its SHA-256 differs; run the degrade stage again")
        return Pair(
            id=row["id"],
            source=row["source"],
            box=Box(*row["box"]),
            hr=decode_image(row["hr"]),
            lr=decode_image(row["lr"]),
            degradation=json.loads(row["degradation"]),
            detail_share=row["detail_share"],
            tags=row["tags"],
        )

    def _table(self, number: int) -> pa.Table:
        """One row group, from the cache or the file."""
        if number not in self._cache:
            path, group, _ = self._groups[number]
            with _damage_named(path), pq.ParquetFile(path) as file:
                self._cache[number] = file.read_row_group(group, use_threads=False)
            while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > CACHE_MB * 1e6:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def order(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[int]:
        """The indices of one epoch, shuffled: every index once over all ranks, the same for the same arguments.

        Rank r of `world` gets a contiguous part; parts differ by at most one in length.
        """
        rng = numpy_generator(seed, "order", epoch)
        first = [start for _, _, start in self._groups]
        ends = [*first[1:], len(self)]
        groups = rng.permutation(len(first))
        order: list[int] = []
        for start in range(0, len(groups), WINDOW):
            rows = np.concatenate([np.arange(first[g], ends[g]) for g in groups[start : start + WINDOW]])
            order += rng.permutation(rows).tolist()
        return order[len(order) * rank // world : len(order) * (rank + 1) // world]
