"""Example errors and advantages, and each objective's loss and slopes on them."""

from typing import Any

import torch
from torch import Tensor

from gdpo.config import Finetune
from gdpo.preference.objectives import (
    Strength,
    objective_loss,
)
from gdpo.rewards.attribute_aware import group_advantage
from gdpo.seeds import torch_generator

ADVANTAGE = group_advantage(torch.tensor([[0.1, 0.4, 0.35, 0.8, 0.65, 0.2]], dtype=torch.float64))
REFERENCE = torch.full((1, 6), 1e-2, dtype=torch.float64)
OBJECTIVES = ["gdpo", "dpo", "dance_grpo", "dgpo", "nft", "awm"]
SIGMA = 0.07


# No default among them; clips far from the errors of `example`, so that nothing is clipped but
# where a test wants it.
SETTINGS = {"omega": 300.0, "pairs": 2, "clip": 5.0, "beta": 40.0, "mix": 0.6}


def draw(*key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch_generator("objectives", *key), dtype=torch.float64)


def example(key: str, groups: int = 3, size: int = 6, away: float = 0.1) -> dict[str, Tensor]:
    """Errors m, o and d of the same random vectors, so that they are consistent, and advantages of
    random scores.
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
