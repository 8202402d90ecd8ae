"""Pair the output images of a method with their references by name, and score the pairs.

    images = method_images(sr, hr)                one error names all missing, extra, unreadable and
                                                  wrong-size files
    value = score_pair(images[0], ["psnr_y"])     {"psnr_y": 27.4}

Two files form a pair if their names agree up to the suffix: `a.png` and `a.jpg`. Subfolders, names
with a leading dot and files that are not images are ignored.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import torch
from PIL import Image

from gdpo.data.sources import SUFFIXES
from gdpo.errors import shown
from gdpo.images import read_photo, to_tensor
from gdpo.metrics.score import score

NAMED = 5  # an error names at most this many files of each kind
# The EXIF tag of the orientation, and its values that swap width and height.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class MethodImage:
    """An image, its reference (None without references), and their common size (width, height)."""

    name: str
    image: Path
    reference: Path | None
    size: tuple[int, int]


def method_images(sr: Path, hr: Path | None) -> list[MethodImage]:
    """The images of `sr` with their references in `hr`, sorted by name.

    Without `hr` the pairs have no references.
    Errors: ValueError, in one line, naming up to five files of each kind: images without a
    reference, references without an image, unequal sizes, unreadable files. Also ValueError for a
    folder that does not exist, has no image, or has two images of one name.
    """
    images, references = images_by_name(sr), {} if hr is None else images_by_name(hr)
    problems: dict[str, list[str]] = {}
    pairs = []
    if hr is not None:
        problems[f"missing in {shown(sr)}"] = [
            shown(name) for name in references if name not in images
        ]
        problems[f"without a reference in {shown(hr)}"] = [
            shown(name) for name in images if name not in references
        ]
    for name in sorted(images.keys() & references.keys() if hr is not None else images):
        files = [images[name], *([references[name]] if hr is not None else [])]
        sizes = [_size(file) for file in files]
        unreadable = [size for size in sizes if isinstance(size, str)]
        problems.setdefault("unreadable", []).extend(unreadable)
        if not isinstance(sizes[0], str) and not isinstance(sizes[-1], str):
            if sizes[0] != sizes[-1]:
                texts = [f"{width}x{height}" for width, height in (sizes[0], sizes[-1])]
                unequal = f"{shown(name)} ({texts[0]}, reference {texts[1]})"
                problems.setdefault("of another size than the reference", []).append(unequal)
            pairs.append(MethodImage(name, images[name], references.get(name), sizes[0]))
    complaints = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if complaints:
        folders = shown(sr) if hr is None else f"{shown(sr)} and {shown(hr)}"
        raise ValueError(f"{folders}: {'; '.join(complaints)}")
    return pairs


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def images_by_name(folder: Path) -> dict[str, Path]:
    """The image files directly in a folder by name without suffix, sorted.

    Errors: ValueError naming a folder that does not exist or has no image, or two files of one
    name.

    Names are in Unicode's composed form (NFC): macOS writes `é` as two characters, others as one.
    """
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)}: no such folder")
    paths = sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and p.name[0] != "." and not p.is_dir()
    )
    if not paths:
        raise ValueError(
            f"{shown(folder)}: no image in this folder ({', '.join(sorted(SUFFIXES))})"
        )
    named: dict[str, Path] = {}
    stems = {p: normalize("NFC", p.stem) for p in paths}
    twice = sorted({stem for p, stem in stems.items() if named.setdefault(stem, p) != p})
    if twice:
        raise ValueError(
            f"{shown(folder)}: two files of one name: {_some([shown(name) for name in twice])}"
        )
    return named


def _size(path: Path) -> tuple[int, int] | str:
    """(width, height) of the upright image; if it cannot be read, the file and why.

    The size comes from the header if PIL knows the format.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            width, height = image.size
        # The header has the size as the sensor stored it; the pixels are compared as a viewer shows
        # them.
        return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    try:
        height, width = read_photo(path).shape[:2]  # 16-bit TIFFs that only OpenCV opens
    except ValueError as error:
        return shown(error)
    return width, height


def score_pair(
    pair: MethodImage, names: Sequence[str], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The metrics of one pair of files, by name. Errors: ValueError naming a broken file."""
    image, reference = (
        None if path is None else _load(path, device) for path in (pair.image, pair.reference)
    )
    assert image is not None
    return {name: float(value) for name, value in score(names, image, reference).items()}


def _load(path: Path, device: torch.device | str) -> torch.Tensor:
    return to_tensor(read_photo(path))[None].to(device)


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None if there is no value or one is not finite (VIF of a black image).

    Values that are not finite are not skipped, since the mean would then omit images silently.
    """
    scores = list(values)
    return math.fsum(scores) / len(scores) if scores and all(map(math.isfinite, scores)) else None
