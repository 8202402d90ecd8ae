"""The photographs of a list of sources, wherever they lie, and the lists of them that `index`
leaves for `degrade`.

    listed(sources, split, root)    every photograph, sorted by name; nothing is read but names
    write_list, read_list           data/photos/<part>.parquet: name, source, file, resize, content
                                    hash, size

Names of the first source are those of its files; of a further one they start with the last part of
its path, so that another source at the end changes none of them.
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

    ValueError naming the source if it is missing or empty, or if two would give their photographs
    the same names.
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
    """One row of a list: the photograph, and the hash its pixels had when it was indexed."""

    photo: Photo
    sha256: str

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3). ValueError naming the photograph if it cannot be read any more, or has
        changed.
        """
        pixels = self.photo.load()
        if content_hash(pixels) != self.sha256:
            raise ValueError(
                f"{self.photo.path}: has changed since it was indexed; run the index stage again"
            )
        return pixels


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """Write the photographs of one part, aside and then renamed."""
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
    """The photographs of one part. ValueError naming the list if it is missing or damaged."""
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
