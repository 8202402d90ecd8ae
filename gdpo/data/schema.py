"""The schema of a shard: one LR-HR pair per row, with its origin, degradation and SHA-256.

    id, source, box            the patch, its photograph, and its crop there
    hr, lr                     lossless image bytes
    hr_size, lr_size           the number of these bytes
    degradation                the drawn parameters, a struct: `low_resolution(hr, degradation)`
                               reproduces lr
    detail_share, tags         for later stages; tags may be null
    sha256                     over all other columns of the row

In a complete draw, null stands for a step that was not drawn (second, blur, sinc). Parameters that
a kind of kernel does not have are null in the file and absent in `Pair.degradation`, as in the
result of `gdpo.data.degrade.draw`.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gdpo.images import decode_image

SCHEMA_VERSION = "2"
VERSION_KEY, PARTS_KEY = b"gdpo-shard", b"gdpo-parts"
IMAGES = ("hr", "lr")
Row = dict[str, Any]

_RESIZE = pa.struct([("scale", pa.float64()), ("mode", pa.string())])
_KERNEL = pa.struct(
    [
        ("kind", pa.string()),
        ("size", pa.int32()),
        ("sigma", pa.list_(pa.float64())),
        ("theta", pa.float64()),
        ("beta", pa.float64()),
        ("cutoff", pa.float64()),
    ]
)
_NOISE = pa.struct(
    [("kind", pa.string()), ("strength", pa.float64()), ("gray", pa.bool_()), ("seed", pa.int64())]
)
_STAGE = [("blur", _KERNEL), ("resize", _RESIZE), ("noise", _NOISE)]
DEGRADATION = pa.struct(
    [
        ("scale", pa.int32()),
        ("first", pa.struct([*_STAGE, ("jpeg", pa.int32())])),
        ("second", pa.struct(_STAGE)),
        (
            "final",
            pa.struct(
                [
                    ("jpeg_last", pa.bool_()),
                    ("mode", pa.string()),
                    ("sinc", _KERNEL),
                    ("jpeg", pa.int32()),
                ]
            ),
        ),
        ("enlarge", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("box", pa.list_(pa.int32(), 4), nullable=False),
        pa.field("hr", pa.binary(), nullable=False),
        pa.field("lr", pa.binary(), nullable=False),
        pa.field("hr_size", pa.int32(), nullable=False),
        pa.field("lr_size", pa.int32(), nullable=False),
        pa.field("degradation", DEGRADATION, nullable=False),
        pa.field("detail_share", pa.float64(), nullable=False),
        pa.field("tags", pa.string()),
        pa.field("sha256", pa.string(), nullable=False),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)
PLAIN = [name for name in SCHEMA.names if name not in IMAGES]


class Box(NamedTuple):
    """A crop of a photograph, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Pair:
    """One training or evaluation sample.

    hr, lr: uint8 (H, W, 3) RGB; degradation: the drawn parameters.
    """

    id: str
    source: str
    box: Box
    hr: np.ndarray
    lr: np.ndarray
    degradation: dict[str, Any]
    detail_share: float
    tags: str | None = None


def to_pair(row: Row) -> Pair:
    """The pair of a row whose `degradation` went through `drawn`."""
    return Pair(
        id=row["id"],
        source=row["source"],
        box=Box(*row["box"]),
        hr=decode_image(row["hr"]),
        lr=decode_image(row["lr"]),
        degradation=row["degradation"],
        detail_share=row["detail_share"],
        tags=row["tags"],
    )


def drawn(struct: dict[str, Any]) -> dict[str, Any]:
    """`Pair.degradation` from the struct of the file; changes `struct` in place."""
    if struct["first"] is None:  # not a complete draw
        return {name: value for name, value in struct.items() if value is not None}
    for place, name in (
        (struct["first"], "blur"),
        (struct["second"], "blur"),
        (struct["final"], "sinc"),
    ):
        if place and place[name]:
            place[name] = {key: value for key, value in place[name].items() if value is not None}
    return struct


def row_hash(row: Row) -> str:
    """SHA-256 over all columns of a row except the hash itself."""
    plain = {name: row[name] for name in PLAIN if name != "sha256"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in IMAGES:
        # The length first, so that bytes cannot move from one image to the other with an equal
        # hash.
        digest.update(len(row[name]).to_bytes(8, "big"))
        digest.update(row[name])
    return digest.hexdigest()
