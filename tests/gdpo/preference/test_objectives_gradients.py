"""What holds for the gradients of all objectives: slopes, invariances, clips, micro-batches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gdpo.preference.objectives import (
    gdpo_logit,
    gdpo_loss,
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


def slopes(name: str, given: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """dL/dm and dL/dd."""
    leaves = {key: given[key].detach().clone().requires_grad_() for key in ("policy", "distance")}
    loss = loss_of(name, {**given, **leaves}, **settings)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return tuple(torch.zeros_like(given["policy"]) if x is None else x for x in found)


def at_the_reference(given: dict[str, Tensor]) -> dict[str, Tensor]:
    error = given["reference"]
    return {**given, "policy": error, "old": error, "distance": torch.zeros_like(error)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_first_slopes_are_the_documented_ones(name: str) -> None:
    """Down with the error of the best, up with that of the worst."""
    x = at_the_reference(example("slope"))
    found, _ = slopes(name, x, pairs=1, clip=1e-4)
    groups, size = found.shape
    a, r = x["advantage"], x["reference"]
    scale = {
        "gdpo": 300.0 / 4 * a,
        "dgpo": 40.0 / (2 * size) * a,
        "dance_grpo": a / (2 * SIGMA**2) / size,
        "nft": 0.6 / 5 * a / r.sqrt() / size,
        "awm": a / size,
        "dpo": 300.0
        / 4
        * ((a == a.amax(1, keepdim=True)).double() - (a == a.amin(1, keepdim=True)).double()),
    }
    assert torch.allclose(found, scale[name] / groups, rtol=1e-9)
    best, worst = a.argmax(1, keepdim=True), a.argmin(1, keepdim=True)
    assert (found.gather(1, best) > 0).all() and (found.gather(1, worst) < 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("away", [0.0, 0.1, 100.0])
def test_equal_scores_give_no_gradient_and_count_in_the_mean(name: str, away: float) -> None:
    """One group of three has equal scores; the others keep what they have alone, by 3."""
    x = example("equal", away=away)
    x["advantage"][1] = 0
    for given in (x, at_the_reference(x)):
        for part, slope in enumerate(slopes(name, given)):
            assert not slope[1].any()
            for b in (0, 2):
                alone = slopes(name, {key: value[b : b + 1] for key, value in given.items()})[part]
                assert torch.allclose(slope[b : b + 1], alone / 3, rtol=1e-9, atol=1e-300)
            assert part == 1 or away == 100 or slope[0].any()
    for part in slopes(name, {key: value[1:2] for key, value in x.items()}):
        assert not part.any()


@pytest.mark.parametrize("name", ["dance_grpo", "awm"])
def test_equal_scores_where_the_ratio_overflows(name: str) -> None:
    x = example("overflow", groups=1)
    given = {
        **x,
        "policy": torch.zeros_like(x["policy"]),
        "old": x["old"] + 1e4,
        "advantage": torch.zeros_like(x["policy"]),
    }
    assert not slopes(name, given)[0].any()
    assert loss_of(name, given).item() == 0


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_within_a_group_changes_nothing(name: str, ties: bool) -> None:
    x = example("order")
    if ties:
        x["advantage"] = group_advantage(
            torch.tensor([[1.0, 1, 1, 0, 0, 0], [2, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]).double()
        )
    order = torch.tensor([2, 0, 3, 1, 5, 4])
    shuffled = {key: value[:, order] for key, value in x.items()}
    assert loss_of(name, shuffled, clip=1e-3).item() == pytest.approx(
        loss_of(name, x, clip=1e-3).item(), rel=1e-12
    )
    for before, after in zip(
        slopes(name, x, clip=1e-3), slopes(name, shuffled, clip=1e-3), strict=True
    ):
        assert torch.allclose(after, before[:, order], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_groups_are_averaged(name: str) -> None:
    x = example("mean")
    alone = [loss_of(name, {key: value[b : b + 1] for key, value in x.items()}) for b in range(3)]
    assert loss_of(name, x).item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-12)


# Not nft: its roots carry no gradient.
@pytest.mark.parametrize("name", ["gdpo", "dpo", "dance_grpo", "dgpo", "awm"])
def test_gradients_in_float64(name: str) -> None:
    x = example("check")
    given = {key: x[key].clone().requires_grad_() for key in ("policy", "reference")}
    if name in ("dance_grpo", "awm"):
        del given["reference"]

    def loss(*values: Tensor) -> Tensor:
        return loss_of(name, {**x, **dict(zip(given, values, strict=True))})

    assert torch.autograd.gradcheck(loss, tuple(given.values()))


def test_gradients_of_the_logit_in_float64() -> None:
    x = example("logit")
    given = tuple(x[key].clone().requires_grad_() for key in ("policy", "reference", "advantage"))
    assert torch.autograd.gradcheck(lambda m, r, a: gdpo_logit(m, r, a, 50.0), given)


@pytest.mark.parametrize("name", ["dance_grpo", "dgpo", "awm"])
@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_the_clip_stops_a_candidate_in_the_direction_of_its_advantage_only(
    name: str, advantage: float
) -> None:
    """Candidate 0 is beyond the clip, then as far on the other side, then inside; candidate 1 does
    not move.
    """
    unit = 2 * SIGMA**2 if name == "dance_grpo" else 1.0
    old = torch.full((1, 2), 0.05, dtype=torch.float64)
    # The direction of the error in which the ratio moves with the advantage.
    better = -1.0 if advantage > 0 else 1.0
    found = []
    for change in (2e-3, -2e-3, 5e-4):
        policy = old + torch.tensor([[better * change * unit, 0.0]], dtype=torch.float64)
        given = {"policy": policy, "reference": old + 0.01, "old": old, "distance": old}
        given["advantage"] = torch.tensor([[advantage, -advantage]], dtype=torch.float64)
        slope = slopes(name, given, clip=1e-3)[0][0]
        assert slope[1] * -advantage > 0
        found.append(slope[0].item() * advantage)
    beyond, other_side, inside = found
    assert beyond == 0 and other_side > 0 and inside > 0


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("clip", [5.0, 1e-3])
def test_micro_batches_by_the_group_scalar_form_give_the_same_gradient(
    name: str, chunk: int, clip: float
) -> None:
    """dL/dm_i and dL/dd_i from the group's detached errors; then the backward pass of sum dL/dm_i
    m_i + dL/dd_i d_i.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(20, 8), torch.nn.Tanh(), torch.nn.Linear(8, 20)
        ).double()
    inputs, target = (0.3 * draw("micro", what, shape=(6, 20)) for what in ("inputs", "target"))
    with torch.no_grad():
        old = network(inputs) + 0.03 * draw("micro", "old", shape=(6, 20))
        reference = network(inputs) + 0.03 * draw("micro", "reference", shape=(6, 20))

    def mean_square(x: Tensor) -> Tensor:
        return x.square().mean(dim=1)

    fixed = {
        "reference": mean_square(reference - target)[None],
        "old": mean_square(old - target)[None],
    }
    fixed["advantage"] = ADVANTAGE

    def errors(part: slice) -> tuple[Tensor, Tensor]:
        predicted = network(inputs[part])
        return mean_square(predicted - target[part]), mean_square(predicted - old[part])

    def gradient() -> list[Tensor]:
        found = [
            parameter.grad.clone()
            for parameter in network.parameters()
            if parameter.grad is not None
        ]
        network.zero_grad()
        return found

    policy, distance = errors(slice(None))
    loss_of(
        name, {**fixed, "policy": policy[None], "distance": distance[None]}, clip=clip
    ).backward()
    whole = gradient()
    with torch.no_grad():
        policy, distance = errors(slice(None))
    by_m, by_d = slopes(
        name, {**fixed, "policy": policy[None], "distance": distance[None]}, clip=clip
    )
    for i in range(0, 6, chunk):
        part = slice(i, i + chunk)
        m, d = errors(part)
        (by_m[0, part] * m + by_d[0, part] * d).sum().backward()
    parts = gradient()
    assert len(whole) == len(parts) == 4 and all(x.abs().max() > 0 for x in whole)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-15)


def test_a_large_logit_stays_finite() -> None:
    policy = (REFERENCE + ADVANTAGE).requires_grad_()  # logit -12500
    loss = gdpo_loss(policy, REFERENCE, ADVANTAGE)
    loss.backward()
    assert loss.item() == pytest.approx(2500 * 5, rel=1e-6)  # sum of A^2 is G - 1
    assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loop_waits_for_no_value_and_keeps_the_dtype(name: str) -> None:
    """A tensor on the device `meta` has no values: reading one raises, as it does in the public
    functions' checks.
    """
    x = {key: value.float().to("meta") for key, value in example("meta").items()}
    loss = loss_of(name, x)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss_of(name, example("meta")).dtype == torch.float64
    with pytest.raises(RuntimeError, match="meta"):
        gdpo_loss(x["policy"], x["reference"], x["advantage"])
