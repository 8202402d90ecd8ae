"""The figures about training: the order of the batches is finetune's own, and nothing is shown that does not fit its log."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gdpo.preference.loop import _Run
from tasks import curves
from tests.tasks import fabricated

SEED, BATCH, STEPS = 3, 4, 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run whose log has the spread of the groups that finetune's loop visits."""
    fabricated.outputs(tmp_path)
    groups = curves.read_groups(tmp_path)
    spread = groups["reward"].std(axis=1, ddof=1)
    loop: Any = SimpleNamespace(groups=spread, config=SimpleNamespace(seed=SEED, rollout=SimpleNamespace(noises=2)))
    rows = [
        {"step": s, "reward_spread": np.mean([spread[_Run._visit(loop, s * BATCH + i)[0]] for i in range(BATCH)])}
        for s in range(STEPS)
    ]
    log = tmp_path / "reports/finetune/gdpo/metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "assets/figures").mkdir(parents=True)
    return tmp_path


def test_batches_show_reward_metrics_and_spread_of_the_groups_that_were_visited(run: Path) -> None:
    found = curves.batches(run, run / "assets", curves.read_groups(run), SEED, BATCH)
    titles = [figure["alt"].split(" over ")[0] for figure in found]
    assert titles == ["Reward", "PSNR-Y", "Spread of PSNR-Y", "NIQE (own fit)", "Spread of NIQE (own fit)"]
    assert all((run / figure["url"]).is_file() for figure in found)


def test_batches_of_another_order_are_not_shown(run: Path) -> None:
    assert curves.batches(run, run / "assets", curves.read_groups(run), SEED + 1, BATCH) == []


def test_epochs_follow_each_other_without_a_gap() -> None:
    visited = curves._visited(SEED, np.arange(30), 10)
    assert [sorted(visited[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert list(visited[:10]) != list(visited[10:20])


def test_ranks_say_what_the_reward_pays_for(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    reward = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    found = curves.rollouts(tmp_path, {"reward": reward, "psnr_y": 10 * reward, "niqe": np.zeros((2, 3))})
    assert found["ranks"][1]["alt"] == "PSNR-Y by rank, relative to the group’s mean: best candidate +5, worst -5"
    assert (found["groups"], found["group"], found["without_spread"]) == (2, 3, 0)


def test_no_rollouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data/rollouts: no rollouts"):
        curves.read_groups(tmp_path)
