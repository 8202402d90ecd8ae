"""Folders paired by name: what is a pair, and every wrong file named at once."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gdpo.metrics.folders import mean, method_images, score_pair, shown
from gdpo.pictures import read


def write(path: Path, size: tuple[int, int] = (12, 14), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "sr", tmp_path / "hr"


def test_names_pair_up_to_the_suffix_and_other_files_do_not_count(sets: tuple[Path, Path]) -> None:
    sr, hr = sets
    for name in ("b.jpg", "a.PNG", "x.y.webp", "deeper/c.png", ".hidden.png"):
        write(sr / name)
    (sr / "notes.txt").write_text("no image")
    for name in ("a.bmp", "b.png", "x.y.tif"):
        write(hr / name)
    pairs = method_images(sr, hr)
    assert [
        (p.name, p.image.name, p.reference.name if p.reference else "", p.size) for p in pairs
    ] == [
        ("a", "a.PNG", "a.bmp", (12, 14)),
        ("b", "b.jpg", "b.png", (12, 14)),
        ("x.y", "x.y.webp", "x.y.tif", (12, 14)),
    ]
    assert [pair.reference for pair in method_images(sr, None)] == [None] * 3


def test_every_wrong_file_is_named_in_one_line(sets: tuple[Path, Path]) -> None:
    sr, hr = sets
    for i in range(9):
        write(hr / f"lost{i}.png")
    for name, size in (
        ("small", (6, 7)),
        ("extra", (12, 14)),
        ("fine", (12, 14)),
        ("broken", (12, 14)),
    ):
        write(sr / f"{name}.png", size)
        if name != "extra":
            write(hr / f"{name}.png")
    (sr / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as caught:
        method_images(sr, hr)
    assert str(caught.value) == (
        f"{sr} and {hr}: missing in {sr}: lost0, lost1, lost2, lost3, lost4 and 4 more; "
        f"without a reference in {hr}: extra; unreadable: {sr / 'broken.png'}: not a readable "
        "photograph (not an image of a known kind); "
        "of another size than the reference: small (6x7, reference 12x14)"
    )


def test_a_folder_must_be_there_have_images_and_one_of_each_name(tmp_path: Path) -> None:
    sr = tmp_path / "sr"
    with pytest.raises(ValueError, match="sr: no such folder"):
        method_images(sr, None)
    sr.mkdir()
    with pytest.raises(ValueError, match="sr: no image in this folder"):
        method_images(sr, None)
    write(sr / "a.png")
    write(sr / "a.jpg")
    with pytest.raises(ValueError, match="sr: two files of one name: a"):
        method_images(sr, None)


def test_sizes_are_those_of_the_upright_photograph(sets: tuple[Path, Path]) -> None:
    sr, hr = sets
    write(hr / "a.png", (12, 14))
    sr.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (14, 12)).save(sr / "a.jpg", exif=exif)
    assert [pair.size for pair in method_images(sr, hr)] == [(12, 14)]
    deep = np.full((14, 12, 3), 30000, np.uint16)
    assert cv2.imwrite(str(sr / "a.tiff"), deep)
    (sr / "a.jpg").unlink()
    assert [pair.size for pair in method_images(sr, hr)] == [(12, 14)]


def test_a_pair_is_scored(sets: tuple[Path, Path]) -> None:
    sr, hr = sets
    write(sr / "a.png"), write(hr / "a.png")
    (pair,) = method_images(sr, hr)
    assert score_pair(pair, ["psnr_y", "ssim_y"]) == {
        "psnr_y": pytest.approx(80),
        "ssim_y": pytest.approx(1),
    }
    pair.image.write_bytes(pair.image.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.png: not a readable photograph"):
        score_pair(pair, ["psnr_y"])


def test_names_are_safe_on_a_terminal(sets: tuple[Path, Path]) -> None:
    assert shown("a\x1b[31m\n\udcff é") == "a\\x1b[31m\\n\\udcff é"
    sr, hr = sets
    write(sr / "\x1b[2Ja.png"), write(hr / "b\x07.png")
    with pytest.raises(ValueError) as caught:
        method_images(sr, hr)
    assert str(caught.value).isprintable() and "\\x1b[2Ja" in str(caught.value)


def test_a_mean_leaves_no_image_out() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert mean([]) is None
    assert mean([1.0, float("nan")]) is None


def test_composed_and_decomposed_names_are_the_same(sets: tuple[Path, Path]) -> None:
    """macOS writes the letter and the accent apart."""
    sr, hr = sets
    write(sr / "cafe\u0301.png")
    write(hr / "caf\u00e9.png")
    assert [pair.name for pair in method_images(sr, hr)] == ["caf\u00e9"]
    write(sr / "caf\u00e9.png")
    with pytest.raises(ValueError, match="two files of one name: caf\u00e9"):
        method_images(sr, hr)


def test_a_link_that_leads_nowhere_is_named(sets: tuple[Path, Path]) -> None:
    sr, _ = sets
    write(sr / "a.png")
    (sr / "b.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"unreadable: .*b\.png"):
        method_images(sr, None)


def test_an_enlarged_photograph_of_12_megapixels_can_be_paired(sets: tuple[Path, Path]) -> None:
    """Pillow by itself refuses 192 megapixels; of one bit each, they are written quickly."""
    for folder in sets:
        folder.mkdir()
    Image.new("1", (16000, 12000)).save(sets[0] / "large.png", compress_level=1)
    shutil.copy(sets[0] / "large.png", sets[1])
    assert [pair.size for pair in method_images(*sets)] == [(16000, 12000)]


def test_why_a_file_is_unreadable_is_said(
    sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sets[0] / "large.bmp", (50, 40))
    monkeypatch.setattr(read, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"large\.bmp: .*\(50x40 pixels are more than the"):
        read.read_picture(sets[0] / "large.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"unreadable: .*large\.bmp: .*exceeds limit"):
        method_images(sets[0], None)
