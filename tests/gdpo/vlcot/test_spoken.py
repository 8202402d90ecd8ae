"""What is said of held-out cuts, the constant answer, and the probe of what can be seen."""

from dataclasses import replace

import numpy as np
import pytest
from skimage import data

from gdpo.config import Degradation
from gdpo.data.degrade import draw
from gdpo.seeds import numpy_generator
from gdpo.vlcot.parse import Parsed
from gdpo.vlcot.spoken import constant_terms, cut, scores, share_right
from gdpo.vlcot.visible import probe
from tests import tiny

TRUE = ["light blur", "downsample", "medium noise", "light compression", "upsample"]


def test_the_constant_answer_is_the_most_frequent_term_of_each_place() -> None:
    terms = [["a", "x"], ["a", "y"], ["b", "x"], ["a", "z"]]
    assert constant_terms(terms) == ["a", "x"]
    right = share_right([constant_terms(terms)] * 4, terms)
    np.testing.assert_array_equal(right, [1, 0.5, 0.5, 0.5])


def test_a_cut_is_the_same_place_in_both_images() -> None:
    pair = replace(tiny.pair(0), degradation=draw(Degradation(), numpy_generator("cut", 0)))
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    one = cut(pair, 16, scale, "released", (0.0, 1.0))
    np.testing.assert_array_equal(one.hr, pair.hr[:16, -16:])
    np.testing.assert_array_equal(one.lr, pair.lr[: 16 // scale, -16 // scale :])
    with pytest.raises(ValueError, match="pair0: 32 x 32 pixels, a chain shows 64"):
        cut(pair, 64, scale, "released")


def test_the_scores_of_a_text_are_the_papers() -> None:
    said = "medium blur, downsample, heavy noise, light compression, upsample"
    chain = Parsed(
        text="",
        slots={"degradation": said, "rough_understand": "lions on a rock under the sky"},
        settled={},
        images=[],
        length=0,
        ended=True,
    )
    pair = replace(tiny.pair(0), degradation=draw(Degradation(), numpy_generator("cut", 0)))
    one = replace(cut(pair, 16, 4, "released"), terms=TRUE, tags=("lion", "rock", "sky", "cloud"))
    found = scores([chain], [one])
    assert (found["degradation"][0], found["understanding"][0], found["format"][0]) == (
        0.6,
        0.75,
        0,
    )


def noisy(count: int, seed: int) -> tuple[list[np.ndarray], list[list[str]]]:
    """Crops of a photograph with little or much noise, and a second term that is chance."""
    rng, photo = np.random.default_rng(seed), data.astronaut()
    images, terms = [], []
    for i in range(count):
        top, left = rng.integers(0, 480, 2)
        crop = photo[top : top + 16, left : left + 16] + rng.normal(0, (2, 25)[i % 2], (16, 16, 3))
        images.append(crop.clip(0, 255).astype(np.uint8))
        terms.append([("light noise", "heavy noise")[i % 2], str(rng.integers(2))])
    return images, terms


def test_the_probe_reads_what_can_be_seen_and_nothing_else() -> None:
    known, asked = noisy(200, 0), noisy(100, 1)
    found = probe(*known, asked[0])
    right = np.array(found) == np.array(asked[1])
    assert right[:, 0].mean() > 0.9 and 0.3 < right[:, 1].mean() < 0.7
    with pytest.raises(ValueError, match="sides of at least 8"):
        probe(*known, [np.zeros((4, 16, 3), np.uint8)])
