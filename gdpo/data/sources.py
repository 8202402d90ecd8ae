"""Where photographs come from, and the patches that are cut from them.

    photographs("folder" | "scikit-image", split) -> [Photo]        sorted by name, nothing is read yet
    usable(photos, ...) -> (photo, pixels), one at a time           the others go to the census, with the reason

One photograph is in memory at a time, however many there are.
"""

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from gdpo.data.shards import Box
from gdpo.images import read_photo

Split = Literal["train", "evaluation"]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# The colour photographs that ship in scikit-image's wheel.
SCIKIT_IMAGE: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg"),
    "evaluation": ("chelsea.png", "coffee.png", "rocket.jpg"),
}


@dataclass(frozen=True)
class Photo:
    """One photograph: a name that can be a file name, unique in its set, and where it lies."""

    name: str
    path: Path

    def load(self) -> np.ndarray:
        """The pixels, uint8 (H, W, 3) RGB. ValueError naming the file if it cannot be read."""
        return read_photo(self.path)


@dataclass
class Census:
    """What became of the photographs of a split: content hash -> name of those used, and who was skipped and why."""

    used: dict[str, str] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many photographs were used, and how many skipped for each reason."""
        reasons = Counter(row["reason"] for row in self.skipped)
        return {"used": len(self.used), **dict(sorted(reasons.items()))}


def photographs(spec: str, split: Split, root: Path = Path()) -> list[Photo]:
    """The photographs of `spec`: a folder tree (relative to `root`), or "scikit-image"; sorted by name.

    ValueError naming the folder if it does not exist or holds no image file (by suffix; names with a leading dot do
    not count).
    """
    if spec == "scikit-image":
        return [Photo(name.partition(".")[0], _scikit_image_data() / name) for name in SCIKIT_IMAGE[split]]
    folder = root / spec
    if not folder.is_dir():
        raise ValueError(f"{spec}: no such folder (degrade.{split})")
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
    if not paths:
        raise ValueError(f"{spec}: no photograph in this folder (degrade.{split}; {', '.join(sorted(SUFFIXES))})")
    flat = {path: "__".join(path.relative_to(folder).parts) for path in paths}
    stems = Counter(Path(name).stem for name in flat.values())
    named = {path: Path(name).stem if stems[Path(name).stem] == 1 else name for path, name in flat.items()}
    return sorted((Photo(name, path) for path, name in named.items()), key=lambda photo: photo.name)


def _scikit_image_data() -> Path:
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise ValueError("scikit-image is not installed: degrade.train and degrade.evaluation must be folders")
    return Path(found.submodule_search_locations[0]) / "data"


def usable(
    photos: list[Photo], min_side: int, max_failures: float, census: Census, held_out: Mapping[str, str] | None = None
) -> Iterator[tuple[Photo, np.ndarray]]:
    """Yield (photo, uint8 (H, W, 3)) for each photograph that can be used; write the others to `census`.

    Skipped: "unreadable", "too small" (a side below `min_side`), "duplicate" (the pixels of an earlier one). The first
    two are failures; more than the share `max_failures` of them is a ValueError that names the first. So is a
    photograph whose pixels are among `held_out` (content hash -> name): it must not be trained on.
    """
    first, failures = "", 0
    for photo in photos:
        pixels, reason, detail = _load(photo, min_side)
        if pixels is None:
            failures += 1
            first = first or detail
            census.skipped.append({"name": photo.name, "reason": reason, "detail": detail})
            if failures > max_failures * len(photos):
                raise ValueError(
                    f"{first}; {failures} of {len(photos)} photographs cannot be used, "
                    f"degrade.max_failures allows {max_failures:g} of them"
                )
            continue
        digest = content_hash(pixels)
        if held_out and digest in held_out:
            raise ValueError(
                f"{photo.path}: is the evaluation photograph {held_out[digest]} too; "
                "degrade.train and degrade.evaluation must have no photograph in common"
            )
        if digest in census.used:
            detail = f"{photo.path}: the same pixels as {census.used[digest]}"
            census.skipped.append({"name": photo.name, "reason": "duplicate", "detail": detail})
            continue
        census.used[digest] = photo.name
        yield photo, pixels


def _load(photo: Photo, min_side: int) -> tuple[np.ndarray | None, str, str]:
    """The pixels, or None with the reason and one line about it."""
    try:
        pixels = photo.load()
    except ValueError as error:
        return None, "unreadable", str(error)
    height, width = pixels.shape[:2]
    if min(height, width) < min_side:
        return None, "too small", f"{photo.path}: {width}x{height} pixels, a patch needs {min_side}x{min_side}"
    return pixels, "", ""


def content_hash(pixels: np.ndarray) -> str:
    """SHA-256 of a uint8 image's size and pixels: equal for the same picture in another lossless file."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def sliding_windows(height: int, width: int, side: int, stride: int) -> list[Box]:
    """All square windows of a training photograph, row by row; no extra window at the far edges."""
    tops, lefts = range(0, height - side + 1, stride), range(0, width - side + 1, stride)
    return [Box(top, left, side, side) for top in tops for left in lefts]


def centred_tiles(height: int, width: int, side: int) -> list[tuple[str, Box]]:
    """(row-and-column label, tile) of the square tiles without overlap that fit a held-out photograph, centred."""
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    digits = len(str(max(rows, columns, 1) - 1))
    return [
        (f"{row:0{digits}d}{column:0{digits}d}", Box(top + row * side, left + column * side, side, side))
        for row in range(rows)
        for column in range(columns)
    ]
