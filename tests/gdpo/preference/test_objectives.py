"""The objectives: released and hand-computed values, identities between them, and bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gdpo.preference.objectives import (
    awm_loss,
    dance_grpo_loss,
    dgpo_loss,
    diffusion_dpo_loss,
    gdpo_logit,
    gdpo_loss,
    nft_loss,
)
from gdpo.rewards.attribute_aware import group_advantage
from tests.gdpo.preference.objectives import (
    ADVANTAGE,
    OBJECTIVES,
    REFERENCE,
    SIGMA,
    draw,
    example,
    loss_of,
)

POLICY = torch.tensor([[101, 99, 100, 98, 97, 102]], dtype=torch.float64) * 1e-4


def test_released_values() -> None:
    assert gdpo_logit(POLICY, REFERENCE, ADVANTAGE, 5000.0).item() == pytest.approx(
        2.0689757, abs=1e-7
    )
    assert gdpo_loss(POLICY, REFERENCE, ADVANTAGE).item() == pytest.approx(0.1189514, abs=1e-7)


def test_ln_2_and_1250_times_the_advantage_at_initialisation() -> None:
    policy = REFERENCE.clone().requires_grad_()
    loss = gdpo_loss(policy, REFERENCE, ADVANTAGE)
    loss.backward()
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-15)
    assert torch.allclose(policy.grad, 1250 * ADVANTAGE, rtol=1e-12)


def test_omega_is_halved_and_scales_the_logit() -> None:
    x = example("omega")
    wanted = -0.5 * 7.0 * (x["advantage"] * (x["policy"] - x["reference"])).sum(dim=1)
    assert torch.allclose(gdpo_logit(x["policy"], x["reference"], x["advantage"], 7.0), wanted)
    default = gdpo_loss(x["policy"], x["reference"], x["advantage"])
    assert torch.equal(default, gdpo_loss(x["policy"], x["reference"], x["advantage"], 5000.0))


@pytest.mark.parametrize(("pairs", "insides"), [(1, [0.75]), (2, [0.75, 1.0, 1.0, 1.25])])
def test_dpo_by_hand(pairs: int, insides: list[float]) -> None:
    """Best: candidates 3 and 4, changes -2e-4 and -3e-4; worst: 0 and 5, +1e-4 and +2e-4; times
    2500.
    """
    wanted = sum(math.log1p(math.exp(-inside)) for inside in insides) / len(insides)
    loss = diffusion_dpo_loss(POLICY, REFERENCE, ADVANTAGE, 5000.0, pairs)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("advantage", "weights"),
    [
        # Candidates of equal advantage form no pair.
        (
            [3.0, -1, -1, -1],
            {(0, 1): 1 / 3, (0, 2): 1 / 3, (0, 3): 1 / 3},
        ),
        (
            [3.0, 1, 1, 0, -2, -3],
            {
                (0, 4): 1 / 4,
                (0, 5): 1 / 4,
                (1, 4): 1 / 8,
                (1, 5): 1 / 8,
                (2, 4): 1 / 8,
                (2, 5): 1 / 8,
            },
        ),
        ([0.0, 0, 0, 0], {}),
    ],
)
def test_dpo_where_advantages_are_equal(
    advantage: list[float], weights: dict[tuple[int, int], float]
) -> None:
    """Two best against two worst. With omega 2 and errors 1, 4, 9, ... the logit of a pair is the
    difference of its errors.
    """
    policy = torch.arange(1, len(advantage) + 1, dtype=torch.float64)[None].square()
    wanted = sum(
        weight * math.log1p(math.exp(policy[0, w] - policy[0, b]))
        for (w, b), weight in weights.items()
    )
    given = torch.tensor([advantage], dtype=torch.float64)
    assert diffusion_dpo_loss(
        policy, torch.zeros_like(policy), given, omega=2.0, pairs=2
    ).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["dance_grpo", "awm"])
def test_clipped_surrogates_by_hand(name: str) -> None:
    unit = 2 * SIGMA**2 if name == "dance_grpo" else 1.0
    advantages = [6.0, 0.5, -0.5, -7.0, 0.0, 1.0]  # 6 counts as 5, -7 as -5
    wanted = 0.0
    for a, m in zip(advantages, POLICY[0].tolist(), strict=True):
        ratio = math.exp((0.01 - m) / unit)
        a = max(-5.0, min(5.0, a))
        wanted += max(-a * ratio, -a * max(1 - 1e-4, min(1 + 1e-4, ratio))) / 6
    given = torch.tensor([advantages], dtype=torch.float64)
    found = (
        dance_grpo_loss(POLICY, REFERENCE, given, SIGMA, 1e-4)
        if name == "dance_grpo"
        else awm_loss(POLICY, REFERENCE, given, 1e-4)
    )
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_dgpo_by_hand() -> None:
    inside = (
        -100
        / 6
        * sum(
            a * (m - 0.01) for a, m in zip(ADVANTAGE[0].tolist(), POLICY[0].tolist(), strict=True)
        )
    )
    found = dgpo_loss(POLICY, REFERENCE, REFERENCE, ADVANTAGE, 100.0, 1e-4)
    assert found.item() == pytest.approx(math.log1p(math.exp(-inside)), rel=1e-12)
    # The clip is a matter of the gradient alone.
    clipped_differently = dgpo_loss(POLICY, REFERENCE, POLICY, ADVANTAGE, 100.0, 1e-4)
    assert clipped_differently.item() == found.item()


@pytest.mark.parametrize("mix", [1.0, 0.6, 1.5])
def test_nft_is_what_its_two_branches_give(mix: float) -> None:
    """The loss, and its gradient in the prediction, from the vectors v+ and v- themselves."""
    target, old, start = (
        0.1 * draw("nft", name, shape=(2, 4, 20)) for name in ("target", "old", "policy")
    )
    advantage = group_advantage(draw("nft", "score", shape=(2, 4)))
    advantage[0, 0], advantage[1, 0] = 6.0, 0.0  # 6 counts as 5

    def by_branches(policy: Tensor) -> Tensor:
        positive, negative = mix * policy + (1 - mix) * old, (1 + mix) * old - mix * policy
        share = (advantage.clamp(-5, 5) / 10 + 0.5)[..., None]
        total = torch.zeros_like(target)
        for weight, branch in ((share, positive), (1 - share, negative)):
            root = (branch - target).detach().square().mean(dim=2, keepdim=True).sqrt()
            total = total + weight * (branch - target).square() / root
        return total.mean()

    def by_errors(policy: Tensor) -> Tensor:
        m, o, d = (
            (x - y).square().mean(dim=2)
            for x, y in ((policy, target), (old, target), (policy, old))
        )
        return nft_loss(m, o, d, advantage, mix)

    results = []
    for function in (by_branches, by_errors):
        policy = start.clone().requires_grad_()
        value = function(policy)
        results.append((value, *torch.autograd.grad(value, policy)))
    for wanted, found in zip(*results, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=0)


def test_nft_divides_by_1e_5_at_least() -> None:
    """Policy and old policy equal the target: a root of 0, or of a number that rounding made
    negative, gives finite values.
    """
    zero = torch.zeros(1, 2, dtype=torch.float64)
    policy = (zero - 1e-18).requires_grad_()
    loss = nft_loss(policy, zero, zero, torch.tensor([[1.0, -1.0]], dtype=torch.float64), 1.0)
    loss.backward()
    assert torch.allclose(
        policy.grad, torch.tensor([[0.1, -0.1]], dtype=torch.float64) / 1e-5, rtol=1e-9
    )


def test_of_two_gdpo_is_dpo_with_0_7071_omega() -> None:
    """Scores of two, z-scored by the unbiased deviation, are +-1/sqrt(2)."""
    x = example("two", size=2)
    gdpo = gdpo_loss(x["policy"], x["reference"], x["advantage"], 500.0)
    dpo, other = (
        diffusion_dpo_loss(x["policy"], x["reference"], x["advantage"], omega, 1)
        for omega in (500.0 / math.sqrt(2), 500.0)
    )
    # group_advantage adds 1e-8 to the deviation
    assert gdpo.item() == pytest.approx(dpo.item(), rel=1e-6)
    assert gdpo.item() != pytest.approx(other.item(), rel=1e-3)


def test_unclipped_dgpo_is_gdpo_with_half_omega_of_beta_by_g() -> None:
    x = example("dgpo")
    m, r, a = x["policy"].requires_grad_(), x["reference"], x["advantage"]
    dgpo, gdpo = dgpo_loss(m, r, x["old"], a, 70.0, clip=9.0), gdpo_loss(m, r, a, 2 * 70.0 / 6)
    assert torch.allclose(dgpo, gdpo, rtol=1e-12)
    assert torch.allclose(*torch.autograd.grad(dgpo, m), *torch.autograd.grad(gdpo, m), rtol=1e-12)


@pytest.mark.parametrize("clip", [5.0, 1e-3])
def test_objective_loss_calls_each_with_its_settings(clip: float) -> None:
    x = example("settings")
    m, r, o, d, a = (
        x["policy"].requires_grad_(),
        x["reference"],
        x["old"],
        x["distance"],
        x["advantage"],
    )
    direct = {
        "gdpo": gdpo_loss(m, r, a, 300.0),
        "dpo": diffusion_dpo_loss(m, r, a, 300.0, 2),
        "dance_grpo": dance_grpo_loss(m, o, a, SIGMA, clip),
        "dgpo": dgpo_loss(m, r, o, a, 40.0, clip),
        "nft": nft_loss(m, o, d, a, 0.6),
        "awm": awm_loss(m, o, a, clip),
    }
    for name in OBJECTIVES:
        found = loss_of(name, x, clip=clip)
        assert torch.equal(found, direct[name])
        assert torch.equal(*torch.autograd.grad(found, m), *torch.autograd.grad(direct[name], m))


@pytest.mark.parametrize("name", ["policy_error_BG", "reference_error_BG", "advantage_BG"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (POLICY[0], "must have shape BG"),
        (POLICY[:, :5], "differ in shape"),
        (POLICY * torch.nan, "has values that are NaN"),
        (torch.zeros(1, 6, dtype=torch.int64), "must be a floating-point tensor"),
        (POLICY.tolist(), "must be a torch.Tensor"),
    ],
)
def test_bad_tensors_are_named(name: str, value: Any, says: str) -> None:
    good: dict[str, Any] = dict.fromkeys(
        ("policy_error_BG", "reference_error_BG", "advantage_BG"), POLICY
    )
    with pytest.raises(ValueError, match=says) as error:
        gdpo_loss(**{**good, name: value})
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("omega", [0, -1.0, math.inf, math.nan, True, "1"])
def test_a_bad_omega_is_named(omega: Any) -> None:
    with pytest.raises(ValueError, match=f"^omega must be a positive number, got {omega!r}$"):
        gdpo_loss(POLICY, REFERENCE, ADVANTAGE, omega)


def test_pairs_that_do_not_fit_the_group() -> None:
    says = r"^pairs must be a whole number from 1 to half of the group's 6 candidates, got 4$"
    with pytest.raises(ValueError, match=says):
        loss_of("dpo", example("pairs"), pairs=4)
