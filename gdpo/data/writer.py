"""Pairs -> Parquet shards, as a stream: memory does not grow with the number of pairs.

    write_shards(folder, pairs, shard_mb)      written aside, then renamed: the folder is complete
                                               or absent

Image columns are not compressed again and have one page per row group, so a reader computes the
offset of every image from the sizes in the rows (gdpo/data/rows.py). Any Parquet reader can read
the files.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.schema import IMAGES, PARTS_KEY, SCHEMA, Pair, Row, drawn, row_hash
from gdpo.files import written_aside
from gdpo.images import encode_lossless

ROW_GROUP = 256  # rows at most
GROUP_MB = 128  # MB at most; a writer's memory is about three times this
SETTINGS = {
    "compression": {**dict.fromkeys(SCHEMA.names, "zstd"), **dict.fromkeys(IMAGES, "none")},
    "use_dictionary": ["source", "tags"],
    # Statistics of an image column would repeat two whole images per page and row group.
    "write_statistics": ["id", "source"],
    "data_page_size": 1 << 30,  # one page per row group, as gdpo/data/rows.py requires
}


def write_shards(
    folder: Path, pairs: Iterable[Pair], shard_mb: float, parts: Sequence[str] | None = None
) -> int:
    """Write `pairs` as folder/00000.parquet, ... of about `shard_mb` MB at most each.

    Returns the number of pairs. Replaces `folder` once all shards are written; on an error `folder`
    is unchanged.
    parts: the names of all sibling folders that make up the set, this one included. A reader of the
    set requires all of them, and a part may be empty.
    ValueError if an id is repeated, or if there is no pair and `parts` is None.
    """
    note = {} if parts is None else {PARTS_KEY: json.dumps(list(parts)).encode()}
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **note})
    count = 0
    with written_aside(folder) as aside:
        aside.mkdir()
        for number, rows in enumerate(_split(_unique(pairs), int(shard_mb * 1e6))):
            count += _write_shard(aside / f"{number:05d}.parquet", rows, schema)
        if not count and parts is None:
            raise ValueError(f"{folder}: there is no pair to write")
        # A part without pairs has an empty shard, so that "no pairs" and "not run yet" can be told
        # apart.
        if not count:
            _write_shard(aside / "00000.parquet", iter(()), schema)
    return count


def _unique(pairs: Iterable[Pair]) -> Iterator[Row]:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise ValueError(f"{pair.source}: two patches have the id {pair.id}")
        seen.add(pair.id)
        hr, lr = encode_lossless(pair.hr), encode_lossless(pair.lr)
        yield {
            "id": pair.id,
            "source": pair.source,
            "box": list(pair.box),
            "hr": hr,
            "lr": lr,
            "hr_size": len(hr),
            "lr_size": len(lr),
            "degradation": pair.degradation,
            "detail_share": float(pair.detail_share),
            "tags": pair.tags,
        }


def _split(rows: Iterator[Row], limit: int) -> Iterator[Iterator[Row]]:
    """Split one stream into streams of at most `limit` bytes (or one row).

    The caller must exhaust each stream before it takes the next.
    """
    held = next(rows, None)

    # One row ahead: a shard is closed before the row that would not fit, and that row is not lost.
    def shard() -> Iterator[Row]:
        nonlocal held
        size = 0
        while held is not None and (size == 0 or size + _bytes(held) <= limit):
            size += _bytes(held)
            yield held
            held = next(rows, None)

    while held is not None:
        yield shard()


def _bytes(row: Row) -> int:
    # 512: the small columns of a row, roughly. They matter for tiny patches only.
    return int(row["hr_size"]) + int(row["lr_size"]) + 512


def _write_shard(path: Path, rows: Iterator[Row], schema: pa.Schema) -> int:
    count, size = 0, 0
    group: list[Row] = []
    with pq.ParquetWriter(path, schema, **SETTINGS) as writer:
        for row in rows:
            group.append(row)
            count += 1
            size += _bytes(row)
            if len(group) == ROW_GROUP or size >= GROUP_MB * 1e6:
                writer.write_table(_table(group, schema))
                group, size = [], 0
        if group:
            writer.write_table(_table(group, schema))
    return count


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """The rows as a table, each with the SHA-256 of its values as a reader will get them.

    ValueError if the schema does not hold a degradation exactly.
    """
    field = schema.field("degradation")
    for row, struct in zip(
        rows, pa.array([row["degradation"] for row in rows], field.type).to_pylist(), strict=True
    ):
        # Through Arrow's types and back before hashing: an integer that the schema stores as float
        # would otherwise hash differently for the reader.
        stored = drawn(struct)
        if stored != row["degradation"]:
            raise ValueError(
                f"pair {row['id']}: the schema in gdpo/data/schema.py does not hold "
                f"{row['degradation']}"
            )
        row["degradation"] = stored
        row["sha256"] = row_hash(row)
    return pa.Table.from_pylist(rows, schema=schema)
