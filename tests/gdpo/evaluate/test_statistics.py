"""Statistics against SciPy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from gdpo.evaluate.statistics import (
    Difference,
    by_photograph,
    mean_over_images,
    paired_difference,
    summarise,
    verdict,
    within_image_std,
)


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.normal(25, 3, (9, 1))
    return image + 0.3 + rng.normal(0, 0.2, (9, 8)), image + rng.normal(0, 0.2, (9, 8))


def test_mean_and_standard_error_are_over_images_not_over_noises() -> None:
    found = mean_over_images(np.array([[1.0, 3.0], [4.0, 4.0], [6.0, 8.0]]))
    assert found.mean == pytest.approx(13 / 3)
    assert found.standard_error == pytest.approx(stats.sem([2, 4, 7]))


def test_repeating_every_noise_does_not_shrink_the_standard_error(
    scores: tuple[np.ndarray, np.ndarray],
) -> None:
    a, _ = scores
    assert mean_over_images(np.tile(a, (1, 10))).standard_error == pytest.approx(
        mean_over_images(a).standard_error
    )


def test_within_image_std_ignores_differences_between_images() -> None:
    assert within_image_std(np.array([[0.0, 2.0], [100.0, 104.0]])) == pytest.approx(
        math.sqrt((2 + 8) / 2)
    )
    assert within_image_std(np.array([[3.0], [9.0]])) == 0


def test_paired_difference_is_scipys_paired_t_test(scores: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = scores
    found = paired_difference(a, b)
    expected = stats.ttest_rel(a.mean(1), b.mean(1))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((a.mean(1) - b.mean(1)).mean())


def test_a_baseline_with_one_noise_pairs_with_many() -> None:
    found = paired_difference(np.array([[1.0, 3.0], [5.0, 5.0]]), np.array([[1.0], [1.0]]))
    assert found.mean == pytest.approx(2.5)


def test_edge_cases_of_the_interval() -> None:
    one = paired_difference(np.array([[2.0, 3.0]]), np.array([[1.0, 1.0]]))
    assert one.mean == 1.5 and math.isnan(one.p) and verdict(one, True) == "not significant"
    same = np.ones((4, 2))
    assert paired_difference(same, same) == Difference(0.0, 0.0, 0.0, 0.0, 1.0)
    assert paired_difference(same + 1, same).p == 0


def test_verdict_needs_p_below_one_percent_and_knows_the_direction() -> None:
    def difference(mean: float, p: float) -> Difference:
        return Difference(mean, 0.1, mean - 0.2, mean + 0.2, p)

    assert verdict(difference(0.5, 0.009), True) == "better"
    assert verdict(difference(0.5, 0.009), False) == "worse"
    assert verdict(difference(-0.5, 0.009), False) == "better"
    assert verdict(difference(0.5, 0.01), True) == "not significant"


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_difference(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="NaN"):
        mean_over_images(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="filled"):
        mean_over_images(np.ones((0, 2)))


def test_summary_holds_effects_in_the_references_spread_and_json_values(
    scores: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = scores
    found = summarise(
        {"naosd": {"m": b}, "gdpo": {"m": a}},
        {"m": False},
        [("gdpo", "naosd")],
        unit_of="naosd",
        photographs=[f"{i}" for i in range(9)],
    )
    row = found["differences"][0]
    assert row["pair"] == "gdpo-naosd" and row["verdict"] == "worse"
    assert row["effect"] == pytest.approx((a - b).mean() / within_image_std(b))
    assert found["models"]["gdpo"]["m"]["mean"] == pytest.approx(a.mean())
    single = summarise(
        {"naosd": {"m": b[:1]}},
        {"m": True},
        [("naosd", "naosd")],
        unit_of="naosd",
        photographs=["0"],
    )
    assert (
        single["differences"][0]["p"] is None
        and single["models"]["naosd"]["m"]["standard_error"] is None
    )


def test_the_unit_is_the_photograph_however_many_tiles_it_has(
    scores: tuple[np.ndarray, np.ndarray],
) -> None:
    """Three photographs of 5, 3 and 1 tiles: the test is SciPy's over their three means."""
    a, b = scores
    photographs = ["x"] * 5 + ["y"] * 3 + ["z"]
    tiles = {"naosd": {"m": b}, "gdpo": {"m": a}}
    found = summarise(
        tiles, {"m": True}, [("gdpo", "naosd")], unit_of="naosd", photographs=photographs
    )
    means = [[tile[start:end].mean() for start, end in ((0, 5), (5, 8), (8, 9))] for tile in (a, b)]
    expected = stats.ttest_rel(*means)
    row = found["differences"][0]
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["mean"] == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert found["models"]["gdpo"]["m"]["standard_error"] == pytest.approx(stats.sem(means[0]))
    assert found["models"]["naosd"]["m"]["within_image_std"] == within_image_std(b)


def test_every_image_has_a_photograph() -> None:
    with pytest.raises(ValueError, match="photographs must be one per image: 2 for 3 images"):
        by_photograph(np.ones((3, 2)), ["x", "y"])
