"""The objectives: released and hand-computed values, slopes in closed form, and what must not
change them.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gdpo.config import Finetune
from gdpo.preference.objectives import (
    Strength,
    awm_loss,
    dance_grpo_loss,
    dgpo_loss,
    diffusion_dpo_loss,
    gdpo_logit,
    gdpo_loss,
    nft_loss,
    objective_loss,
)
from gdpo.rewards.attribute_aware import group_advantage
from gdpo.seeds import torch_generator

ADVANTAGE = group_advantage(torch.tensor([[0.1, 0.4, 0.35, 0.8, 0.65, 0.2]], dtype=torch.float64))
POLICY = torch.tensor([[101, 99, 100, 98, 97, 102]], dtype=torch.float64) * 1e-4
REFERENCE = torch.full((1, 6), 1e-2, dtype=torch.float64)

OBJECTIVES = ["gdpo", "dpo", "dance_grpo", "dgpo", "nft", "awm"]
SIGMA = 0.07
# No default among them; clips far from the errors of `example`, so that nothing is clipped but
# where a test wants it.
SETTINGS = {"omega": 300.0, "pairs": 2, "clip": 5.0, "beta": 40.0, "mix": 0.6}


def draw(*key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch_generator("objectives", *key), dtype=torch.float64)


def example(key: str, groups: int = 3, size: int = 6, away: float = 0.1) -> dict[str, Tensor]:
    """Errors of predictions that are vectors, so that m, o and d fit together; advantages of random
    scores.
    """
    shape = (groups, size, 20)
    target, old = draw(key, "target", shape=shape), draw(key, "old", shape=shape)
    policy, reference = (
        old + away * draw(key, name, shape=shape) for name in ("policy", "reference")
    )
    policy, reference, old, target = (0.1 * x for x in (policy, reference, old, target))

    def mean_square(x: Tensor) -> Tensor:
        return x.square().mean(dim=2)

    return {
        "policy": mean_square(policy - target),
        "reference": mean_square(reference - target),
        "old": mean_square(old - target),
        "distance": mean_square(policy - old),
        "advantage": group_advantage(draw(key, "score", shape=(groups, size))),
    }


def loss_of(name: str, given: dict[str, Tensor], **settings: Any) -> Tensor:
    values = {**SETTINGS, **settings}
    strength = Strength(*(values.pop(key, 0.0) for key in ("omega", "beta", "clip", "mix")))
    return objective_loss(
        Finetune.model_validate({"objective": name, **values}),
        strength,
        given["policy"],
        given["reference"],
        given["old"],
        given["distance"],
        given["advantage"],
        SIGMA,
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


# --- values
# --------------------------------------------------------------------------------------------------


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
        (
            [3.0, -1, -1, -1],
            {(0, 1): 1 / 3, (0, 2): 1 / 3, (0, 3): 1 / 3},
        ),  # (j, k) among the equal: no pair
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
    """Two places at either end; omega 2 and errors 1, 4, 9, ... make the change of a pair its
    logit.
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
    """A policy and an old policy that hit the target: a root of 0, and even a branch below 0 by
    rounding, stay finite.
    """
    zero = torch.zeros(1, 2, dtype=torch.float64)
    policy = (zero - 1e-18).requires_grad_()
    loss = nft_loss(policy, zero, zero, torch.tensor([[1.0, -1.0]], dtype=torch.float64), 1.0)
    loss.backward()
    assert torch.allclose(
        policy.grad, torch.tensor([[0.1, -0.1]], dtype=torch.float64) / 1e-5, rtol=1e-9
    )


# --- identities between objectives
# ------------------------------------------------------------------------------------


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


# --- properties of all
# ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "name", ["gdpo", "dpo", "dance_grpo", "dgpo", "awm"]
)  # nft: its roots are without gradient
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
    """Candidate 0 beyond the clip, then as far on the other side, then inside it; candidate 1 stays
    where it was.
    """
    unit = 2 * SIGMA**2 if name == "dance_grpo" else 1.0
    old = torch.full((1, 2), 0.05, dtype=torch.float64)
    better = (
        -1.0 if advantage > 0 else 1.0
    )  # an error that moves so has the ratio follow the advantage
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


# --- bad input
# --------------------------------------------------------------------------------------------------


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
