"""gdpo.data.sources: names and places of photographs, and the patches cut from them."""

from collections import Counter

import numpy as np
import pytest

from gdpo.data.scan import content_hash
from gdpo.data.sources import (
    Photo,
    centred_tiles,
    named,
    part_of,
    photographs,
    resized,
    sliding_windows,
)
from gdpo.images import encode_png, resize_bicubic, write_png


def _image(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_folder_is_listed_by_name(tmp_path):
    """Recursively, image files only, sorted; a name is one path segment, the place in the folder is
    kept.
    """
    write_png(tmp_path / "photos/b.png", _image(0))
    write_png(tmp_path / "photos/deep/a.png", _image(1))
    (tmp_path / "photos/broken.JPG").write_bytes(b"not a photograph")
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/._b.png").write_bytes(b"a Finder file")
    found = photographs("photos", "train", tmp_path)
    assert [(photo.name, photo.source, photo.file) for photo in found] == [
        ("b", "photos", "b.png"),
        ("broken", "photos", "broken.JPG"),
        ("deep__a", "photos", "deep/a.png"),
    ]
    np.testing.assert_array_equal(found[2].load(), _image(1))


def test_a_name_does_not_depend_on_the_other_files():
    """Files that differ in their suffix share a name, in the order of their paths."""
    assert named(["x.png", "d/x.png"], "") == [("d__x", "d/x.png"), ("x", "x.png")]
    assert named(["x.png", "x.bmp", "d/x.png"], "") == [
        ("d__x", "d/x.png"),
        ("x", "x.bmp"),
        ("x", "x.png"),
    ]


def test_bytes_from_elsewhere_and_resizing():
    """`read` gives the bytes; the shorter side becomes `resize`, by antialiased bicubic."""
    photo = Photo("a", "s3://bucket/a.png", resize=10, read=lambda: encode_png(_image(0)))
    np.testing.assert_array_equal(photo.original(), _image(0))
    np.testing.assert_array_equal(photo.load(), resize_bicubic(_image(0), (10, 12)))
    assert resized(_image(0), None) is not None and resized(_image(0), 20).shape == (20, 24, 3)
    with pytest.raises(ValueError, match=r"^s3://bucket/b\.png: not a readable photograph"):
        Photo("b", "s3://bucket/b.png", read=lambda: b"half").load()


def test_parts_are_even_and_do_not_move():
    """By the hash of the name alone: about as many in each, and any other name changes nothing."""
    names = [f"photo{i}" for i in range(2000)]
    parts = ["00", "01", "02", "03", "04"]
    found = Counter(part_of(name, parts) for name in names)
    assert set(found) == set(parts) and all(330 < count < 470 for count in found.values())
    assert [part_of(name, ["a", "b"]) for name in ("astronaut", "ihc", "retina")] == ["b", "a", "b"]
    assert {part_of(name, ["only"]) for name in names} == {"only"}


@pytest.mark.parametrize("spec", ["nowhere", "empty"])
def test_missing_and_empty_folders_are_named(tmp_path, spec):
    """With the key they come from."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"{spec}.*degrade\.evaluation"):
        photographs(spec, "evaluation", tmp_path)


def test_scikit_image_photographs_are_disjoint_and_in_colour():
    """The ones that ship inside the package, without a network."""
    train, evaluation = (
        photographs("scikit-image", "train"),
        photographs("scikit-image", "evaluation"),
    )
    assert [p.name for p in train] == [
        "astronaut",
        "hubble_deep_field",
        "ihc",
        "motorcycle_left",
        "retina",
    ]
    assert [p.name for p in evaluation] == ["chelsea", "coffee", "rocket"]
    hashes = set()
    for photo in train + evaluation:
        pixels = photo.load()
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 192
        assert np.ptp(pixels.astype(int), axis=-1).max() > 20
        hashes.add(content_hash(pixels))
    assert len(hashes) == 8


def test_sliding_windows():
    """Every stride from the top left, none over the edge."""
    boxes = sliding_windows(20, 24, 16, 4)
    assert [(b.top, b.left) for b in boxes] == [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]
    assert all(b.height == b.width == 16 for b in boxes)
    assert sliding_windows(15, 24, 16, 4) == []


def test_centred_tiles():
    """As many as fit, without overlap, the rest shared by both sides; labels tell row and column
    apart.
    """
    tiles = centred_tiles(20, 26, 8)
    assert [label for label, _ in tiles] == ["00", "01", "02", "10", "11", "12"]
    assert [(box.top, box.left) for _, box in tiles] == [
        (2, 1),
        (2, 9),
        (2, 17),
        (10, 1),
        (10, 9),
        (10, 17),
    ]
    labels = [label for label, _ in centred_tiles(12, 120, 1)]
    assert len(set(labels)) == len(labels) == 1440 and labels[0] == "000000"


def test_keys_of_a_bucket_are_text():
    """No key is changed on the way back, and a key that marks a folder is no photograph."""
    keys = ["a//b.png", "./c.png", "d/../e.png", "/f.png", "folder.png/", "g/", "h/.i.png"]
    assert named(keys, "s3://bucket") == [
        (".__c", "./c.png"),
        ("__f", "/f.png"),
        ("a____b", "a//b.png"),
        ("d__..__e", "d/../e.png"),
    ]
    with pytest.raises(ValueError, match="no photograph here"):
        named(["folder.png/"], "s3://bucket")


def test_photographs_behind_linked_folders_are_listed(tmp_path):
    write_png(tmp_path / "elsewhere/b.png", _image(1))
    write_png(tmp_path / "photos/a.png", _image(0))
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    listed = photographs("photos", "train", tmp_path)
    assert [photo.file for photo in listed] == ["a.png", "more/b.png"]
    np.testing.assert_array_equal(listed[1].load(), _image(1))
