"""The photographs of a list of sources, local or on S3, and the lists of them that `index` writes
for `degrade`.

    listed(sources, split, root)    every photograph, sorted by name; reads only names
    write_list, read_list           data/photos/<part>.parquet: name, source, file, resize, content
                                    hash, size

A photograph of the first source is named after its file. In every further source the name also gets
the last part of the source's path as a prefix, so appending a source changes no existing name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Photographs
from gdpo.data.scan import Finding, content_hash
from gdpo.data.sources import Photo, Split, named, photographs, place
from gdpo.files import written_aside

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("resize", pa.int32()),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ],
    metadata={"gdpo-photos": "1"},
)


def listed(sources: Sequence[Photographs], split: Split, root: Path) -> list[Photo]:
    """Every photograph of `sources` (those of `degrade.<split>`), sorted by name.

    Errors: ValueError naming a missing or empty source, or if two sources would give their
    photographs the same names.
    """
    prefixes = ["", *(f"{source.path.rstrip('/').rpartition('/')[2]}__" for source in sources[1:])]
    if len(set(prefixes)) < len(prefixes):
        raise ValueError(
            f"degrade.{split}: the paths of all sources but the first must end in different names"
        )
    found: list[Photo] = []
    for source, prefix in zip(sources, prefixes, strict=True):
        photos = (
            _remote(source.path, split)
            if source.path.startswith("s3://")
            else photographs(source.path, split, root)
        )
        found += [
            replace(photo, name=prefix + photo.name, resize=source.resize)
            for photo in photos[: source.first]
        ]
    return sorted(found, key=lambda photo: (photo.name, photo.file))


def _remote(url: str, split: Split) -> list[Photo]:
    """The photographs below s3://bucket/prefix."""
    from tasks.store.s3 import Store

    store = Store.at(url)
    files = named(store.keys(), f"{url} (degrade.{split})")
    return [
        Photo(name, store.url(file), url, file, read=partial(store.read, file))
        for name, file in files
    ]


@dataclass(frozen=True)
class Entry:
    """One row of a list: the photograph, and the hash of its pixels at the time of indexing."""

    photo: Photo
    sha256: str

    def pixels(self) -> np.ndarray:
        """The photograph as uint8 (H, W, 3).

        Errors: ValueError naming the photograph if it is unreadable or has changed since the
        indexing.
        """
        pixels = self.photo.load()
        if content_hash(pixels) != self.sha256:
            raise ValueError(
                f"{self.photo.path}: has changed since it was indexed; run the index stage again"
            )
        return pixels


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """Write the list of one part's photographs atomically."""
    rows = [
        {
            "name": found.photo.name,
            "source": found.photo.source,
            "file": found.photo.file,
            "resize": found.photo.resize,
            "sha256": found.sha256,
            "height": found.height,
            "width": found.width,
        }
        for found in findings
    ]
    with written_aside(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)


def read_list(path: Path, root: Path) -> list[Entry]:
    """The photographs of one part; ValueError naming the list if it is missing or damaged."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: damaged or missing list of photographs ({reason}); run the index stage"
        ) from error
    return [Entry(_opened(row, root), row["sha256"]) for row in table.to_pylist()]


def _opened(row: dict[str, Any], root: Path) -> Photo:
    """The photograph of one row of a list."""
    source, file = row["source"], row["file"]
    if not source.startswith("s3://"):
        return Photo(row["name"], place(source, file, root), source, file, row["resize"])
    from tasks.store.s3 import Store

    store = Store.at(source)
    return Photo(
        row["name"], store.url(file), source, file, row["resize"], partial(store.read, file)
    )
