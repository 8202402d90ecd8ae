"""What is read besides 8-bit RGB: colour profiles, alpha, 16 bits, EXIF."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gdpo.images import read_photo
from gdpo.pictures.profiles import srgb_profile
from gdpo.pictures.read import read_picture
from tests.gdpo.pictures.icc import managed, profile


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth colour picture, 12x16, without symmetry."""
    y, x = np.mgrid[:12, :16]
    return np.stack([10 * x + 20, 15 * y + 30, 5 * (x + y) + 40], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_wide_profile_is_converted(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    options |= {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, icc_profile=profile(), **options)
    expected = managed(picture, profile())
    assert np.abs(expected - picture).max() > 10
    found = read_photo(path)
    np.testing.assert_allclose(found.mean((0, 1)), expected.mean((0, 1)), atol=0.3)
    assert np.abs(found - expected).max() <= (9 if suffix == "jpg" else 0)


def test_profiles_that_say_nothing_change_no_pixel(tmp_path: Path, picture: np.ndarray) -> None:
    """sRGB's own, a broken one, and one for inks on RGB pixels."""
    gray = bytearray(profile())
    gray[16:20] = b"CMYK"
    for icc in (srgb_profile(), b"no profile", bytes(gray)):
        Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=icc)
        np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)


def test_palette_and_alpha_have_profiles_too(tmp_path: Path, picture: np.ndarray) -> None:
    few = Image.fromarray(picture).quantize(16)
    few.save(tmp_path / "a.png", icc_profile=profile())
    expected = managed(np.array(few.convert("RGB")), profile())
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), expected)
    alpha = np.full_like(picture[..., 0], 200)
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "b.png", icc_profile=profile())
    found = read_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(found.rgb, managed(picture, profile()))
    np.testing.assert_array_equal(found.alpha, alpha)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_kept_on_demand(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    deep = picture.astype(np.uint16) * 257 + 77
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep[..., ::-1])
    np.testing.assert_array_equal(read_picture(tmp_path / f"a.{suffix}", deep=True).rgb, deep)
    assert read_picture(tmp_path / f"a.{suffix}").rgb.dtype == np.uint8
    Image.fromarray(picture).save(tmp_path / "eight.png")
    eight = read_picture(tmp_path / "eight.png", deep=True)
    np.testing.assert_array_equal(eight.rgb, picture.astype(np.uint16) * 257)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_16_bit_file_is_read_as_an_8_bit_one(
    tmp_path: Path, picture: np.ndarray, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "eight.png", exif=exif)
    data = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    eight = (tmp_path / "eight.png").read_bytes()
    start = eight.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(eight[start : start + 4], "big")
    (tmp_path / "deep.png").write_bytes(data[:33] + eight[start:end] + data[33:])
    np.testing.assert_array_equal(
        read_photo(tmp_path / "deep.png"), read_photo(tmp_path / "eight.png")
    )


def test_exif_keeps_what_describes_the_photograph(tmp_path: Path, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[271], exif[256] = 6, "a maker", 999
    exif.get_ifd(0x8769)[0x9003] = "2026:11:29 20:00:00"
    exif.get_ifd(0x8769)[0xA002] = 999
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    found = read_picture(tmp_path / "a.jpg")
    assert found.rgb.shape == (16, 12, 3) and found.dpi == (300, 300)
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept[271] == "a maker" and 0x0112 not in kept and 256 not in kept
    assert kept.get_ifd(0x8769) == {0x9003: "2026:11:29 20:00:00"}
    assert kept.get_ifd(0x8825) == {1: "N"}


def test_an_animation_says_how_many_pictures_it_has(tmp_path: Path, picture: np.ndarray) -> None:
    frames = [Image.fromarray(picture), Image.fromarray(picture[::-1].copy())]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    found = read_picture(tmp_path / "a.webp")
    assert found.frames == 2
    np.testing.assert_array_equal(found.rgb, picture)
