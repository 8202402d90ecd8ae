"""The GDPO loss: released values, its gradient in closed form, and what must not change it."""

from typing import Any

import pytest
import torch

from gdpo.preference.objectives import gdpo_logit, gdpo_loss
from gdpo.rewards.attribute_aware import group_advantage
from gdpo.training import torch_generator

ADVANTAGE = group_advantage(torch.tensor([[0.1, 0.4, 0.35, 0.8, 0.65, 0.2]], dtype=torch.float64))
POLICY = torch.tensor([[101, 99, 100, 98, 97, 102]], dtype=torch.float64) * 1e-4
REFERENCE = torch.full((1, 6), 1e-2, dtype=torch.float64)


def batch(*names: str) -> list[Any]:
    return [torch.randn(3, 4, generator=torch_generator(name), dtype=torch.float64) * 1e-3 for name in names]


def test_released_values() -> None:
    assert gdpo_logit(POLICY, REFERENCE, ADVANTAGE).item() == pytest.approx(2.0689757, abs=1e-7)
    assert gdpo_loss(POLICY, REFERENCE, ADVANTAGE).item() == pytest.approx(0.1189514, abs=1e-7)


def test_ln_2_and_1250_times_the_advantage_at_initialisation() -> None:
    policy = REFERENCE.clone().requires_grad_()
    loss = gdpo_loss(policy, REFERENCE, ADVANTAGE)
    loss.backward()
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-15)
    assert torch.allclose(policy.grad, 1250 * ADVANTAGE, rtol=1e-12)  # type: ignore[arg-type]


def test_a_step_down_the_gradient_favours_the_better_candidates() -> None:
    logit = gdpo_logit(REFERENCE - 1e-6 * ADVANTAGE.sign(), REFERENCE, ADVANTAGE)
    assert logit.item() > 0  # lower error where the advantage is positive


def test_gradients_in_float64() -> None:
    policy, reference, advantage = batch("m", "r", "a")
    given = (policy.requires_grad_(), reference.requires_grad_(), 1e3 * advantage)
    assert torch.autograd.gradcheck(lambda m, r, a: gdpo_loss(m, r, a, 50.0), given)
    assert torch.autograd.gradcheck(lambda m, r, a: gdpo_logit(m, r, a, 50.0), given)


def test_zero_advantage_gives_zero_gradient() -> None:
    policy, reference = batch("m", "r")
    policy.requires_grad_()
    loss = gdpo_loss(policy, reference, torch.zeros_like(reference))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931471805599453)
    assert not policy.grad.any()


def test_the_order_within_a_group_changes_nothing() -> None:
    order = torch.tensor([2, 0, 3, 1])
    given = batch("m", "r", "a")
    assert gdpo_loss(*(x[:, order] for x in given)).item() == pytest.approx(gdpo_loss(*given).item(), rel=1e-12)


def test_groups_are_averaged() -> None:
    given = batch("m", "r", "a")
    alone = [gdpo_loss(*(x[b : b + 1] for x in given)) for b in range(3)]
    assert gdpo_loss(*given).item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-12)


def test_omega_is_halved_and_scales_the_logit() -> None:
    policy, reference, advantage = batch("m", "r", "a")
    wanted = -0.5 * 7.0 * (advantage * (policy - reference)).sum(dim=1)
    assert torch.allclose(gdpo_logit(policy, reference, advantage, 7.0), wanted)
    default = gdpo_logit(policy, reference, advantage)
    assert torch.equal(default, gdpo_logit(policy, reference, advantage, 5000.0))


def test_a_large_logit_stays_finite() -> None:
    policy = (REFERENCE + ADVANTAGE).requires_grad_()  # logit -12500
    loss = gdpo_loss(policy, REFERENCE, ADVANTAGE)
    loss.backward()
    assert loss.item() == pytest.approx(2500 * 5, rel=1e-6)  # sum of A^2 is G - 1
    assert torch.isfinite(policy.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["policy_error_BG", "reference_error_BG", "advantage_BG"])
def test_bad_arguments_are_named(name: str) -> None:
    def call(value: Any) -> torch.Tensor:
        given = {"policy_error_BG": POLICY, "reference_error_BG": REFERENCE, "advantage_BG": ADVANTAGE}
        return gdpo_loss(**{**given, name: value})

    for value, says in (
        (POLICY[0], f"^{name} must have shape BG"),
        (POLICY[:, :5], "^policy_error_BG, reference_error_BG and advantage_BG differ in shape"),
        (POLICY * torch.nan, f"^{name} has values that are NaN"),
        (torch.zeros(1, 6, dtype=torch.int64), f"^{name} must be a floating-point tensor"),
        (POLICY.tolist(), f"^{name} must be a torch.Tensor"),
    ):
        with pytest.raises(ValueError, match=says):
            call(value)
