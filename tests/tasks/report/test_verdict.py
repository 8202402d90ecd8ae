"""The verdict in words: promises, what changed since another run, and what cannot be compared."""

import numpy as np
import pytest

from gdpo.evaluate.statistics import summarise
from tasks.report.verdict import (
    ImageMeans,
    change_sentence,
    changes,
    changes_table,
    claims,
    gain,
    headline,
    verdict_sentence,
)
from tests.tasks import fabricated

NAMES = [f"{i}" for i in range(12)]


def _summary(
    gain_: float = 3.0, pairs: list[tuple[str, str]] = fabricated.PAIRS
) -> dict[str, object]:
    return {
        "metrics": {
            metric: {"higher_is_better": higher} for metric, higher in fabricated.HIGHER.items()
        },
        "reward": {"fidelity": ["psnr_y"], "perception": ["niqe"]},
        **summarise(fabricated.scores(12, 8, gain_), fabricated.HIGHER, pairs, unit_of="naosd"),
    }


def _means(gain_: float = 3.0) -> dict[str, dict[str, dict[str, float]]]:
    values = fabricated.scores(12, 8, gain_)
    return {
        model: {
            name: {m: float(v[i].mean()) for m, v in metrics.items()}
            for i, name in enumerate(NAMES)
        }
        for model, metrics in values.items()
    }


@pytest.mark.parametrize(
    ("gain_", "text"),
    [
        (3.0, "GDPO-SR beats NAOSD on the reward"),
        (0.0, "GDPO-SR and NAOSD do not differ significantly on the reward"),
        (-3.0, "GDPO-SR is worse than NAOSD on the reward"),
    ],
)
def test_the_headline_is_the_verdict_on_the_reward(gain_: float, text: str) -> None:
    assert headline(_summary(gain_)) == text
    assert verdict_sentence(_summary(gain_)).startswith(f"{text}: ")
    assert [claim.holds for claim in claims(_summary(gain_))][:3] == [gain_ > 0] * 3


def test_a_gain_that_the_control_has_too_is_none() -> None:
    scores = fabricated.scores(12, 8, 3.0)
    summary = {
        **_summary(),
        **summarise(
            {**scores, "control": scores["gdpo"]},
            fabricated.HIGHER,
            fabricated.PAIRS,
            unit_of="naosd",
        ),
    }
    assert headline(summary) == "GDPO-SR beats NAOSD on the reward, but not its control"


def test_models_that_were_not_evaluated_are_not_judged() -> None:
    alone = _summary(pairs=[("naosd", "bicubic")])
    assert (
        headline(alone) == "GDPO-SR and NAOSD are not compared"
        and claims(alone) == []
        and gain(alone) == "not measured"
    )
    uncontrolled = _summary(pairs=[("gdpo", "naosd")])
    assert (
        headline(uncontrolled) == "GDPO-SR beats NAOSD on the reward"
        and len(claims(uncontrolled)) == 3
    )


def test_what_changed_has_an_interval_around_the_difference() -> None:
    now, before = _means(3.0), _means(1.0)
    found = changes(now, before, fabricated.HIGHER)
    assert (found.images, found.of, [row["metric"] for row in found.rows]) == (
        12,
        12,
        ["psnr_y", "niqe"],
    )
    psnr = found.rows[0]
    expected = np.mean(
        [now["gdpo"][name]["psnr_y"] - before["gdpo"][name]["psnr_y"] for name in NAMES]
    )
    assert (
        psnr["mean"] == pytest.approx(expected)
        and psnr["low"] <= expected <= psnr["high"]
        and psnr["verdict"] == "better"
    )
    assert change_sentence(found).startswith("GDPO-SR over 12 images: PSNR-Y better, +0.400")
    assert [row[-1].text for row in changes_table(_summary(), found).rows] == ["better", "better"]


def test_an_equal_run_changes_nothing() -> None:
    found = changes(_means(), _means(), fabricated.HIGHER)
    assert {row["verdict"] for row in found.rows} == {"not significant"} and {
        row["mean"] for row in found.rows
    } == {0.0}
    assert change_sentence(found) == "GDPO-SR over 12 images: no metric differs significantly."


def _without(run: ImageMeans, metric: str) -> ImageMeans:
    return {
        model: {
            name: {m: v for m, v in values.items() if m != metric}
            for name, values in images.items()
        }
        for model, images in run.items()
    }


def test_only_images_with_the_same_input_and_metrics_of_both_runs_are_compared() -> None:
    before = _means(1.0)
    before["bicubic"]["0"]["niqe"] += 0.01  # another photograph of that name, or another NIQE
    del before["gdpo"]["1"]
    found = changes(_means(), before, fabricated.HIGHER)
    assert (found.images, found.of) == (10, 12)
    assert "over 10 images (of 12; the others cannot be compared)" in change_sentence(found)
    assert [
        row["metric"]
        for row in changes(_means(), _without(_means(1.0), "niqe"), fabricated.HIGHER).rows
    ] == ["psnr_y"]


def test_runs_that_share_nothing_are_said_to() -> None:
    for other in ({}, {"gdpo": {"elsewhere": {"psnr_y": 1.0}}}):
        found = changes(_means(), other, fabricated.HIGHER)
        assert found.rows == [] and "can be compared" in change_sentence(found)
