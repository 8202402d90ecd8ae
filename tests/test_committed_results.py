"""Committed results of benchmarks are small, and keep the numbers they were computed from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import ablations, evidence
from gdpo.config import Config, Reward
from gdpo.evaluate.statistics import within_image_std
from tasks.files.scores import ImageScores

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def test_no_committed_result_is_large() -> None:
    sizes = {path.name: path.stat().st_size for path in RESULTS.iterdir()}
    assert {name: size for name, size in sizes.items() if size > 40_000} == {}


def test_ablations_keep_means_differences_and_claims() -> None:
    difference = {"mean": 0.123456, "low": -1.0, "high": 2.0, "p": 0.5, "repeats": [1.0]}
    record = {"row": "GDPO", "column": "PSNR", "metric": "psnr_y", "ours": 25.00004}
    claim = {"row": "(1, 2)", "claim": "larger", "of": "the mean", "sign": "agrees", **difference}
    table = {
        "sentence": "Said.",
        "records": [
            {**record, "to_naosd": difference, "to_control": None},
            {**record, "column": "FID", "metric": None},
        ],
        "claims": [claim],
    }
    shrunk = json.loads(ablations.compact({"images": 3, "tables": {"5": table}}))
    assert shrunk == {
        "images": 3,
        "tables": {
            "5": {
                "sentence": "Said.",
                "GDPO": {"PSNR": {"ours": 25.0, "to_naosd": [0.1235, -1.0, 2.0]}},
                "claims": [["(1, 2)", "larger", "the mean", 0.1235, -1.0, 2.0, "agrees"]],
            }
        },
    }


@pytest.fixture
def scores() -> ImageScores:
    """Two photographs of two tiles, four models, two noises; GDPO is better by 1 in PSNR."""
    rng, rows = np.random.default_rng(0), []
    for image in ("a-b-0", "a-b-1", "c-0", "c-1"):
        for noise in range(2):
            base = {"psnr_y": rng.normal(), "niqe": rng.normal(), "reward": rng.normal()}
            for model in ("bicubic", "naosd", "gdpo", "control"):
                gain: dict[str, Any] = {"psnr_y": base["psnr_y"] + (model == "gdpo")}
                rows.append({"image": image, "model": model, "noise": noise, **base, **gain})
    return ImageScores(pa.Table.from_pylist(rows), {})


def test_evidence_is_over_photographs_in_units_of_tiles(scores: ImageScores) -> None:
    table, units = evidence.by_photograph(scores), evidence.within_image_stds(scores)
    assert table["naosd"]["psnr_y"].shape == (2, 2)
    rows = [row for row in scores.table.to_pylist() if row["model"] == "naosd"]
    tiles = np.array([row["psnr_y"] for row in rows]).reshape(4, 2)
    assert table["naosd"]["psnr_y"] == pytest.approx(tiles.reshape(2, 2, 2).mean(axis=1))
    assert units["psnr_y"] == pytest.approx(within_image_std(tiles))
    both = evidence.compared(
        evidence.pooled([table, table]), units, Reward(fidelity=["psnr_y"], perception=["niqe"])
    )
    (gain,) = (
        row
        for row in both["differences"]
        if (row["pair"], row["metric"]) == ("gdpo-naosd", "psnr_y")
    )
    assert gain["mean"] == pytest.approx(1)
    assert gain["effect"] == pytest.approx(1 / units["psnr_y"])
    assert len(evidence.judged(both)) == 3  # reward, no-reference metric, PSNR
    psnr, niqe = evidence.judged_fidelity(both)
    assert psnr.holds and "against naosd" in psnr.evidence and niqe.holds


def test_a_setting_changes_the_reward_and_nothing_before_it(
    monkeypatch: pytest.MonkeyPatch, sample_config: Config
) -> None:
    monkeypatch.setattr(evidence, "load", lambda path: sample_config)
    main, fidelity = (evidence.configured(None, 2, setting) for setting in ("main", "fidelity"))
    assert fidelity.reward.perception == [] and main.reward.perception == ["niqe"]
    assert fidelity.model_copy(update={"reward": main.reward}) == main
    assert main.finetune.validation.photographs is None  # the folder is not below a seed's root
