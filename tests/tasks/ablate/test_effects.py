"""Effects of an ablation, with intervals over photographs and repeats, and their signs."""

import math

import numpy as np
import pytest

from gdpo.evaluate.statistics import paired_difference
from tasks.ablate.effects import (
    AGREES,
    DISAGREES,
    UNCLEAR,
    effect,
    over_repeats,
    photographs_widen,
    sign,
)


def test_an_effect_of_many_equal_repeats_is_the_paired_difference_over_images() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, (9, 1, 4)), rng.normal(0, 1, (9, 1, 4))
    known = paired_difference(a[:, 0], b[:, 0])
    ours = effect(a.repeat(3, axis=1), b)
    for name in ("mean", "standard_error", "low", "high", "p"):
        assert ours[name] == pytest.approx(getattr(known, name)), name
    assert ours["repeats"] == pytest.approx([known.mean] * 3)


def test_repeats_that_differ_widen_the_interval() -> None:
    same = np.ones((20, 3, 2)) + np.random.default_rng(0).normal(0, 0.01, (20, 1, 1))
    spread = same + np.array([-2.0, 0.0, 2.0])[None, :, None]
    zero = np.zeros((20, 1, 2))
    assert effect(same, zero)["distinguishable"] and not effect(spread, zero)["distinguishable"]
    assert effect(spread, zero)["repeats"] == pytest.approx([-1, 1, 3], abs=0.1)


def test_a_single_image_has_no_interval_and_no_difference_is_none() -> None:
    one = effect(np.ones((1, 3, 2)), np.zeros((1, 1, 2)))
    assert one["low"] is None and not one["distinguishable"] and one["mean"] == 1
    none = effect(np.ones((4, 3, 2)), np.ones((4, 1, 2)))
    assert (none["low"], none["high"], none["p"], none["distinguishable"]) == (0, 0, 1, False)
    assert effect(np.ones((4, 3, 2)), np.zeros((4, 1, 2)))["distinguishable"]


@pytest.mark.parametrize(
    ("ours", "better", "papers", "papers_better", "expected"),
    [
        (0.1, True, 0.2, True, AGREES),
        (-0.1, True, 0.2, True, DISAGREES),
        (-0.1, False, 0.2, True, AGREES),  # NIQE falls where MUSIQ rises
        (-0.1, False, -0.2, False, AGREES),
        (0.1, True, -0.2, False, AGREES),
        (0.1, True, 0.0, True, None),
    ],
)
def test_signs(
    ours: float, better: bool, papers: float, papers_better: bool, expected: str | None
) -> None:
    assert sign({"mean": ours, "distinguishable": True}, better, papers, papers_better) == expected
    unclear = sign({"mean": ours, "distinguishable": False}, better, papers, papers_better)
    assert unclear == (None if expected is None else UNCLEAR)


def test_photographs_as_the_unit_widen_the_error() -> None:
    """Two images of each photograph, alike: the error is that of half as many, sqrt(2) times as
    large.
    """
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (200, 1, 1)).repeat(2, axis=0)
    sources = [f"p{i // 2}" for i in range(400)]
    assert photographs_widen([(a, np.zeros_like(a))], sources)[1] == pytest.approx(
        math.sqrt(2), rel=0.01
    )
    apart = rng.normal(0, 1, (400, 3, 2))
    assert photographs_widen([(apart, np.zeros_like(apart))], [str(i) for i in range(400)])[
        1
    ] == pytest.approx(1, rel=1e-6)
    assert len(photographs_widen([(apart, np.zeros_like(apart))], ["one"] * 400)) == 0


def test_an_effect_over_repeats_alone_is_students() -> None:
    found = over_repeats(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert found["standard_error"] == pytest.approx(1 / math.sqrt(3)) and found["repeats"] == [
        1,
        2,
        3,
    ]
    assert (found["low"], found["high"]) == pytest.approx(
        (2 - 4.3026527 / math.sqrt(3), 2 + 4.3026527 / math.sqrt(3))
    )
    assert (
        not found["distinguishable"]
        and over_repeats(np.array([1.0, 1.1, 1.2]), np.zeros(3))["distinguishable"]
    )
    assert over_repeats(np.ones(1), np.zeros(1))["low"] is None
