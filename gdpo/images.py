"""Reading and writing photographs: files of common formats -> 8-bit RGB arrays, tensors, PNG bytes.

    read_photo                        applies EXIF rotation, scales 16 bits to 8, repeats gray,
                                      composites alpha over white, converts CMYK
    encode_lossless, decode_image     the image bytes in shards
    encode_png, write_png             files for users

Shapes: HWC uint8 RGB arrays for files, CHW float tensors in [0, 1] for models.
"""

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from gdpo.files import written_aside

_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC, _PLANAR = 262, 284  # TIFF tags
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
# For a broken file, Pillow and OpenCV raise whichever exception their decoders hit first.
_BROKEN = (
    OSError,
    SyntaxError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
    cv2.error,
)


class NotRgb(ValueError):
    """An image whose pixels cannot be interpreted as RGB colours of 8 or 16 bits."""


def read_photo(path: Path | str) -> np.ndarray:
    """Read one photograph as upright uint8 (H, W, 3) RGB.

    ValueError naming the file if it cannot be read, `NotRgb` if its pixels are not RGB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not a readable photograph ({_one_line(error)})") from error
    return photo_from_bytes(data, str(path))


def photo_from_bytes(data: bytes, name: str) -> np.ndarray:
    """`read_photo` on bytes in memory; `name` identifies the file in errors.

    ValueError if the bytes are not a photograph, `NotRgb` if its pixels are not RGB.
    """
    try:
        return _decoded(data)
    except ValueError as error:
        kind = NotRgb if isinstance(error, NotRgb) else ValueError
        raise kind(f"{name}: not a readable photograph ({_one_line(error)})") from error


def _decoded(data: bytes) -> np.ndarray:
    try:
        if _may_be_deep(data):
            return _read_deep(data)
        with Image.open(io.BytesIO(data)) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:  # its text has a memory address that differs each time
        raise ValueError("not an image of a known kind") from error
    except _BROKEN as error:
        raise ValueError(_one_line(error)) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image) -> np.ndarray:
    """An upright 8-bit PIL image of any colour model as uint8 (H, W, 3) RGB, alpha over white."""
    if image.mode in ("I", "F"):
        raise NotRgb(f"pixels of mode {image.mode} have no fixed range; save it as 8 or 16 bit")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _may_be_deep(data: bytes) -> bool:
    """Whether the bytes are a 16-bit PNG, or a TIFF with 16 bits per sample."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return len(data) > 24 and data[24] == 16
    if data[:4] in _TIFF:
        # Decode with OpenCV: IMREAD_UNCHANGED keeps the depth. PIL reads only the upper bytes of
        # some 16-bit TIFFs and cannot open others.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return pixels is not None and pixels.dtype == np.uint16
    return False


def _read_deep(data: bytes) -> np.ndarray:
    """A 16-bit PNG or TIFF as uint8 (H, W, 3) RGB, rounded to 8 bits (65535 -> 255)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("broken 16-bit image")
    tags = _tiff_tags(data)
    if tags.get(_PLANAR) == 2 and pixels.ndim == 3:
        raise NotRgb("16-bit TIFF with a plane for each colour; save it with interleaved colours")
    if tags.get(_PHOTOMETRIC) == 0:  # WhiteIsZero gray: OpenCV inverts it for 8 bits only
        pixels = 65535 - pixels
    eight: np.ndarray = np.round(pixels.reshape(*pixels.shape[:2], -1) / 257).astype(np.uint8)
    channels = eight.shape[2]
    if channels == 1:
        eight = eight[..., 0]
    elif channels in (3, 4):
        eight = cv2.cvtColor(eight, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    else:
        raise NotRgb(f"{channels} channels of 16 bits")
    image = Image.fromarray(eight)
    image.getexif()[_ORIENTATION] = _orientation(data)
    return _rgb(ImageOps.exif_transpose(image))


def _tiff_tags(data: bytes) -> dict[int, Any]:
    """The tags of a TIFF's first page; empty for other formats."""
    if data[:4] not in _TIFF:
        return {}
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[:4] else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return dict(tags)


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except OSError:  # a 16-bit file that only OpenCV can open
        return 1


def encode_png(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB -> PNG bytes; the same bytes for the same pixels."""
    return cv2.imencode(".png", cv2.cvtColor(_checked(image), cv2.COLOR_RGB2BGR))[1].tobytes()


def encode_lossless(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB -> lossless WebP bytes; the same bytes for the same pixels.

    Uses WebP's fastest method. On 512-pixel crops of photographs, encoding and decoding are as fast
    as PNG and files are a quarter smaller (benchmarks/shards.py).
    """
    stream = io.BytesIO()
    Image.fromarray(_checked(image)).save(stream, "WEBP", lossless=True, quality=0, method=0)
    return stream.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """8-bit PNG, JPEG or WebP bytes -> uint8 (H, W, 3) RGB, fast. ValueError if they are broken."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise ValueError("broken image bytes")
    return image


def write_png(path: Path | str, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB as a PNG file, atomically."""
    with written_aside(Path(path)) as part:
        part.write_bytes(encode_png(image))


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [0, 1]."""
    return torch.tensor(_checked(image)).permute(2, 0, 1).contiguous().float() / 255


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """float (C, H, W) or (B, C, H, W) in [0, 1] -> uint8 (H, W, C) or (B, H, W, C).

    Clamped, then rounded.
    """
    levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (*size, 3) by PIL's antialiased bicubic (a = -0.5)."""
    height, width = size
    return np.array(
        Image.fromarray(_checked(image)).resize((width, height), Image.Resampling.BICUBIC)
    )


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"expected a uint8 image of shape (H, W, 3), got {image.dtype} {image.shape}"
        )
    return image
