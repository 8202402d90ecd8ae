"""Strengths by a rule that transfers: omega, beta, clip and mix from a distance, `finetune.reach`.

What an objective does depends on omega times the differences m - r, not on omega, and m - r goes
with the size of the latent, the target, the input and the candidates. So the rule states where an
objective gives way, as a distance of the policy from the reference:

    D       = sqrt(mean |e_policy - e_reference|^2 / mean r)      reach is such a distance
    spread  = standard deviation of m_i - r_i within a group at D = reach

    omega   2 / (spread sqrt(G - 1))    gdpo: a logit of unit variance, for advantages independent
                                        of m - r
            2 / (spread sqrt(2))        dpo: the same for the logit of a pair
    beta    G omega / 2                 dgpo: the logit of gdpo
    clip    spread                      awm, dgpo: one standard deviation of the log-ratio o - m
            spread / (2 sigma^2)        dance_grpo, whose log-ratio is that of densities
    mix     1 / (5 reach)               nft: the distance at which its two branches balance, for a
                                        candidate of advantage 1

spread is measured before training. The first groups give the direction in which the preferences
pull, as signs of the gradient (AdamW's first step); the next ones measure m - r and D after a step
of the learning rate in that direction, and both grow in proportion for steps as small as that.
The advantages are those of the reward in the control too, so that both have the same strengths.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gdpo.config import Finetune
from gdpo.preference.group import Group
from gdpo.preference.objectives import ADVANTAGE_LIMIT, Strength
from gdpo.preference.passes import Loss, Passes
from gdpo.train.world import World

# Relative excess over ln 2 of the first epoch's mean loss, above which a strength is too great.
EXCESS = 0.01
LOGITS = ("gdpo", "dpo", "dgpo")  # the objectives whose loss is ln 2 without a preference
# What is at a position of the training order: group, noise index, rewards, advantages; or nothing.
Scored = Callable[[int], tuple[Group, int, list[float], list[float]] | None]
PROBED = 16  # groups that give the direction, and as many again that measure
# The keys that each objective reads.
READ = {
    "gdpo": ("omega",),
    "dpo": ("omega",),
    "dgpo": ("beta", "clip"),
    "awm": ("clip",),
    "dance_grpo": ("clip",),
    "nft": ("mix",),
}


@dataclass(frozen=True)
class Probe:
    """m - r and D after a small step: spread, its standard deviation within groups; distance, D."""

    spread: float
    distance: float


def strength_of(
    settings: Finetune, size: int, sigma: float, probe: Callable[[], Probe]
) -> Strength:
    """The strengths of a run: those that are set, and by the rule those that are null.

    size: G. sigma: `rollout.sigma`. probe: called only if the rule needs it. A key that the
    objective does not read is 0 if it is null.
    Errors: ValueError if no candidate's error changes under the probe.
    """
    given = {
        "omega": settings.omega,
        "beta": settings.beta,
        "clip": settings.clip,
        "mix": settings.mix,
    }
    ruled = {"mix": 1 / (ADVANTAGE_LIMIT * settings.reach)}
    needed = [name for name in READ[settings.objective] if given[name] is None]
    # The probe costs 32 groups; a run whose strengths are all set, or need no spread, does without.
    if set(needed) - set(ruled):
        measured = probe()
        if not measured.spread * measured.distance > 0:
            raise ValueError(
                f"finetune.{needed[0]} is null, and no preference moves the policy: every group "
                "has equal scores; check reward and rollout.metrics, or set it to a number"
            )
        spread = measured.spread * settings.reach / measured.distance
        pair = settings.objective == "dpo"
        # sum_i A_i^2 = G - 1 for z-scores by the unbiased deviation; a pair has A_w - A_l with two
        # terms.
        omega = 2 / (spread * (2 if pair else size - 1) ** 0.5)
        unit = 2 * sigma**2 if settings.objective == "dance_grpo" else 1.0
        ruled |= {"omega": omega, "beta": size * omega / 2, "clip": spread / unit}
    return Strength(
        **{n: ruled.get(n, 0.0) if value is None else value for n, value in given.items()}
    )


def probe(
    scored: Scored,
    passes: Passes,
    parameters: Sequence[torch.nn.Parameter],
    rate: float,
    world: World,
) -> Probe:
    """What a step of `rate` towards the preferences of the first groups does on the next ones.

    The parameters are as before afterwards, and their gradients are 0.
    """
    positions = world.share(PROBED)
    with world.collective():
        for position in positions:
            if (group_and_advantage := scored(position)) is not None:
                group, noise, _, advantage = group_and_advantage
                passes.backward(
                    group, noise, _weighted(advantage), weight=1 / PROBED, distance=False
                )
    world.add_gradients(parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    totals = dict.fromkeys(("spread", "distance", "reference", "groups"), 0.0)
    with torch.no_grad(), world.collective():
        for parameter in parameters:
            assert parameter.grad is not None
            # The sign, because that is what AdamW's first step amounts to: its two moments hold one
            # gradient, and their ratio is +-1.
            parameter.sub_(rate * parameter.grad.sign())
            parameter.grad.zero_()
        for position in positions:
            if (group_and_advantage := scored(PROBED + position)) is not None:
                group, noise, _, _ = group_and_advantage
                policy, moved = passes.errors(group, noise, distance=True)
                reference = torch.tensor(group.reference_error[noise], dtype=torch.float64)
                totals["spread"] += float((policy.cpu() - reference).var())
                totals["distance"] += float(moved.mean())
                totals["reference"] += float(reference.mean())
                totals["groups"] += 1
        for parameter, value in zip(parameters, before, strict=True):
            # Back to the start, so that a run with measured strengths begins where one with the
            # same numbers set by hand does.
            parameter.copy_(value)
    totals = world.add(totals)
    if not totals["reference"]:
        return Probe(0.0, 0.0)
    return Probe(
        (totals["spread"] / totals["groups"]) ** 0.5,
        (totals["distance"] / totals["reference"]) ** 0.5,
    )


def _weighted(advantage: list[float]) -> Loss:
    """sum_i A_i m_i, whose gradient is that of every objective at the reference, up to a factor."""

    def loss(policy: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (torch.tensor([advantage], dtype=policy.dtype, device=policy.device) * policy).sum()

    return loss


def warn_of_excess(losses: Sequence[float], settings: Finetune, named: str) -> None:
    """Log a warning if the losses of the first epoch say that a logit's strength is too great.

    A policy that prefers nothing has ln 2; more means that chance has moved the logits further than
    preference. named: the strengths, with their values.
    """
    mean = sum(losses) / len(losses)
    if settings.objective not in LOGITS or mean <= math.log(2) * (1 + EXCESS):
        return
    by_rule = any(getattr(settings, name) is None for name in READ[settings.objective])
    logging.getLogger(__name__).warning(
        "the mean loss of the first epoch is %.3f, above the ln 2 of a policy without preference: "
        "%s is too strong for these rollouts; %s",
        mean,
        named,
        f"lower finetune.reach, now {settings.reach:g}, from which it follows"
        if by_rule
        else "lower it, or set it to null, and it follows from finetune.reach",
    )
