"""The photographs of a list of sources, local or on S3, and the lists of them that `index` writes
for `degrade`.

    listed(sources, split, root)    every photograph, sorted by name; reads only names
    write_list, read_list           data/photos/<part>.parquet: name, source, file, resize, content
                                    hash, size

A source of ready-made pairs (`lr`) adds the LR image and its hash. `degrade.pairs` adds a limit to
the lists' metadata: the windows whose ids are not above it are cut.

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
from gdpo.errors import one_line
from gdpo.files import written_aside
from gdpo.images import read_photo

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
# Columns that only lists with ready-made LR images have: the path, and the hash of the pixels.
LR = pa.schema([pa.field("lr", pa.string()), pa.field("lr_sha256", pa.string())])
LIMIT = b"gdpo-limit"


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
    # The first source has no prefix, so that adding a second one renames no photograph: ids of
    # patches, and with them degradations, follow from the names.
    all_photos: list[Photo] = []
    for source, prefix in zip(sources, prefixes, strict=False):
        photos = (
            _remote(source.path, split)
            if source.path.startswith("s3://")
            else photographs(source.path, split, root)
        )
        all_photos += [
            replace(photo, name=prefix + photo.name, resize=source.resize, lr=lr)
            for photo, lr in _with_lr(photos[: source.first], source.lr, root)
        ]
    return sorted(all_photos, key=lambda photo: (photo.name, photo.file))


def _with_lr(
    photos: list[Photo], folder: str | None, root: Path
) -> list[tuple[Photo, Path | None]]:
    """Each photograph with its ready-made LR image, paired by the path without suffix.

    One without gets the path where it was looked for, which the scan reports.
    """
    if folder is None:
        return [(photo, None) for photo in photos]
    known = {photo.name: photo.path for photo in photographs(folder, "train", root)}
    return [(photo, Path(known.get(photo.name, root / folder / photo.file))) for photo in photos]


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
class ListedPhoto:
    """One row of a list: the photograph, and the hash of its pixels at the time of indexing."""

    photo: Photo
    sha256: str
    lr_sha256: str | None = None

    def low_resolution(self) -> np.ndarray | None:
        """The ready-made LR image as uint8 (h, w, 3), if there is one; errors as of `pixels`."""
        if self.photo.lr is None:
            return None
        pixels = read_photo(self.photo.lr)
        if content_hash(pixels) != self.lr_sha256:
            raise ValueError(
                f"{self.photo.lr}: has changed since it was indexed; run the index stage again"
            )
        return pixels

    def pixels(self) -> np.ndarray:
        """The photograph as uint8 (H, W, 3).

        Errors: ValueError naming the photograph if it is unreadable or has changed since the
        indexing.
        """
        pixels = self.photo.load()
        # Pixels and not bytes: a file that was only tagged or packed anew is still the same
        # photograph.
        if content_hash(pixels) != self.sha256:
            raise ValueError(
                f"{self.photo.path}: has changed since it was indexed; run the index stage again"
            )
        return pixels


def write_list(
    path: Path, findings: Sequence[Finding], root: Path, limit: str | None = None
) -> None:
    """Write the list of one part's photographs atomically.

    limit: of the windows only those are cut whose ids are not above it; None: all.
    """
    schema = SCHEMA
    if any(finding.lr_sha256 for finding in findings):
        schema = pa.unify_schemas([SCHEMA, LR])
    if limit is not None:
        schema = schema.with_metadata({**(SCHEMA.metadata or {}), LIMIT: limit})
    rows = [
        {
            "lr": None if finding.lr_sha256 is None else _below(finding.photo.lr, root),
            "lr_sha256": finding.lr_sha256,
            "name": finding.photo.name,
            "source": finding.photo.source,
            "file": finding.photo.file,
            "resize": finding.photo.resize,
            "sha256": finding.sha256,
            "height": finding.height,
            "width": finding.width,
        }
        for finding in findings
    ]
    with written_aside(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)


def _below(path: Path | None, root: Path) -> str:
    """A path relative to `root`, so that the list does not depend on where it is."""
    assert path is not None
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def read_list(path: Path, root: Path) -> list[ListedPhoto]:
    """The photographs of one part; ValueError naming the list if it is missing or damaged."""
    try:
        table = pq.read_table(path, schema=pa.unify_schemas([SCHEMA, LR]))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: damaged or missing list of photographs ({one_line(error)}); run the "
            "index stage"
        ) from error
    return [
        ListedPhoto(_opened(row, root), row["sha256"], row["lr_sha256"])
        for row in table.to_pylist()
    ]


def limit_of(path: Path) -> str | None:
    """The limit of the windows' ids in a list of `write_list`; None: all windows are cut."""
    limit = (pq.read_schema(path).metadata or {}).get(LIMIT)
    return None if limit is None else limit.decode()


def _opened(row: dict[str, Any], root: Path) -> Photo:
    """The photograph of one row of a list."""
    source, file = row["source"], row["file"]
    if not source.startswith("s3://"):
        lr = None if row["lr"] is None else root / row["lr"]
        return Photo(row["name"], place(source, file, root), source, file, row["resize"], lr=lr)
    from tasks.store.s3 import Store

    store = Store.at(source)
    return Photo(
        row["name"], store.url(file), source, file, row["resize"], partial(store.read, file)
    )
