"""What is written can be read again: pixels, alpha, profile, EXIF, resolution."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdpo.pictures.profiles import srgb_profile
from gdpo.pictures.read import Picture, read_picture
from gdpo.pictures.write import FORMATS, check_format, write_picture

ROWS, COLUMNS = np.mgrid[:24, :32]
RGB = np.stack([5 * COLUMNS + 20, 8 * ROWS + 30, 3 * (COLUMNS + ROWS) + 40], -1).astype(np.uint8)
ALPHA = (RGB[..., 0] // 2 + 100).astype(np.uint8)


def picture() -> Picture:
    exif = Image.Exif()
    exif[271] = "a maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:11:29 20:00:00"
    return Picture(RGB, None, exif.tobytes(), (300.0, 150.0))


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_keeps_what_it_can(tmp_path: Path, suffix: str) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    path = tmp_path / f"a{suffix}"
    write_picture(path, picture())
    found = read_picture(path)
    lossless = suffix in (".png", ".webp", ".tif", ".tiff")
    assert np.abs(found.rgb.astype(int) - RGB).max() <= (0 if lossless else 6)
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept[271] == "a maker" and kept.get_ifd(0x8769)[0x9003].startswith("2026")
    with Image.open(path) as image:
        assert image.info["icc_profile"] == srgb_profile()
    if suffix not in (".webp", ".avif", ".heic"):
        assert found.dpi == pytest.approx((300, 150), abs=0.1)
    first = path.read_bytes()
    write_picture(path, picture())
    assert path.read_bytes() == first


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif", ".jpg"])
def test_alpha_is_kept_or_laid_over_white(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a{suffix}", replace(picture(), alpha=ALPHA))
    found = read_picture(tmp_path / f"a{suffix}")
    if suffix == ".jpg":
        white = (RGB * (ALPHA / 255.0)[..., None]) + 255 - ALPHA[..., None]
        assert found.alpha is None and np.abs(found.rgb - white).mean() < 2
    else:
        assert found.alpha is not None
        assert np.abs(found.alpha.astype(int) - ALPHA).max() <= (6 if suffix == ".avif" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_16_bits(tmp_path: Path, suffix: str, alpha: np.ndarray | None) -> None:
    deep = RGB.astype(np.uint16) * 257 + 3
    deep_alpha = None if alpha is None else alpha.astype(np.uint16) * 250
    path = tmp_path / f"a{suffix}"
    write_picture(path, replace(picture(), rgb=deep, alpha=deep_alpha))
    found = read_picture(path, deep=True)
    np.testing.assert_array_equal(found.rgb, deep)
    assert (found.alpha is None) == (alpha is None)
    if deep_alpha is not None:
        np.testing.assert_array_equal(found.alpha, deep_alpha)
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept[271] == "a maker" and found.dpi == pytest.approx((300, 150), abs=0.1)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == srgb_profile()


@pytest.mark.parametrize(
    ("name", "size", "deep", "says"),
    [
        ("a.gif", (9, 9), False, r"a\.gif: unknown extension; use one of \.png"),
        ("a.webp", (9, 16384), False, r"a\.webp: WEBP holds at most 16383 pixels a side"),
        ("a.JPG", (65501, 9), False, r"a\.JPG: JPEG holds at most 65500"),
        ("a.jpg", (9, 9), True, r"a\.jpg: holds 8 bits only; for 16 use one of \.png"),
    ],
)
def test_what_a_format_cannot_hold_is_said(
    name: str, size: tuple[int, int], deep: bool, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        check_format(Path(name), *size, deep=deep)


def test_without_the_plugin_heic_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("read", "write"):
        monkeypatch.setattr(f"gdpo.pictures.{module}.can_heif", lambda: False)
    with pytest.raises(ValueError, match=r"a.heic: is HEIC, .*`pip install 'gdpo-sr\[heic\]'`"):
        check_format(tmp_path / "a.heic", 8, 8)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    with pytest.raises(ValueError, match=r"a.heic: not a readable photograph \(is HEIC, "):
        read_picture(tmp_path / "a.heic")
