"""Chains of thought between the stages of RealSR-R1: data/vlcot/<part>/00000.parquet.

    id                            of the pair, in data/shards/train
    prompt, answer                tokens (gdpo/vlcot/examples.py)
    seen                          the enlarged LR image, lossless WebP
    terms, tags                   what the rewards compare with
    rough, middle, final          the captions, for people

The metadata says which tokenizer and stages the tokens belong to. Sorted by id over all parts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.shards import Shards
from gdpo.errors import one_line
from gdpo.images import decode_image, encode_lossless
from gdpo.vlcot.describe import Understanding
from gdpo.vlcot.examples import Example
from gdpo.vlcot.rewards import Truth
from tasks import paths

FOLDER = paths.CHAINS
MADE_FROM = b"gdpo-vlcot"
_TOKENS, _TEXTS = pa.list_(pa.int32()), pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("seen", pa.binary(), nullable=False),
        *(pa.field(name, _TOKENS, nullable=False) for name in ("prompt", "answer")),
        *(pa.field(name, _TEXTS, nullable=False) for name in ("terms", "tags")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("rough", "middle", "final")),
    ]
)
_NO_PICTURE = np.zeros((0, 0, 3), np.uint8)


def schema(made_from: str) -> pa.Schema:
    """The schema of a part. made_from: text that identifies the tokenizer and the stages."""
    return SCHEMA.with_metadata({MADE_FROM: made_from.encode()})


def to_row(one: Example, understanding: Understanding) -> dict[str, Any]:
    """The row of a chain."""
    return {
        "id": one.id,
        "seen": encode_lossless(one.seen),
        "prompt": one.prompt,
        "answer": one.answer,
        "terms": list(one.truth.terms),
        "tags": list(one.truth.tags),
        "rough": understanding.rough,
        "middle": understanding.middle,
        "final": understanding.final,
    }


class Chains(Sequence[Example]):
    """The chains of all parts below `root`.

    made_from: as in `schema`. pictures: the shards that have the HR images; None: chains come
    without a picture. Errors: ValueError naming the file that is missing, damaged, or made with
    another tokenizer or other stages; one from reading a pair names the shard.
    """

    def __init__(self, root: Path, made_from: str, pictures: Shards | None = None) -> None:
        folder = root / FOLDER
        paths = sorted(folder.glob("*/*.parquet"))
        if not paths:
            raise ValueError(f"{folder}: no chains here; run the stage vlcot-data")
        tables = [_table(path, made_from) for path in paths]
        # By id, so that the order of training does not depend on the number of parts.
        self._table = pa.concat_tables(tables).sort_by("id").combine_chunks()
        self.ids: list[str] = self._table["id"].to_pylist()
        self._pictures = pictures
        self._place = {} if pictures is None else {id_: i for i, id_ in enumerate(pictures.ids)}
        lost = [id_ for id_ in self.ids if id_ not in self._place] if pictures is not None else []
        if lost:
            raise ValueError(
                f"{folder}: the pair {lost[0]} is not in data/shards/train; run vlcot-data again"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One chain, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        # Decoded on access: the pictures of all chains would fill the memory.
        (row,) = self._table.slice(range(len(self))[index], 1).to_pylist()
        hr = _NO_PICTURE
        if self._pictures is not None:
            hr = self._pictures[self._place[row["id"]]].hr
        return Example(
            id=row["id"],
            prompt=np.array(row["prompt"], np.int32),
            answer=np.array(row["answer"], np.int32),
            truth=Truth(tuple(row["terms"]), tuple(row["tags"])),
            seen=decode_image(row["seen"]),
            hr=hr,
        )

    def longest(self) -> int:
        """The most tokens of a prompt and its answer."""
        return max(len(one.prompt) + len(one.answer) for one in self)


def _table(path: Path, made_from: str) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: damaged ({one_line(error, first=True)}); run the stage vlcot-data again"
        ) from error
    stored = (table.schema.metadata or {}).get(MADE_FROM, b"").decode()
    if not table.schema.equals(SCHEMA) or stored != made_from:
        raise ValueError(
            f"{path}: made with another tokenizer or other stages; run the stage vlcot-data again, "
            f"or `dvc checkout {paths.TOKENIZER}` if codebook.safetensors or its vae are damaged"
        )
    return table
