"""The describer of pixels on pictures whose answer is known, and captions that are given."""

import numpy as np
import pytest
from skimage import data

from gdpo.vlcot.describe import WORDS, describe, given
from gdpo.vlcot.vocabulary import tiny


def gradient(axis: int, low: int = 0, high: int = 255) -> np.ndarray:
    ramp = np.broadcast_to(np.linspace(low, high, 64)[:, None], (64, 64))
    picture = ramp if axis == 0 else ramp.T
    return np.repeat(picture[..., None], 3, 2).astype(np.uint8)


def test_a_plain_picture() -> None:
    found = describe(np.full((64, 64, 3), (20, 150, 30), np.uint8))
    assert found.rough == "a dim smooth picture, mostly green"
    assert found.tags == ("dim", "smooth", "green")
    assert found.middle.startswith(found.rough) and found.middle.endswith("no lines")
    assert found.final.startswith(found.middle)


def test_lines_light_and_places() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::8] = stripes[1::8] = 255
    assert "horizontal lines" in describe(stripes).middle
    assert "vertical lines" in describe(stripes.transpose(1, 0, 2).copy()).middle
    assert describe(gradient(0)).final.split(", ")[-2] == "brighter at the bottom"
    assert describe(gradient(1)[:, ::-1].copy()).final.split(", ")[-2] == "brighter at the left"
    assert describe(gradient(0, 0, 40)).tags[0] == "dark"
    assert describe(gradient(0, 200, 255)).tags[0] == "bright"


def test_noise_in_one_half_is_where_the_detail_is() -> None:
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[:, 32:] = np.random.default_rng(0).integers(0, 255, (64, 32, 1))
    found = describe(picture)
    assert found.final.endswith("most detail at the right")
    assert "busy" in found.rough and "strong contrast" in found.middle


def test_every_word_is_in_the_vocabulary_and_the_same_picture_gives_the_same_words() -> None:
    vocabulary = tiny(WORDS, 8, (16, 32, 64), factor=8)
    photo = data.astronaut()
    for top in range(0, 448, 64):
        crop = photo[top : top + 64, 100:164]
        found = describe(crop)
        assert found == describe(crop.copy())
        pieces = vocabulary.text.pieces(vocabulary.text.encode(found.final))
        assert "".join(pieces).strip() == found.final
        assert all(tag in found.rough.replace(",", "").split() for tag in found.tags)


def test_small_and_wrong_pictures() -> None:
    assert describe(np.zeros((1, 1, 3), np.uint8)).tags == ("dark", "smooth", "black")
    with pytest.raises(ValueError, match="uint8"):
        describe(np.zeros((8, 8, 3), np.float32))


def test_captions_are_data_and_a_missing_one_is_named() -> None:
    captions = {"rough": "a rock", "middle": "a  rock\nin water", "final": "a wet rock"}
    found = given("0801.png", captions, "rock, water,, sea ")
    assert found.middle == "a rock in water" and found.tags == ("rock", "water", "sea")
    assert given("0801.png", captions, "").tags == ()
    with pytest.raises(ValueError, match=r"0801\.png: no final caption"):
        given("0801.png", {**captions, "final": " "}, "rock")
