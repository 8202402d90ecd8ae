"""Every objective in the fine-tuning loop: groups in parts, groups of equal rewards, learning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.preference.group import Group
from gdpo.preference.loop import _Run
from tests import tiny
from tests.gdpo.preference.training import ACTION, OBJECTIVES, configured, stored, train


def gradient(run: _Run, step: int = 0) -> torch.Tensor:
    """The gradient of one step, unclipped, away from the reference."""
    with torch.no_grad():
        for i, parameter in enumerate(run.policy.values()):
            parameter.add_(1e-3 * (-1) ** i)
    run.step(step)
    return torch.cat([p.grad.flatten() for p in run.policy.values() if p.grad is not None])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_groups_with_equal_rewards_are_counted_and_have_no_gradient(
    groups: list[Group], objective: str
) -> None:
    action = ACTION if objective == "dance_grpo" else {}
    flat = [replace(group, metrics={"psnr_y": [20.0] * 3, "ssim_y": [0.5] * 3}) for group in groups]
    run = _Run(tiny.model(), flat, configured(action, objective=objective), False)
    assert not gradient(run).any()
    assert run.step(1)["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_group_in_parts_has_the_gradient_of_the_whole(objective: str, chunk: int) -> None:
    """The group-scalar form through the UNet: dL/dm_i from the whole group, then a backward pass
    for every few candidates.
    """
    action = ACTION if objective == "dance_grpo" else {}
    settings: dict[str, Any] = {
        "objective": objective,
        "clip": 0.5,
        "optimizer": {"lr": 1e-4, "clip": 1e9},
    }
    groups = stored(configured(action, **settings))
    whole, parts = (
        gradient(
            _Run(tiny.model(), groups, configured(action, **settings, micro_batch=size), False)
        )
        for size in (None, chunk)
    )
    assert whole.norm() > 0
    assert float((whole - parts).norm() / whole.norm()) < 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_to_prefer_the_better(objective: str, tmp_path: Path) -> None:
    action = ACTION if objective == "dance_grpo" else {}
    options: dict[str, Any] = {
        "rollout_": action,
        "objective": objective,
        "clip": 0.2,
        "steps": 8,
        "batch": 5,
        "checkpoint_every": 8,
    }
    _, history = train(stored(configured(action, objective=objective)), tmp_path, **options)
    assert np.mean([row["implicit_accuracy"] for row in history[-4:]]) > 0.7
    assert np.mean([row["weighted_error_difference"] for row in history[-4:]]) < 0
