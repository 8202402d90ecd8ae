"""Colour profiles: pixels of a tagged picture -> sRGB, and the profile that tags results.

A file of a phone is mostly in Display P3, one of a camera may be in Adobe RGB, one for print in
CMYK. Read as if they were sRGB, their colours are wrong.
"""

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC's name of a colour space -> PIL's mode


def to_srgb(image: Image.Image) -> Image.Image:
    """`image`, of any mode and without alpha, as mode RGB in sRGB.

    A profile that is broken, or of another colour space than the pixels, is ignored.
    """
    data = image.info.get("icc_profile")
    mode_and_transform = _transform(data) if data else None
    if mode_and_transform is None:
        return image.convert("RGB")
    mode, transform = mode_and_transform
    if image.mode != mode and mode == "RGB" and image.mode in ("P", "L"):
        image = image.convert("RGB")
    if image.mode != mode:
        return image.convert("RGB")
    converted = transform.apply(image)
    assert converted is not None
    return converted


def is_srgb(data: bytes | None) -> bool:
    """Whether pixels with this profile are used as they are."""
    return not data or _transform(data) is None


@lru_cache(maxsize=8)
def _transform(data: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """(mode of the pixels, their conversion to sRGB); None if there is nothing to convert."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = _MODES.get(profile.profile.xcolor_space.strip())
        if mode is None:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    return None if mode == "RGB" and _changes_nothing(transform) else (mode, transform)


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it changes no colour by more than a level: the profile is one of the many of sRGB."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    # 4096 colours on a grid: dozens of files of "sRGB" differ in their bytes and not in what they
    # do.
    converted = np.array(transform.apply(Image.fromarray(colours)))
    return bool(np.abs(converted.astype(int) - colours).max() <= 1)


@cache
def srgb_profile() -> bytes:
    """The profile of sRGB, the same bytes every day."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The profile's date is the time of its making, which would give every result other bytes.
    data[24:36] = bytes.fromhex("07d0 0001 0001 0000 0000 0000")  # its date: 1 January 2000
    return bytes(data)
