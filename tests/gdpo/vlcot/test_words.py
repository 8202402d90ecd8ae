"""The five words of a degradation against draws written by hand; levels are equally frequent."""

from collections import Counter
from typing import Any

import pytest

from gdpo.config import Degradation, DegradationOrder, SecondOrder
from gdpo.data.degrade import draw
from gdpo.seeds import numpy_generator
from gdpo.vlcot.words import BINS, LEVELS, amounts, degradation_words

REAL_ESRGAN = Degradation(
    first=DegradationOrder(
        resize_range=[0.15, 1.5],
        noise_range=[1.0, 30.0],
        poisson_scale_range=[0.05, 3.0],
        jpeg_range=[30.0, 95.0],
    ),
    second=SecondOrder(
        blur_prob=0.8,
        resize_range=[0.3, 1.2],
        noise_range=[1.0, 25.0],
        poisson_scale_range=[0.05, 2.5],
        jpeg_range=[30.0, 95.0],
    ),
)


def drawn(**changes: Any) -> dict[str, Any]:
    gaussian = {"kind": "iso", "sigma": [1.5, 1.5]}
    noise = {"kind": "gaussian", "strength": 6.0}
    order = {"blur": gaussian, "resize": {"scale": 0.5}, "noise": noise}
    return {"first": order, "second": order, "final": {"jpeg": 80}, **changes}


def test_the_words_of_a_draw_computed_by_hand() -> None:
    found = amounts(drawn())
    assert found["blur"] == pytest.approx((1.5**2 + 3.0**2) ** 0.5)  # the second at half size
    assert found["noise"] == pytest.approx(6 * 2**0.5)
    assert degradation_words(drawn()) == [
        "heavy blur",
        "downsample",
        "light noise",
        "medium compression",
        "downsample",
    ]


def test_one_order_a_sinc_two_axes_and_poisson() -> None:
    first = {
        "blur": {"kind": "sinc", "cutoff": 0.7},
        "resize": {"scale": 1.2},
        "noise": {"kind": "poisson", "strength": 1.1},
    }
    one = drawn(first=first, second=None)
    assert amounts(one) == pytest.approx({"blur": 2.0, "noise": 11.0, "compression": 20.0})
    assert degradation_words(one)[1::3] == ["upsample", "unchange"]
    first["blur"] = {"kind": "aniso", "sigma": [3.0, 4.0]}
    assert amounts(one)["blur"] == pytest.approx(12.5**0.5)
    assert amounts(drawn(first={**first, "blur": None}, second=None))["blur"] == 0


@pytest.mark.parametrize(
    ("ranges", "config"), [("released", Degradation()), ("real_esrgan", REAL_ESRGAN)]
)
def test_each_level_is_about_a_third_of_all_draws(ranges: Any, config: Degradation) -> None:
    words = [
        degradation_words(draw(config, numpy_generator("words", i)), ranges) for i in range(1500)
    ]
    for place in (0, 2, 3):
        counts = Counter(row[place].split()[0] for row in words)
        assert set(counts) == set(LEVELS)
        assert min(counts.values()) > 1500 * 0.28, (place, counts)


def test_an_edge_belongs_to_the_level_above_it() -> None:
    edge = BINS["released"].compression[0]
    assert degradation_words(drawn(final={"jpeg": 100 - edge}))[3] == "medium compression"
    assert degradation_words(drawn(final={"jpeg": 101 - edge}))[3] == "light compression"


def test_what_is_not_a_draw_is_named() -> None:
    with pytest.raises(ValueError, match=r"complete draw .* enlarge"):
        degradation_words({"enlarge": "area"})
