"""Reading picture files: upright RGB in sRGB, alpha, and the metadata that results keep.

    picture = read_picture("photo.jpg")     Picture(rgb, alpha, exif, dpi, frames)

Applies EXIF's rotation and the colour profile, repeats gray, converts CMYK. Pillow decodes; OpenCV
decodes 16 bits, of which Pillow reads only the upper bytes.

Shapes: HW3 colours, HW alpha.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from gdpo.errors import one_line
from gdpo.pictures.heif import MISSING, can_heif, is_heif
from gdpo.pictures.profiles import is_srgb, to_srgb

_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC, _PLANAR = 262, 284  # TIFF tags
_PNG, _TIFF_SIDES = b"\x89PNG\r\n\x1a\n", (256, 257)
# Deflate makes at most 1032 bytes of one, and a byte has at most eight pixels.
_MOST_PIXELS, _MOST_PER_BYTE = 64_000_000, 8 * 1032
# A photograph of 32 megapixels enlarged four times; reading takes about eight bytes a pixel.
# Pillow's limit, 179 million for every program that imports it, is less than 12 megapixels become.
LARGEST = 2**29
Image.MAX_IMAGE_PIXELS = LARGEST
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
# What EXIF says about the photograph, not about the file's layout: description, make, model,
# software, date, artist, host, copyright, the names that Windows writes.
_DESCRIBES = (270, 271, 272, 305, 306, 315, 316, 33432, *range(40091, 40096))
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# Makers' notes hold offsets into the old file; then width and height, and a pointer.
_OF_THE_OLD_FILE = (0x927C, 0xA002, 0xA003, 0xA005)
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
    Image.DecompressionBombWarning,  # where warnings are errors
    cv2.error,
)


class NotRgb(ValueError):
    """An image whose pixels cannot be interpreted as RGB colours of 8 or 16 bits."""


@dataclass(frozen=True)
class Picture:
    """A picture in sRGB.

    rgb: HW3, uint8 or uint16; alpha: HW of the same type, 0 is transparent, None if all is opaque.
    exif: without orientation and layout, empty if there is none; dpi: None if the file does not
    say. frames: pictures in the file, of which this is the first.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    frames: int = 1


def read_picture(path: Path | str, *, deep: bool = False) -> Picture:
    """Read a picture file; deep: as uint16, with all 16 bits of a PNG or TIFF.

    A 16-bit file with a colour profile other than sRGB is rounded to 8 bits to convert it.
    ValueError naming the file if it cannot be read, `NotRgb` if its pixels are not RGB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not a readable photograph ({one_line(error)})") from error
    return picture_from_bytes(data, str(path), deep=deep)


def picture_from_bytes(data: bytes, name: str, *, deep: bool = False) -> Picture:
    """`read_picture` on bytes in memory; `name` identifies the file in errors.

    ValueError if the bytes are not a photograph, `NotRgb` if its pixels are not RGB.
    """
    try:
        return _decoded(data, deep)
    except ValueError as error:
        kind = NotRgb if isinstance(error, NotRgb) else ValueError
        raise kind(f"{name}: not a readable photograph ({one_line(error)})") from error


def over_white(picture: Picture) -> np.ndarray:
    """The colours of an 8-bit picture, uint8 HW3, on a white ground."""
    if picture.alpha is None:
        return picture.rgb
    rgba = Image.fromarray(np.dstack([picture.rgb, picture.alpha]))
    white = Image.new("RGBA", rgba.size, "white")
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


def _decoded(data: bytes, deep: bool) -> Picture:
    try:
        _check_size(data)
        if is_heif(data) and not can_heif():
            raise ValueError(MISSING)
        pixels = _deep_pixels(data) if _may_be_deep(data) else None
        if pixels is None:
            with Image.open(io.BytesIO(data)) as image:
                _check_area(*image.size)
                picture = _from_pil(image)
        else:
            picture = _from_deep(data, pixels, deep)
    except UnidentifiedImageError as error:  # its text has a memory address that differs each time
        raise ValueError("not an image of a known kind") from error
    except _BROKEN as error:
        raise ValueError(one_line(error)) from error
    return _widened(picture) if deep and picture.rgb.dtype == np.uint8 else picture


def _check_size(data: bytes) -> None:
    """ValueError if a PNG or TIFF states more pixels than its bytes can hold.

    OpenCV takes the memory that a header asks for before it reads a pixel.
    """
    if data[:8] == _PNG:
        width, height = struct.unpack(">II", data[16:24])
    else:
        tags = _tiff_tags(data)
        width, height = (tags.get(tag, 0) for tag in _TIFF_SIDES)
    if width * height > max(_MOST_PIXELS, _MOST_PER_BYTE * len(data)):
        raise ValueError(
            f"its header states {width}x{height} pixels, for which {len(data)} bytes are too few"
        )
    _check_area(width, height)


def _check_area(width: int, height: int) -> None:
    """ValueError for a picture of more than LARGEST pixels."""
    if width * height > LARGEST:
        raise ValueError(
            f"{width}x{height} pixels are more than the {LARGEST // 10**6} megapixels that can be "
            "read; cut it into pieces"
        )


def _check_chunks(data: bytes) -> None:
    """ValueError if a chunk of a PNG is longer than the file: OpenCV takes the memory for it."""
    place = len(_PNG)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        place += 12 + length
    if place > len(data):
        raise ValueError("cut off: a part is longer than the file")


def _from_pil(image: Image.Image) -> Picture:
    """An 8-bit PIL image of any colour model."""
    # Before the pixels are used in any way: sizes, crops and hashes are those of the picture that a
    # person sees.
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise NotRgb(f"pixels of mode {upright.mode} have no fixed range; save it as 8 or 16 bit")
    alpha = None
    if upright.has_transparency_data:
        # By way of RGBA, because transparency may also be one index of a palette or one colour.
        rgba = upright.convert("RGBA")
        alpha, upright = np.array(rgba.getchannel("A")), rgba.convert("RGB")
    rgb = np.array(to_srgb(upright))
    return Picture(rgb, alpha, **_metadata(image))


def _from_deep(data: bytes, pixels: np.ndarray, deep: bool) -> Picture:
    """A picture of 16-bit pixels HWC; 16 bits are kept if `deep`, and if its profile allows."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            profile, metadata = image.info.get("icc_profile"), _metadata(image)
            orientation = int(image.getexif().get(_ORIENTATION, 1))
    except OSError:  # a 16-bit file that only OpenCV can open
        profile, metadata, orientation = None, {}, 1
    pixels = _upright(pixels, orientation)
    if deep and is_srgb(profile):
        alpha = pixels[..., -1] if pixels.shape[2] == 4 else None
        colours = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]
        return Picture(np.ascontiguousarray(colours), alpha, **metadata)
    # 257 and not 256: 65535 becomes 255, and 8 bits widened to 16 come back unchanged.
    eight = np.round(pixels / 257).astype(np.uint8)
    rounded = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)
    rounded.info["icc_profile"] = profile
    picture = _from_pil(rounded)
    return Picture(picture.rgb, picture.alpha, **metadata)


