"""gdpo.data.scan: which photographs are used, and why the others are not."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from gdpo.data.scan import Scan, content_hash, examine, scan
from gdpo.data.sources import Photo, photographs
from gdpo.images import encode_png, resize_bicubic, write_png


def _image(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _photo(name: str, seed: int, resize: int | None = None, **size: int) -> Photo:
    return Photo(name, f"{name}.png", resize=resize, read=lambda: encode_png(_image(seed, **size)))


@pytest.fixture
def folder(tmp_path):
    """Two good photographs, a copy of one, a small one, a broken one, one of floats and one of the
    same name.
    """
    write_png(tmp_path / "photos/b.png", _image(0))
    write_png(tmp_path / "photos/deep/a.png", _image(1))
    write_png(tmp_path / "photos/copy.png", _image(0))
    write_png(tmp_path / "photos/small.png", _image(2, height=8))
    write_png(tmp_path / "photos/deep/a.bmp", _image(3))
    (tmp_path / "photos/broken.jpg").write_bytes(b"not a photograph")
    cv2.imwrite(str(tmp_path / "photos/float.tif"), np.ones((20, 24), np.float32))
    return tmp_path


def _scan(folder, allowed: float = 0.5) -> Scan:
    photos = photographs("photos", "train", folder)
    return scan((examine(photo, 16) for photo in photos), len(photos), allowed)


def test_a_scan_has_every_reason(folder):
    """Used ones once, with size and hash; skipped ones with the reason and the file."""
    found = _scan(folder)
    assert [(f.photo.name, f.height, f.width, f.sha256) for f in found.used] == [
        ("b", 20, 24, content_hash(_image(0))),
        ("deep__a", 20, 24, content_hash(_image(3))),
    ]
    reasons = [(row["name"], row["reason"]) for row in found.skipped]
    assert reasons == [
        ("broken", "unreadable"),
        ("copy", "duplicate"),
        ("deep__a", "same name"),
        ("float", "not RGB"),
        ("small", "too small"),
    ]
    assert found.counts() == {
        "used": 2,
        "duplicate": 1,
        "not RGB": 1,
        "same name": 1,
        "too small": 1,
        "unreadable": 1,
    }
    details = {row["reason"]: row["detail"] for row in found.skipped}
    assert (
        "broken.jpg" in details["unreadable"]
        and "24x8" in details["too small"]
        and details["duplicate"].endswith("as b")
    )
    assert "float.tif" in details["not RGB"] and "a.png: has the name of" in details["same name"]


@pytest.mark.parametrize("allowed", [0.0, 0.2, 0.42])
def test_too_many_failures_name_the_first_bad_file(folder, allowed):
    """Three of seven fail (copies and names are no failures): 3/7 is enough, less is not."""
    with pytest.raises(ValueError, match=r"broken\.jpg.*degrade\.max_failures"):
        _scan(folder, allowed)
    assert len(_scan(folder, 3 / 7).used) == 2


def test_evaluation_photographs_may_not_be_trained_on():
    """The same pixels under another name are found, also when one side was resized; both names are
    given.
    """
    held_out = [examine(_photo("cat", 1), 16)]
    for resize in (None, 16):
        with pytest.raises(ValueError, match=r"a\.png: is the evaluation photograph cat\.png"):
            scan([examine(_photo("a", 1, resize), 16)], 1, 1.0, held_out)
    small = Photo("a", "a.png", read=lambda: encode_png(resize_bicubic(_image(1), (16, 19))))
    with pytest.raises(ValueError, match=r"is the evaluation photograph cat\.png"):
        scan([examine(small, 16)], 1, 1.0, [examine(_photo("cat", 1, 16), 16)])


def test_a_copy_of_an_evaluation_photograph_may_not_be_trained_on():
    """A smaller, recompressed or brighter copy is found; another photograph is not."""
    shipped = Path(__file__).parents[3] / "assets/photos/kodak"
    held_out = [examine(Photo("held", shipped / "kodim01.webp"), 16)]
    pixels = held_out[0].photo.load()
    jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    brighter = np.clip(pixels * 1.1 + 8, 0, 255).astype(np.uint8)
    half = resize_bicubic(pixels, (192, 192))
    for copy in (jpeg, encode_png(brighter), encode_png(half)):
        finding = examine(Photo("a", "a.png", read=lambda copy=copy: copy), 16)
        with pytest.raises(ValueError, match=r"a\.png: shows the same picture as .*kodim01"):
            scan([finding], 1, 1.0, held_out)
    other = examine(Photo("other", shipped / "kodim02.webp"), 16)
    assert scan([other], 1, 0.0, held_out).used == [other]


def test_size_counts_after_resizing():
    """A large photograph that is made small is too small; the hash is that of what is used."""
    assert examine(_photo("a", 1, 12), 16).reason == "too small"
    found = examine(_photo("a", 1, 16), 16)
    assert (found.height, found.width) == (16, 19)
    assert (
        found.sha256
        == content_hash(resize_bicubic(_image(1), (16, 19)))
        != found.original
        == content_hash(_image(1))
    )


def test_a_small_photograph_that_is_enlarged_is_too_small():
    """It has no more detail for that."""
    found = examine(_photo("a", 1, 32, height=15), 16)
    assert found.reason == "too small" and "24x15" in found.detail


def test_a_name_that_is_no_text_and_a_link_to_nothing_are_listed(tmp_path):
    """Neither ends the stage, neither is passed over in silence."""
    write_png(tmp_path / "photos/a.png", _image(0))
    write_png(tmp_path / "x.png", _image(1))
    (tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"photos/b\xff.png"))
    (tmp_path / "photos/gone.png").symlink_to("nowhere.png")
    found = _scan(tmp_path, 1.0)
    assert [one.photo.name for one in found.used] == ["a"]
    assert [(row["name"], row["reason"]) for row in found.skipped] == [
        ("b\\udcff", "unreadable"),
        ("gone", "unreadable"),
    ]
    assert found.skipped[0]["detail"].endswith("b\\udcff.png: the name is not UTF-8")


def test_a_failing_store_is_no_fault_of_the_photograph():
    """The stage stops rather than losing photographs to a bad connection."""

    def read() -> bytes:
        raise OSError("s3://b/a.png: the store cannot be reached")

    with pytest.raises(OSError, match="cannot be reached"):
        examine(Photo("a", "s3://b/a.png", read=read), 16)


def test_content_hash_sees_shape_and_pixels():
    """The same bytes in another shape are another picture."""
    image = _image(0)
    assert content_hash(image) == content_hash(np.asfortranarray(image))
    assert content_hash(image) != content_hash(image.reshape(24, 20, 3))
