"""gdpo.images: every kind of file becomes the same 8-bit RGB picture."""

import struct

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from gdpo import images


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth colour picture, 12x16, without symmetry."""
    y, x = np.mgrid[:12, :16]
    return np.stack([10 * x + 20, 15 * y + 30, 5 * (x + y) + 40], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_read_photo_lossless_kinds(tmp_path, picture, suffix):
    """A lossless file gives back its pixels, in RGB order."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(images.read_photo(path), picture)


def test_read_photo_applies_exif_rotation(tmp_path, picture):
    """Orientation 6 means: turn by 90 degrees clockwise to see it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.read_photo(tmp_path / "a.png"), np.rot90(picture, -1))


def test_read_photo_gray_is_repeated(tmp_path, picture):
    """A gray file has three equal channels."""
    Image.fromarray(picture[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        images.read_photo(tmp_path / "a.png"), np.repeat(picture[..., :1], 3, -1)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_read_photo_scales_16_bit(tmp_path, picture, channels, suffix):
    """16-bit values v * 257 are the 8-bit values v: not truncated, channels in order, alpha over
    white.
    """
    deep = (
        np.concatenate([picture, np.full_like(picture[..., :1], 255)], -1)[..., :channels].astype(
            np.uint16
        )
        * 257
    )
    # Rounds up to the same, would truncate to v - 1.
    deep = np.clip(deep.astype(int) - 100, 0, 65535).astype(np.uint16)
    stored = deep[..., 0] if channels == 1 else deep[..., [2, 1, 0, 3][:channels]]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), stored)
    expected = np.repeat(picture[..., :1], 3, -1) if channels == 1 else picture
    np.testing.assert_array_equal(images.read_photo(tmp_path / f"a.{suffix}"), expected)


@pytest.mark.parametrize(
    "kind", [{"bigtiff": True}, {"photometric": "miniswhite"}, {"byteorder": ">"}]
)
def test_read_photo_of_16_bit_tiffs_of_other_kinds(tmp_path, picture, kind):
    """BigTIFF, gray from white to black, the other byte order: not clipped, not turned round."""
    gray = picture[..., 0]
    stored = (255 - gray if kind.get("photometric") == "miniswhite" else gray).astype(
        np.uint16
    ) * 257
    tifffile.imwrite(tmp_path / "a.tif", stored, **({"photometric": "minisblack"} | kind))
    np.testing.assert_array_equal(
        images.read_photo(tmp_path / "a.tif"), np.repeat(gray[..., None], 3, -1)
    )


def test_16_bit_planes_are_refused(tmp_path, picture):
    """OpenCV and Pillow both mix them up without a word."""
    planes = picture.transpose(2, 0, 1).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(images.NotRgb, match=r"a\.tif: .* a plane for each colour"):
        images.read_photo(tmp_path / "a.tif")


def test_a_tiff_of_an_impossible_width_is_named(tmp_path, picture):
    """OpenCV's own error, which is no ValueError, ended the stage."""
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    entry = (
        data.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in data else -1
    )
    entry = entry if entry >= 0 else data.index(struct.pack("<HHI", 256, 3, 1))
    data[entry : entry + 12] = struct.pack("<HHII", 256, 4, 1, 2**30)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tif: not a readable photograph"):
        images.read_photo(tmp_path / "a.tif")


def test_read_photo_lays_alpha_over_white(tmp_path, picture):
    """alpha c + (1 - alpha) 255."""
    alpha = np.full_like(picture[..., :1], 51)
    Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / "a.png")
    expected = 0.2 * picture + 0.8 * 255
    assert np.abs(images.read_photo(tmp_path / "a.png") - expected).max() <= 1


def test_read_photo_converts_cmyk(tmp_path):
    """Full cyan ink is (0, 255, 255)."""
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(images.read_photo(tmp_path / "a.jpg").mean((0, 1)) - [0, 255, 255]).max() < 4


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(16) + b"\x10" + bytes(40)]
)
def test_read_photo_names_a_broken_file(tmp_path, content):
    """One line with the file's name."""
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: not a readable photograph") as error:
        images.read_photo(tmp_path / "broken.png")
    assert "\n" not in str(error.value)


def test_read_photo_names_a_truncated_and_a_missing_file(tmp_path, picture):
    """Half a file is not a photograph."""
    whole = images.encode_png(np.tile(picture, (8, 8, 1)))
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name in ("half.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            images.read_photo(tmp_path / name)


def test_png_round_trip(tmp_path, picture):
    """Bytes and files keep every pixel; the same picture gives the same bytes."""
    data = images.encode_png(picture)
    assert data == images.encode_png(picture.copy())
    np.testing.assert_array_equal(images.decode_image(data), picture)
    images.write_png(tmp_path / "new" / "a.png", picture)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), picture)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("data", [b"", b"abc"])
def test_decode_image_refuses_garbage(data):
    """Broken bytes are a user error."""
    with pytest.raises(ValueError, match="broken"):
        images.decode_image(data)


def test_tensors_round_and_clamp(picture):
    """uint8 -> [0, 1] -> uint8 is the identity; values in between are rounded, outside clamped."""
    tensor = images.to_tensor(picture)
    assert tensor.shape == (3, 12, 16) and tensor.dtype == torch.float32 and tensor.max() <= 1
    np.testing.assert_array_equal(images.to_uint8(tensor), picture)
    np.testing.assert_array_equal(images.to_uint8(tensor[None]), picture[None])
    odd = torch.tensor([-0.5, 1.5, 100.6 / 255]).reshape(3, 1, 1)
    assert images.to_uint8(odd).reshape(-1).tolist() == [0, 255, 101]


def test_resize_bicubic_is_pils(picture):
    """The antialiased bicubic of PIL."""
    expected = np.array(Image.fromarray(picture).resize((8, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.resize_bicubic(picture, (6, 8)), expected)


@pytest.mark.parametrize(
    "size", [(20, 33), (7, 50), (12, 16), (31, 5), (1, 1), (12, 40), (40, 16), (3, 80)]
)
def test_blocks_of_columns_have_the_bits_of_the_whole(monkeypatch, size):
    """Sizes that are no multiple of a block, of 8 and 16 bits; larger, smaller, and one of each."""
    pixels = np.random.default_rng(0).integers(0, 65536, (12, 16, 3)).astype(np.uint16)
    monkeypatch.setattr(images, "COLUMNS", 7)
    whole = Image.fromarray((pixels >> 8).astype(np.uint8)).resize(size[::-1], Image.BICUBIC)
    resized = images.resize_bicubic((pixels >> 8).astype(np.uint8), size)
    np.testing.assert_array_equal(resized, np.asarray(whole))
    deep = Image.fromarray(pixels[..., 0].astype(np.float32)).resize(size[::-1], Image.BICUBIC)
    np.testing.assert_array_equal(
        images.resize_plane(pixels[..., 0], size), np.asarray(deep).round().clip(0, 65535)
    )


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_shapes_are_checked(bad):
    """Anything but uint8 (H, W, 3) is refused with its type and shape."""
    with pytest.raises(ValueError, match="expected a uint8 image"):
        images.encode_png(bad)
