"""Candidates made during training, and the old policy in the objectives with a ratio."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.preference import loop
from gdpo.preference.group import Group, from_row, to_row
from gdpo.preference.loop import _Run
from gdpo.preference.rollout import rollout
from tests import tiny
from tests.gdpo.preference.training import (
    ACTION,
    OBJECTIVES,
    PAIRS,
    configured,
    started,
    stored,
    train,
)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_online_is_cached_in_the_first_epoch(objective: str, tmp_path: Path) -> None:
    """In the first epoch the candidates are those that the stage stores: same losses, same
    policy.
    """
    action = ACTION if objective == "dance_grpo" else {}
    groups = stored(configured(action, objective=objective))
    options: dict[str, Any] = {"rollout_": action, "objective": objective, "steps": 2}
    cached = train(groups, tmp_path / "cached", **options)
    online = train([], tmp_path / "online", pairs=PAIRS, rollouts="online", **options)
    for a, b in zip(cached[1], online[1], strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    for name, tensor in cached[0].tensors.items():
        assert torch.allclose(tensor, online[0].tensors[name], atol=1e-6), name


def test_online_makes_new_candidates_in_every_later_epoch(groups: list[Group]) -> None:
    run = _Run(tiny.model(), PAIRS, configured(rollouts="online"), False)
    first, again, later = (run._group(1, epoch)[0] for epoch in (0, 0, 1))
    assert isinstance(first, Group) and isinstance(again, Group) and isinstance(later, Group)
    assert first.seeds == again.seeds == groups[1].seeds and first.metrics == groups[1].metrics
    assert not set(later.seeds) & set(first.seeds) and not set(later.noise_seeds[0]) & set(
        first.noise_seeds[0]
    )


def test_online_makes_the_one_noise_that_the_visit_takes(groups: list[Group]) -> None:
    config = configured({"noises": 2}, rollouts="online", repeat=1)  # begins with the second noise
    found, noise = _Run(tiny.model(), PAIRS, config, False)._group(1, 0)
    stored_, index = started(stored(configured({"noises": 2})), repeat=1)._group(1, 0)
    assert isinstance(found, Group) and isinstance(stored_, Group) and (noise, index) == (0, 1)
    assert found.noise_seeds == stored_.noise_seeds[1:] and len(found.reference_error) == 1
    assert found.reference_error[0] == pytest.approx(stored_.reference_error[1], abs=1e-9)


def test_a_set_made_in_batches_gives_the_losses_of_online(tmp_path: Path) -> None:
    """The stage puts five pairs into one forward pass. Kernels for another batch size round
    differently, which makes 5e-5 of the second loss.
    """
    found = list(rollout(tiny.model(), PAIRS, configured()))
    groups = [from_row(to_row(group)) for group in found if isinstance(group, Group)]
    _, cached = train(groups, tmp_path / "cached", steps=2)
    _, online = train([], tmp_path / "online", pairs=PAIRS, rollouts="online", steps=2)
    assert [row["loss"] for row in cached] == pytest.approx(
        [row["loss"] for row in online], rel=1e-3
    )


def test_the_policy_as_sampler_makes_its_own_candidates(tmp_path: Path) -> None:
    """Before the first update they are those of the reference, afterwards they are not."""
    by_policy, by_reference = (
        train([], tmp_path / sampler, pairs=PAIRS, rollouts="online", sampler=sampler, steps=3)[1]
        for sampler in ("policy", "reference")
    )
    assert by_policy[0] == pytest.approx(by_reference[0], abs=1e-6)
    assert by_policy[2]["psnr_y"] != pytest.approx(by_reference[2]["psnr_y"], abs=1e-6)


def test_a_ratio_is_one_where_the_policy_samples(tmp_path: Path) -> None:
    """On-policy the old policy is the present one. Nothing is clipped, and the loss is the mean of
    -A, which is 0.
    """
    _, history = train(
        [],
        tmp_path,
        pairs=PAIRS,
        rollouts="online",
        sampler="policy",
        objective="dance_grpo",
        rollout_=ACTION,
        steps=3,
    )
    assert [row["loss"] for row in history] == pytest.approx([0.0] * 3, abs=1e-9)
    assert all(row["grad_norm"] > 0 for row in history)


@pytest.mark.parametrize("sampler", ["reference", "policy"])
def test_the_old_policy_is_the_one_that_sampled(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The reference for cached rollouts, so that ratios move away from 1 as the policy does."""
    run = started(groups, objective="dgpo", rollouts="cached")
    run.config = run.config.model_copy(
        update={"finetune": run.config.finetune.model_copy(update={"sampler": sampler})}
    )
    with torch.no_grad():
        for p in run.policy.values():
            p.add_(0.02)
    seen = []
    true = loop.objective_loss

    def spy(
        settings: Any, strength: Any, policy: Any, reference: Any, old: Any, *rest: Any
    ) -> torch.Tensor:
        seen.append((policy.detach(), reference, old))
        return true(settings, strength, policy, reference, old, *rest)

    monkeypatch.setattr(loop, "objective_loss", spy)
    run._position(0)
    policy, reference, old = seen[0]
    assert not torch.equal(policy, reference)
    assert torch.equal(old, policy if sampler == "policy" else reference)
