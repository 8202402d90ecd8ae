"""The figures about training: the order of the batches is finetune's own, and nothing is shown that
does not fit its log.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdpo.config import Finetune, Reward
from gdpo.preference.order import group_at
from gdpo.seeds import seed_of
from tasks.report import curves
from tests.tasks import fabricated

SEED, BATCH, STEPS = 3, 4, 20
REWARD = Reward(fidelity=["psnr_y"], perception=["niqe"])


def logged(root: Path, seed: int = SEED) -> Path:
    """A made-up run whose log has the spread of the groups that finetune's loop visits."""
    fabricated.outputs(root)
    spread = curves.group_values(root, REWARD)["reward"].std(axis=1, ddof=1)
    rows = [
        {
            "step": s,
            "reward_std": np.mean(
                [spread[group_at(seed, s * BATCH + i, len(spread))[0]] for i in range(BATCH)]
            ),
        }
        for s in range(STEPS)
    ]
    log = root / "reports/finetune/gdpo/metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "assets/figures").mkdir(parents=True)
    return root


def shown(root: Path, seed: int = SEED, **settings: Any) -> tuple[list[curves.Figure], str]:
    finetune = Finetune(batch=BATCH, **settings)
    return curves.batches(
        root,
        root / "assets",
        curves.group_values(root, REWARD),
        seed,
        finetune,
        "reports/finetune/gdpo",
    )


def test_groups_are_those_of_all_parts_in_the_order_of_their_ids(tmp_path: Path) -> None:
    fabricated.outputs(tmp_path)
    groups = curves.group_values(tmp_path, REWARD)
    assert list(groups) == ["reward", "psnr_y", "niqe"] and {
        values.shape for values in groups.values()
    } == {(30, 6)}
    assert (
        groups["reward"][0].std() == 0
        and groups["reward"].min() == 0
        and groups["reward"].max() == pytest.approx(1)
    )
    best = groups["reward"][1].argmax()
    fidelity, perception = groups["psnr_y"][1], -groups["niqe"][1]
    parts = [(values - values.min()) / np.ptp(values) for values in (fidelity, perception)]
    assert groups["reward"][1, best] == pytest.approx(
        0.6 * parts[0][best] + 0.4 * parts[1][best], abs=1e-6
    )


def test_batches_show_reward_and_metrics_of_the_groups_that_were_visited(tmp_path: Path) -> None:
    run = logged(tmp_path)
    found, missing = shown(run)
    assert not missing
    assert [figure["alt"].split(" over ")[0] for figure in found] == [
        "Reward",
        "PSNR-Y",
        "NIQE (own fit)",
    ]
    assert all((run / figure["url"]).is_file() for figure in found)


def test_a_repeat_has_an_order_of_its_own(tmp_path: Path) -> None:
    run = logged(tmp_path, seed_of(SEED, "repeat", 2))
    assert len(shown(run, repeat=2)[0]) == 3 and shown(run)[0] == []


def test_groups_that_the_training_did_not_see_are_not_shown_and_the_reason_is(
    tmp_path: Path,
) -> None:
    run = logged(tmp_path)
    other, online = shown(run, SEED + 1), shown(run, rollouts="online")
    assert other[0] == [] and "the training saw other groups" in other[1]
    assert online[0] == [] and "sampled during the training" in online[1]


def test_values_of_a_training_have_titles(tmp_path: Path) -> None:
    keys = (
        "loss",
        "weighted_error_difference",
        "reward",
        "reward_std",
        "psnr_y",
        "psnr_y_std",
        "new_value",
    )
    fabricated._lines(tmp_path / "reports/finetune/gdpo/metrics.jsonl", 5, keys)
    (tmp_path / "assets/figures").mkdir(parents=True)
    made = curves.trainings(
        tmp_path, tmp_path / "assets", "finetune", {"gdpo": "reports/finetune/gdpo"}
    )
    found = made["figures"]
    titles = [
        "Loss",
        "Weighted error difference",
        "Reward",
        "Spread of Reward",
        "PSNR-Y",
        "Spread of PSNR-Y",
        "new value",
    ]
    assert [figure["alt"].split(" over ")[0] for figure in found] == titles
    assert found[4]["note"] == "mean of the step’s candidates" and found[6]["note"] == ""


