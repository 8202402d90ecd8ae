"""Writing picture files: tagged sRGB, with alpha, EXIF and resolution where the format has them.

16 bits are written to PNG and TIFF. Pillow cannot, so OpenCV and tifffile do; EXIF then goes into
the PNG whole, and into the TIFF only as far as its fields are texts.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from gdpo.files import written_aside
from gdpo.pictures.heif import MISSING, can_heif
from gdpo.pictures.profiles import srgb_profile
from gdpo.pictures.read import Picture, over_white

_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
# Not compressed: the library that compresses loses the pointer to EXIF.
_TIFF: dict[str, Any] = {"format": "TIFF"}
# Extension -> how Pillow saves it.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": {"format": "WEBP", "lossless": True},
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": {"format": "AVIF", "quality": 90},
    ".heic": {"format": "HEIF", "quality": 90},
}
DEEP = (".png", ".tif", ".tiff")
LONGEST = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535}  # pixels of a side
_METRE = 39.37007874  # inches


def check_format(path: Path, height: int, width: int, *, deep: bool = False) -> None:
    """Check that a file of this name can hold a picture of this size.

    Errors: ValueError naming the file and what to do.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: unknown extension; use one of {', '.join(FORMATS)}")
    if deep and suffix not in DEEP:
        raise ValueError(f"{path}: holds 8 bits only; for 16 use one of {', '.join(DEEP)}")
    kind = FORMATS[suffix]["format"]
    if kind == "HEIF" and not can_heif():
        raise ValueError(f"{path}: {MISSING}")
    longest = LONGEST.get(kind, 2**31 - 1)
    if max(height, width) > longest:
        raise ValueError(
            f"{path}: {kind} holds at most {longest} pixels a side, and the result has "
            f"{width}x{height}; {'use .png or .tif' if kind in LONGEST else 'make it smaller'}"
        )


def write_picture(path: Path, picture: Picture) -> None:
    """Write the picture in the format of the extension, atomically; the same bytes each time.

    A format without alpha gets the colours on white. Errors: as `check_format`.
    """
    height, width = picture.rgb.shape[:2]
    deep = picture.rgb.dtype == np.uint16
    check_format(path, height, width, deep=deep)
    with written_aside(path) as part:
        if not deep:
            _write_8(part, picture)
        elif path.suffix.lower() == ".png":
            _write_png_16(part, picture)
        else:
            _write_tiff_16(part, picture)


def _write_8(path: Path, picture: Picture) -> None:
    options = FORMATS[path.suffix.lower()]
    if picture.alpha is None or options["format"] == "JPEG":
        pixels = over_white(picture)
    else:
        pixels = _stacked(picture)
    more: dict[str, Any] = {"exif": picture.exif} if picture.exif else {}
    if picture.dpi is not None and options["format"] not in ("WEBP", "AVIF", "HEIF"):
        more["dpi"] = picture.dpi
    Image.fromarray(pixels).save(path, **options, icc_profile=srgb_profile(), **more)


def _stacked(picture: Picture) -> np.ndarray:
    """HW3 or, with alpha, HW4."""
    return picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])


def _write_png_16(path: Path, picture: Picture) -> None:
    """A 16-bit PNG; the chunks that OpenCV does not write come after the first."""
    order = [2, 1, 0, 3][: 3 if picture.alpha is None else 4]
    data = cv2.imencode(".png", _stacked(picture)[..., order])[1].data
    chunks = [_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile(), 9))]
    if picture.dpi is not None:
        per_metre = [round(value * _METRE) for value in picture.dpi]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if picture.exif:
        chunks.append(_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    start = 8 + 25  # the signature and IHDR
    with path.open("wb") as file:
        file.writelines([data[:start], *chunks, data[start:]])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_tiff_16(path: Path, picture: Picture) -> None:
    exif = Image.Exif()
    exif.load(picture.exif)
    texts = [(tag, 2, 0, value, True) for tag, value in exif.items() if isinstance(value, str)]
    tifffile.imwrite(
        path,
        _stacked(picture),
        photometric="rgb",
        extrasamples=None if picture.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=srgb_profile(),
        resolution=picture.dpi or (1, 1),
        resolutionunit=1 if picture.dpi is None else 2,
        metadata=None,
        software=False,
        extratags=texts,
    )
