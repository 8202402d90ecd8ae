"""The sources of photographs, and the patches cut from them.

    photographs("folder" | "scikit-image", split)    sorted by name; reads no file
    part_of(name, parts)                             by the hash of the name: a new photograph does
                                                     not move the others to other parts
    sliding_windows                                  the patches of a training photograph
    centred_tiles                                    the patches of a held-out photograph

A photograph's name depends only on its path. gdpo/data/scan.py decides which photographs are used.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from posixpath import basename, splitext
from typing import Literal

import numpy as np

from gdpo.data.schema import Box
from gdpo.images import photo_from_bytes, read_photo, resize_bicubic
from gdpo.walk import walk

Split = Literal["train", "evaluation"]
Read = Callable[[], bytes]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# The colour photographs that ship in scikit-image's wheel.
SCIKIT_IMAGE: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
    ),
    "evaluation": ("chelsea.png", "coffee.png", "rocket.jpg"),
}


@dataclass(frozen=True)
class Photo:
    """One photograph.

    name: unique in its set, usable as a file name; path: for reading and for errors; source: the
    `path` of its `Photographs`; file: its path within the source; resize: shorter side in pixels to
    resize to; read: reads its bytes if it is not on the file system; lr: its ready-made LR image,
    if the source has such.
    """

    name: str
    path: Path | str
    source: str = ""
    file: str = ""
    resize: int | None = None
    read: Read | None = None
    lr: Path | None = None

    def load(self) -> np.ndarray:
        """The pixels, uint8 (H, W, 3) RGB.

        ValueError naming the file if it is not a photograph; OSError from `read`.
        """
        return resized(self.original(), self.resize)

    def original(self) -> np.ndarray:
        """The pixels before `resize`."""
        return (
            read_photo(self.path)
            if self.read is None
            else photo_from_bytes(self.read(), str(self.path))
        )


def resized(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """Resize uint8 (H, W, 3) to a shorter side of `side` pixels, keeping the aspect ratio.

    None: no resizing. Source: "FFHQ resized to 512" in the released code's README, which does not
    name the filter; here it is antialiased bicubic.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if side is None or side == shorter:
        return pixels
    return resize_bicubic(pixels, (round(height * side / shorter), round(width * side / shorter)))


def photographs(spec: str, split: Split, root: Path = Path()) -> list[Photo]:
    """The photographs of `spec`, sorted by name.

    spec: a folder tree (relative to `root`), or "scikit-image". ValueError naming the folder if it
    does not exist or has no image file (by suffix; names with a leading dot do not count).
    """
    if spec == "scikit-image":
        return [
            Photo(file.partition(".")[0], place(spec, file, root), spec, file)
            for file in SCIKIT_IMAGE[split]
        ]
    folder = root / spec
    if not folder.is_dir():
        raise ValueError(f"{spec}: no such folder (degrade.{split})")
    tree = walk(folder)
    # Keep dangling links, so that the scan reports them as unreadable photographs.
    files = [path.relative_to(folder).as_posix() for path in [*tree.files, *tree.broken]]
    return [
        Photo(name, folder / file, spec, file)
        for name, file in named(files, f"{spec} (degrade.{split})")
    ]


def named(files: Iterable[str], where: str) -> list[tuple[str, str]]:
    """(name, file) of the image files among paths with `/`, sorted.

    The paths may be keys of a bucket: they are text, in which `//` and `..` mean nothing, and one
    that ends in `/` marks a folder. A name is the path without suffix, with `__` for `/`. Files
    that differ only in their suffix get the same name; the scan uses the first of them. ValueError
    naming `where` if there is no image file.
    """
    chosen = []
    for file in files:
        stem, suffix = splitext(file)
        if suffix.lower() in SUFFIXES and not basename(file).startswith("."):
            # Flat names, because they become file names and ids of patches; the source's own path
            # stays in `file`.
            chosen.append((stem.replace("/", "__"), file))
    if not chosen:
        raise ValueError(f"{where}: no photograph here ({', '.join(sorted(SUFFIXES))})")
    return sorted(chosen)


def place(spec: str, file: str, root: Path) -> Path:
    """The path of a file of `spec` on this machine."""
    return _scikit_image_data() / file if spec == "scikit-image" else root / spec / file


@cache
def _scikit_image_data() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "scikit-image is not installed: degrade.train and degrade.evaluation must be folders"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def part_of(name: str, parts: Sequence[str]) -> str:
    """The part of the photograph `name`; independent of the other photographs."""
    # By the hash of the name and not by a running number: a photograph added later must not move
    # the others to other parts, which would degrade all parts again.
    return parts[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % len(parts)]


def sliding_windows(height: int, width: int, side: int, stride: int) -> list[Box]:
    """All square windows of a training photograph in pixels, row by row.

    No extra window covers a remainder at the right and lower edge.
    """
    tops, lefts = range(0, height - side + 1, stride), range(0, width - side + 1, stride)
    return [Box(top, left, side, side) for top in tops for left in lefts]


def patch_id(source: str, box: Box) -> str:
    """A short hash of the patch's photograph and box; adding photographs does not change it."""
    return hashlib.sha256(json.dumps([source, *box]).encode()).hexdigest()[:20]


def lowest(ids: Iterable[str], count: int) -> str | None:
    """The greatest of the `count` lowest ids of `patch_id`; None if there are not more than that.

    A sample that depends neither on the parts nor on the order.
    """
    numbers = np.fromiter((int(id_[:16], 16) for id_ in ids), np.uint64)
    if len(numbers) <= count:
        return None
    return f"{int(np.partition(numbers, count - 1)[count - 1]):016x}"


def centred_tiles(height: int, width: int, side: int) -> list[tuple[str, Box]]:
    """(label of row and column, tile) of the square tiles of a held-out photograph, in pixels.

    As many tiles as fit without overlap, centred.
    """
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    digits = len(str(max(rows, columns, 1) - 1))
    return [
        (
            f"{row:0{digits}d}{column:0{digits}d}",
            Box(top + row * side, left + column * side, side, side),
        )
        for row in range(rows)
        for column in range(columns)
    ]
