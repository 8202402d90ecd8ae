"""Photographs as arrays and tensors: files -> 8-bit RGB arrays, tensors, PNG bytes.

    read_photo                        applies EXIF rotation and the colour profile, scales 16 bits
                                      to 8, repeats gray, composites alpha over white
    encode_lossless, decode_image     the image bytes in shards
    encode_png, write_png             files for users

gdpo/pictures reads and writes what else a file holds. Shapes: HWC uint8 RGB arrays for files, CHW
float tensors in [0, 1] for models.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from gdpo.files import written_aside
from gdpo.pictures.read import NotRgb, over_white, picture_from_bytes, read_picture

__all__ = [
    "NotRgb",
    "decode_image",
    "encode_lossless",
    "encode_png",
    "photo_from_bytes",
    "read_photo",
    "resize_bicubic",
    "resize_plane",
    "to_tensor",
    "to_uint8",
    "write_png",
]

# Columns that are resized at once: a whole picture would be in memory three times, as Pillow's,
# as bytes and as an array.
COLUMNS = 1024


def read_photo(path: Path | str) -> np.ndarray:
    """Read one photograph as upright uint8 (H, W, 3) RGB in sRGB.

    ValueError naming the file if it cannot be read, `NotRgb` if its pixels are not RGB.
    """
    return over_white(read_picture(path))


def photo_from_bytes(data: bytes, name: str) -> np.ndarray:
    """`read_photo` on bytes in memory; `name` identifies the file in errors.

    ValueError if the bytes are not a photograph, `NotRgb` if its pixels are not RGB.
    """
    return over_white(picture_from_bytes(data, name))


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


def resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or uint16 (H, W) -> the same type (*size), by the filter of `resize_bicubic`."""
    resized, most = np.empty(size, plane.dtype), np.iinfo(plane.dtype).max
    # PIL resizes 16-bit images by the nearest pixel only; as float32 they get the same filter as
    # 8-bit ones.
    for columns, block in _resized(Image.fromarray(plane.astype(np.float32)), size):
        resized[:, columns] = block.round().clip(0, most)
    return resized


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [0, 1]."""
    return torch.tensor(_checked(image)).permute(2, 0, 1).contiguous().float() / 255


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """float (C, H, W) or (B, C, H, W) in [0, 1] -> uint8 (H, W, C) or (B, H, W, C).

    Clamped, then rounded.
    """
    # Rounded, because uint8 truncates: every pixel would be half a level darker on average.
    levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (*size, 3) by PIL's antialiased bicubic (a = -0.5)."""
    resized = np.empty((*size, 3), np.uint8)
    for columns, block in _resized(Image.fromarray(_checked(image)), size):
        resized[:, columns] = block
    return resized


def _resized(image: Image.Image, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """The resized image in blocks of columns, (columns, pixels); with the bits of one call.

    Only an enlargement, which may be large, has more than one block.
    """
    height, width = size
    if height < image.height or width < image.width:
        yield slice(None), np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return
    # To enlarge, Pillow resizes the rows and then each column by itself. (It begins with the
    # columns where they shrink and the rows grow.)
    wide = image.resize((width, image.height), Image.Resampling.BICUBIC)
    for left in range(0, width, COLUMNS):
        right = min(left + COLUMNS, width)
        block = wide.crop((left, 0, right, image.height))
        block = block.resize((right - left, height), Image.Resampling.BICUBIC)
        yield slice(left, right), np.asarray(block)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"expected a uint8 image of shape (H, W, 3), got {image.dtype} {image.shape}"
        )
    return image
