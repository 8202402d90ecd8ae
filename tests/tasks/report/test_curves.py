"""The figures about training: the order of the batches is finetune's own, and nothing is shown that
does not fit its log.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gdpo.config import Finetune, Reward
from gdpo.preference.loop import _Run
from gdpo.seeds import seed_of
from tasks.report import curves
from tests.tasks import fabricated

SEED, BATCH, STEPS = 3, 4, 20
REWARD = Reward(fidelity=["psnr_y"], perception=["niqe"])


def logged(root: Path, seed: int = SEED, repeat: int = 0) -> Path:
    """A made-up run whose log has the spread of the groups that finetune's loop visits."""
    fabricated.outputs(root)
    spread = curves.read_groups(root, REWARD)["reward"].std(axis=1, ddof=1)
    settings = SimpleNamespace(
        rollout=SimpleNamespace(noises=2), finetune=SimpleNamespace(repeat=repeat)
    )
    loop: Any = SimpleNamespace(source=spread, seed=seed, config=settings)
    rows = [
        {
            "step": s,
            "reward_std": np.mean(
                [spread[_Run._noise_index(loop, s * BATCH + i)[0]] for i in range(BATCH)]
            ),
        }
        for s in range(STEPS)
    ]
    log = root / "reports/finetune/gdpo/metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "assets/figures").mkdir(parents=True)
    return root


def shown(root: Path, seed: int = SEED, **settings: int) -> list[dict[str, str]]:
    finetune = Finetune(batch=BATCH, **settings)
    return curves.batches(root, root / "assets", curves.read_groups(root, REWARD), seed, finetune)


def test_groups_are_those_of_all_parts_in_the_order_of_their_ids(tmp_path: Path) -> None:
    fabricated.outputs(tmp_path)
    groups = curves.read_groups(tmp_path, REWARD)
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
    found = shown(run)
    assert [figure["alt"].split(" over ")[0] for figure in found] == [
        "Reward",
        "PSNR-Y",
        "NIQE (own fit)",
    ]
    assert all((run / figure["url"]).is_file() for figure in found)


def test_a_repeat_has_an_order_of_its_own(tmp_path: Path) -> None:
    run = logged(tmp_path, seed_of(SEED, "repeat", 2), repeat=2)
    assert len(shown(run, repeat=2)) == 3 and shown(run) == []


def test_batches_of_another_order_are_not_shown(tmp_path: Path) -> None:
    assert shown(logged(tmp_path), SEED + 1) == []


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
    found = curves.trainings(tmp_path, tmp_path / "assets", "finetune", {"gdpo": "finetune/gdpo"})
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


def test_epochs_follow_each_other_without_a_gap() -> None:
    visited = curves._visited(SEED, np.arange(30), 10)
    assert [sorted(visited[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert list(visited[:10]) != list(visited[10:20])


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
        curves.read_groups(tmp_path, REWARD)