def test_ranks_say_what_the_reward_pays_for(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    reward = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    found = curves.rollouts(
        tmp_path, {"reward": reward, "psnr_y": 10 * reward, "niqe": np.zeros((2, 3))}
    )
    assert (
        found["ranks"][1]["alt"]
        == "PSNR-Y by rank, relative to the group’s mean: best candidate +5, worst -5"
    )
    assert (found["groups"], found["group"], found["without_spread"]) == (2, 3, 0)


def test_no_rollouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data/rollouts: no rollouts"):
        curves.group_values(tmp_path, REWARD)


def _write(root: Path, rows: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Write the log of each run; returns the runs."""
    for run, values in rows.items():
        log = root / f"reports/finetune/{run}/metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(
            "".join(json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(values))
        )
    (root / "assets/figures").mkdir(parents=True)
    return {run: f"reports/finetune/{run}" for run in rows}


def test_what_is_constant_or_the_same_in_both_runs_is_named_and_not_drawn(tmp_path: Path) -> None:
    runs = {
        run: [{"loss": start + i, "skipped": 0.0, "psnr_y": float(i)} for i in range(3)]
        for run, start in (("gdpo", 0.0), ("control", 1.0))
    }
    found = curves.trainings(tmp_path, tmp_path / "assets", "finetune", _write(tmp_path, runs))
    assert [figure["alt"].split(" over ")[0] for figure in found["figures"]] == ["Loss"]
    assert found["constant"] == ["Groups left out (0)"] and found["shared"] == ["PSNR-Y"]
    assert len(list((tmp_path / "assets/figures").iterdir())) == 1


def test_what_is_measured_on_validation_photographs_stands_apart(tmp_path: Path) -> None:
    rows = {
        run: [
            {"loss": gain + i, **({"validation_reward": gain * i} if i % 2 == 0 else {})}
            for i in range(5)
        ]
        for run, gain in (("gdpo", 1.0), ("control", 0.5))
    }
    found = curves.trainings(tmp_path, tmp_path / "assets", "finetune", _write(tmp_path, rows))
    (figure,) = found["validation"]
    assert figure["alt"] == (
        "Reward, validation photographs over training steps: "
        "GDPO-SR from 0 to 4; Control from 0 to 2"
    )
    assert figure["note"].startswith("0: NAOSD")
    assert len(found["figures"]) == 1


@pytest.mark.parametrize(
    ("end", "text"), [(0.75, "GDPO learned what its groups prefer"), (0.5, "It does not show")]
)
def test_the_verdict_on_the_training_compares_with_the_control(
    tmp_path: Path, end: float, text: str
) -> None:
    runs = {
        "gdpo": [{"implicit_accuracy": 0.5}] * 4 + [{"implicit_accuracy": end}] * 4,
        "control": [{"implicit_accuracy": 0.55}] * 8,
    }
    found = curves.learned(tmp_path, _write(tmp_path, runs))
    assert found.startswith(text)
    assert f"{end:.0%}".replace("%", " %") in found and "ends at 55 %" in found


@pytest.mark.processes
def test_dvc_plots_the_values_of_a_training(tmp_path: Path) -> None:
    """A value that some steps lack is missing in their rows, and no error."""
    rows = {"gdpo": [{"loss": 3.0 - i} | ({"late": 7.25} if i else {}) for i in range(3)]}
    curves.trainings(tmp_path, tmp_path / "assets", "finetune", _write(tmp_path, rows))
    path = tmp_path / "assets/training/gdpo.csv"
    assert path.read_text().split() == ["step,loss,late", "0,3.0,", "1,2.0,7.25", "2,1.0,7.25"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    show = ["plots", "show", str(path.relative_to(tmp_path)), "-x", "step", "-y", "loss"]
    for words in (["init", "-q", "--no-scm"], show):
        subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=tmp_path, env=environment, check=True
        )
    page = (tmp_path / "dvc_plots/index.html").read_text()
    assert '"loss": "2.0"' in page and "vega" in page
