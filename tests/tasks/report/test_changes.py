"""What changed since another run, and what cannot be compared."""

import numpy as np
import pytest

from tasks.files.scores import ImageMeans
from tasks.report.changes import change_sentence, changes, changes_table
from tests.tasks import fabricated

NAMES = [f"{i}" for i in range(12)]
SUMMARY = {
    **fabricated.ABOUT,
    "metrics": {name: {"higher_is_better": higher} for name, higher in fabricated.HIGHER.items()},
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


def test_what_changed_has_an_interval_around_the_difference() -> None:
    now, before = _means(3.0), _means(1.0)
    changed = changes(now, before, fabricated.HIGHER, "gdpo")
    assert (changed.images, changed.of, [row["metric"] for row in changed.rows]) == (
        12,
        12,
        ["psnr_y", "niqe"],
    )
    psnr = changed.rows[0]
    expected = np.mean(
        [now["gdpo"][name]["psnr_y"] - before["gdpo"][name]["psnr_y"] for name in NAMES]
    )
    assert (
        psnr["mean"] == pytest.approx(expected)
        and psnr["low"] <= expected <= psnr["high"]
        and psnr["verdict"] == "better"
    )
    assert change_sentence(changed, fabricated.MODELS).startswith(
        "GDPO-SR over 12 photographs: PSNR-Y better, +0.400"
    )
    assert [row[-1].text for row in changes_table(SUMMARY, changed).rows] == ["better", "better"]


def test_an_equal_run_changes_nothing() -> None:
    changed = changes(_means(), _means(), fabricated.HIGHER, "gdpo")
    assert {row["verdict"] for row in changed.rows} == {"not significant"} and {
        row["mean"] for row in changed.rows
    } == {0.0}
    assert (
        change_sentence(changed, fabricated.MODELS)
        == "GDPO-SR over 12 photographs: no metric differs significantly."
    )


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
    changed = changes(_means(), before, fabricated.HIGHER, "gdpo")
    assert (changed.images, changed.of) == (10, 12)
    assert "over 10 photographs (of 12; the others cannot be compared)" in change_sentence(
        changed, fabricated.MODELS
    )
    assert [
        row["metric"]
        for row in changes(_means(), _without(_means(1.0), "niqe"), fabricated.HIGHER, "gdpo").rows
    ] == ["psnr_y"]


def test_runs_that_share_nothing_are_said_to() -> None:
    for other in ({}, {"gdpo": {"elsewhere": {"psnr_y": 1.0}}}):
        changed = changes(_means(), other, fabricated.HIGHER, "gdpo")
        assert changed.rows == [] and "can be compared" in change_sentence(
            changed, fabricated.MODELS
        )