def _widened(picture: Picture) -> Picture:
    """8 bits as 16: 255 -> 65535."""
    alpha = None if picture.alpha is None else picture.alpha.astype(np.uint16) * 257
    rgb = picture.rgb.astype(np.uint16) * 257
    return Picture(rgb, alpha, picture.exif, picture.dpi, picture.frames)


def _metadata(image: Image.Image) -> dict[str, Any]:
    """The fields exif, dpi and frames of a Picture, as far as they can be read."""
    exif, frames = Image.Exif(), int(getattr(image, "n_frames", 1))
    try:
        old = image.getexif()
        for tag in _DESCRIBES:
            if tag in old:
                exif[tag] = old[tag]
        for ifd in (_EXIF_IFD, _GPS_IFD):
            kept = {k: v for k, v in old.get_ifd(ifd).items() if k not in _OF_THE_OLD_FILE}
            if kept:
                exif.get_ifd(ifd).update(kept)
        data = exif.tobytes() if len(exif) or exif.get_ifd(_EXIF_IFD) else b""
        dpi = image.info.get("dpi")
        pair = (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None
    except (*_BROKEN, ValueError):
        return {"frames": frames}
    return {"exif": data, "dpi": pair, "frames": frames}


def _may_be_deep(data: bytes) -> bool:
    """Whether the bytes are a 16-bit PNG, or a TIFF with 16 bits per sample."""
    if data[:8] == _PNG:
        is_deep = len(data) > 24 and data[24] == 16
        if is_deep:
            _check_chunks(data)
        return is_deep
    if data[:4] in _TIFF:
        # Decode with OpenCV: IMREAD_UNCHANGED keeps the depth. PIL reads only the upper bytes of
        # some 16-bit TIFFs and cannot open others.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return pixels is not None and pixels.dtype == np.uint16
    return False


def _deep_pixels(data: bytes) -> np.ndarray:
    """The pixels of a 16-bit PNG or TIFF as uint16 HWC: gray, RGB or RGBA, as stored."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("broken 16-bit image")
    tags = _tiff_tags(data)
    if tags.get(_PLANAR) == 2 and pixels.ndim == 3:
        raise NotRgb("16-bit TIFF with a plane for each colour; save it with interleaved colours")
    if tags.get(_PHOTOMETRIC) == 0:  # WhiteIsZero gray: OpenCV inverts it for 8 bits only
        pixels = 65535 - pixels
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = pixels.shape[2]
    if channels not in (1, 3, 4):
        raise NotRgb(f"{channels} channels of 16 bits")
    rgb: np.ndarray = pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]]
    return rgb


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """HWC pixels turned as EXIF's orientation 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _tiff_tags(data: bytes) -> dict[int, Any]:
    """The tags of a TIFF's first page; empty for other formats."""
    if data[:4] not in _TIFF:
        return {}
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[:4] else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return dict(tags)
