"""gdpo.data.sources: which photographs are used, and why the others are not."""

import numpy as np
import pytest

from gdpo.data.sources import Census, centred_tiles, content_hash, photographs, sliding_windows, usable
from gdpo.images import write_png


def _image(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A tree with two good photographs, a copy of one, a small one, a broken one and a file that is none."""
    write_png(tmp_path / "photos/b.png", _image(0))
    write_png(tmp_path / "photos/deep/a.png", _image(1))
    write_png(tmp_path / "photos/copy.png", _image(0))
    write_png(tmp_path / "photos/small.png", _image(2, height=8))
    (tmp_path / "photos/broken.jpg").write_bytes(b"not a photograph")
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/._b.png").write_bytes(b"a Finder file")
    return tmp_path


def test_folder_is_listed_by_name(folder):
    """Recursively, image files only, sorted; a name is one path segment."""
    names = [photo.name for photo in photographs("photos", "train", folder)]
    assert names == ["b", "broken", "copy", "deep__a", "small"]


def test_names_that_differ_only_in_suffix_keep_it(tmp_path):
    """x.png and x.bmp stay two photographs."""
    write_png(tmp_path / "x.png", _image(0))
    (tmp_path / "x.bmp").write_bytes(b"")
    assert [photo.name for photo in photographs(".", "train", tmp_path)] == ["x.bmp", "x.png"]


def test_census_has_every_reason(folder):
    """Used ones are yielded once, skipped ones listed with the reason and the file."""
    census = Census()
    used = [photo.name for photo, _ in usable(photographs("photos", "train", folder), 16, 0.5, census)]
    assert used == ["b", "deep__a"]
    assert {row["name"]: row["reason"] for row in census.skipped} == {
        "broken": "unreadable",
        "copy": "duplicate",
        "small": "too small",
    }
    assert census.counts() == {"used": 2, "duplicate": 1, "too small": 1, "unreadable": 1}
    details = {row["name"]: row["detail"] for row in census.skipped}
    assert "broken.jpg" in details["broken"] and "24x8" in details["small"] and "b" in details["copy"]


@pytest.mark.parametrize("allowed", [0.0, 0.2, 0.39])
def test_too_many_failures_name_the_first_bad_file(folder, allowed):
    """Two of five fail (the copy is no failure): 0.4 is enough, less is not."""
    with pytest.raises(ValueError, match=r"broken\.jpg.*degrade\.max_failures"):
        list(usable(photographs("photos", "train", folder), 16, allowed, Census()))
    assert len(list(usable(photographs("photos", "train", folder), 16, 0.4, Census()))) == 2


def test_evaluation_photographs_may_not_be_trained_on(folder):
    """The same pixels under another name are found, and both names given."""
    held_out = {content_hash(_image(1)): "cat"}
    with pytest.raises(ValueError, match=r"a\.png: is the evaluation photograph cat too"):
        list(usable(photographs("photos", "train", folder), 16, 1.0, Census(), held_out))


@pytest.mark.parametrize("spec", ["nowhere", "empty"])
def test_missing_and_empty_folders_are_named(tmp_path, spec):
    """With the key they come from."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"{spec}: .*degrade\.evaluation"):
        photographs(spec, "evaluation", tmp_path)


def test_scikit_image_photographs_are_disjoint_and_in_colour():
    """The ones that ship inside the package, without a network."""
    train, evaluation = photographs("scikit-image", "train"), photographs("scikit-image", "evaluation")
    assert [p.name for p in train] == ["astronaut", "hubble_deep_field", "ihc", "motorcycle_left", "retina"]
    assert [p.name for p in evaluation] == ["chelsea", "coffee", "rocket"]
    hashes = set()
    for photo in train + evaluation:
        pixels = photo.load()
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 192
        assert np.ptp(pixels.astype(int), axis=-1).max() > 20
        hashes.add(content_hash(pixels))
    assert len(hashes) == 8


def test_content_hash_sees_shape_and_pixels():
    """The same bytes in another shape are another picture."""
    image = _image(0)
    assert content_hash(image) == content_hash(np.asfortranarray(image))
    assert content_hash(image) != content_hash(image.reshape(24, 20, 3))


def test_sliding_windows():
    """Every stride from the top left, none over the edge."""
    boxes = sliding_windows(20, 24, 16, 4)
    assert [(b.top, b.left) for b in boxes] == [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]
    assert all(b.height == b.width == 16 for b in boxes)
    assert sliding_windows(15, 24, 16, 4) == []


def test_centred_tiles():
    """As many as fit, without overlap, the rest shared by both sides; labels tell row and column apart."""
    tiles = centred_tiles(20, 26, 8)
    assert [label for label, _ in tiles] == ["00", "01", "02", "10", "11", "12"]
    assert [(box.top, box.left) for _, box in tiles] == [(2, 1), (2, 9), (2, 17), (10, 1), (10, 9), (10, 17)]
    labels = [label for label, _ in centred_tiles(12, 120, 1)]
    assert len(set(labels)) == len(labels) == 1440 and labels[0] == "000000"
