"""Reward and advantage: the released values, equal scores, order, and the detail share's two
ends.
"""

from typing import Any

import pytest
import torch

from gdpo.rewards.attribute_aware import attribute_aware_reward, group_advantage, normalise
from gdpo.seeds import torch_generator

# Measured on the released code.
REWARD = [0.1, 0.4, 0.35, 0.8, 0.65, 0.2]
ADVANTAGE = [-1.191228, -0.062696, -0.250785, 1.442013, 0.877747, -0.815051]


def scores(metrics: int, *, batch: int = 3, group: int = 6, key: str = "s") -> torch.Tensor:
    return torch.randn(batch, group, metrics, generator=torch_generator(key), dtype=torch.float64)


def test_advantages_are_the_released_ones() -> None:
    found = group_advantage(torch.tensor([REWARD], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(ADVANTAGE, abs=1e-6)
    assert group_advantage(torch.tensor([REWARD]))[0].tolist() == pytest.approx(ADVANTAGE, abs=1e-5)


def test_a_group_of_two_has_unbiased_advantages() -> None:
    found = group_advantage(torch.tensor([[0.2, 0.7], [0.9, 0.1]]))
    assert found.flatten().tolist() == pytest.approx(
        [-(0.5**0.5), 0.5**0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-5
    )


def test_advantages_have_zero_mean_and_unit_deviation_in_every_group() -> None:
    found = group_advantage(scores(1)[..., 0])
    assert found.mean(dim=1).abs().max() < 1e-12
    assert torch.allclose(found.std(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 6), (1, 7)])
def test_equal_rewards_give_zero_and_never_nan(
    value: float, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """Seven times 0.1 or 1/3 has a mean that is off in the last bit, and a deviation above 0."""
    assert not group_advantage(torch.full(shape, value, dtype=dtype)).any()


def test_equal_groups_beside_lively_ones() -> None:
    found = group_advantage(torch.tensor([[0.1] * 6, REWARD], dtype=torch.float64))
    assert not found[0].any()
    assert found[1].tolist() == pytest.approx(ADVANTAGE, abs=1e-6)


def test_the_reward_is_the_papers_formula() -> None:
    fidelity, perception, share = (
        scores(1),
        scores(2, key="p"),
        torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64),
    )
    found = attribute_aware_reward(fidelity, perception, share)

    def minmax(x: torch.Tensor) -> torch.Tensor:
        return (x - x.min()) / (x.max() - x.min())

    for b in range(3):
        smooth = minmax(fidelity[b, :, 0])
        detail = (minmax(perception[b, :, 0]) + minmax(perception[b, :, 1])) / 2
        assert torch.allclose(found[b], (1 - share[b]) * smooth + share[b] * detail)
    assert torch.equal(found[0], normalise(fidelity)[0, :, 0])  # share 0: fidelity alone
    assert torch.equal(found[2], normalise(perception)[2].mean(dim=1))  # share 1: perception alone
    assert found.min() >= 0 and found.max() <= 1


def test_a_metric_without_spread_counts_zero_for_all() -> None:
    fidelity, perception = scores(1), scores(2, key="p")
    flat = perception.clone()
    flat[..., 1] = 0.1
    share = torch.full((3,), 0.6, dtype=torch.float64)
    found = attribute_aware_reward(fidelity, flat, share)
    wanted = 0.4 * normalise(fidelity)[..., 0] + 0.6 * normalise(perception)[..., 0] / 2
    assert torch.allclose(found, wanted)
    nothing = attribute_aware_reward(
        torch.full_like(fidelity, 3.0), torch.full_like(flat, 0.1), share
    )
    assert not nothing.any() and not group_advantage(nothing).any()


@pytest.mark.parametrize(("fidelity", "perception"), [(2, 0), (0, 2)])
def test_one_side_may_have_no_metric(fidelity: int, perception: int) -> None:
    share = torch.full((3,), 0.25, dtype=torch.float64)
    found = attribute_aware_reward(scores(fidelity), scores(perception), share)
    assert torch.allclose(found, (0.75 if fidelity else 0.25) * normalise(scores(2)).mean(dim=2))


def test_reordering_a_group_reorders_its_rewards() -> None:
    fidelity, perception, share = scores(1), scores(2, key="p"), torch.rand(3, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    reward = attribute_aware_reward(fidelity, perception, share)
    again = attribute_aware_reward(fidelity[:, order], perception[:, order], share)
    assert torch.equal(again, reward[:, order])
    assert torch.allclose(group_advantage(again), group_advantage(reward)[:, order], atol=1e-12)


def test_units_of_a_metric_do_not_matter_and_groups_are_independent() -> None:
    fidelity, perception, share = scores(1), scores(2, key="p"), torch.rand(3, dtype=torch.float64)
    reward = attribute_aware_reward(fidelity, perception, share)
    assert torch.allclose(attribute_aware_reward(100 * fidelity - 7, perception, share), reward)
    alone = attribute_aware_reward(fidelity[1:2], perception[1:2], share[1:2])
    assert torch.equal(alone[0], reward[1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"fidelity_BGF": torch.zeros(3, 6)},
            "fidelity_BGF must be a finite float tensor of shape",
        ),
        (
            {"fidelity_BGF": torch.zeros(3, 6, 1, dtype=torch.int64)},
            "fidelity_BGF must be a finite float tensor",
        ),
        (
            {"perception_BGN": torch.full((3, 6, 1), torch.nan)},
            "perception_BGN must be a finite float tensor",
        ),
        ({"perception_BGN": torch.zeros(3, 5, 1)}, "disagree about B or G"),
        ({"detail_share_B": torch.zeros(2)}, "disagree about B or G"),
        ({"detail_share_B": torch.zeros(3, 1)}, "detail_share_B must have shape B"),
        ({"detail_share_B": torch.tensor([0.0, 0.5, 1.1])}, r"detail_share_B must lie in \[0, 1\]"),
        (
            {"detail_share_B": torch.tensor([0.0, -0.1, 1.0])},
            r"detail_share_B must lie in \[0, 1\]",
        ),
        (
            {"detail_share_B": torch.tensor([0.0, torch.nan, 1.0])},
            "detail_share_B has values that are NaN",
        ),
        (
            {"fidelity_BGF": torch.zeros(3, 6, 0), "perception_BGN": torch.zeros(3, 6, 0)},
            "no metric at all",
        ),
    ],
)
def test_bad_scores_are_named(changes: dict[str, Any], says: str) -> None:
    given = {
        "fidelity_BGF": scores(1),
        "perception_BGN": scores(2),
        "detail_share_B": torch.full((3,), 0.5),
    }
    with pytest.raises(ValueError, match=says):
        attribute_aware_reward(**{**given, **changes})


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (torch.zeros(6), "reward_BG must have shape BG"),
        (torch.zeros(2, 1), "reward_BG must have at least two candidates"),
        (torch.tensor([[0.1, torch.nan]]), "reward_BG has values that are NaN"),
        (torch.zeros(2, 6, dtype=torch.int32), "reward_BG must be a floating-point tensor"),
        ([[0.1, 0.2]], "reward_BG must be a torch.Tensor"),
    ],
)
def test_bad_rewards_are_named(reward: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        group_advantage(reward)
