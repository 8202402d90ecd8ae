"""What pretraining returns: the last weights, their moving average, or the best by validation.

    ema               average <- d average + (1 - d) weights after every step
    validate_every    the loss on held-out training photographs; the result is the best so far
    keep_every        every N steps the weights go to the caller

Validation holds out whole photographs: patches of one photograph overlap.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gdpo.config import Pretrain
from gdpo.data.shards import Shards
from gdpo.train.world import World

Weights = dict[str, torch.Tensor]
Keep = Callable[[int, Weights], None]


def held_out(pairs: Shards, settings: Pretrain) -> tuple[set[int], list[int]]:
    """(held out of the training, used for validation): indices of pairs.

    Photographs are held out in the order of the hashes of their names, until they have
    `pretrain.validate_pairs` pairs; that many are used for validation. Without
    `pretrain.validate_every` none is held out.
    Errors: ValueError if no pair is left to train on.
    """
    if settings.validate_every is None:
        return set(), []
    counts = pairs.photographs()
    names: set[str] = set()
    number = 0
    for name in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if number >= settings.validate_pairs:
            break
        names.add(name)
        number += counts[name]
    if number == len(pairs):
        raise ValueError(
            f"pretrain.validate_pairs is {settings.validate_pairs}, and the photographs with so "
            f"many pairs are all there are ({len(pairs)} pairs); lower it"
        )
    held = [index for index in range(len(pairs)) if pairs.photograph_of(index) in names]
    return set(held), held[: settings.validate_pairs]


@dataclass
class Result:
    """The weights that the stage writes, as one entry of its checkpoint.

    policy: the parameters in training. settings: `ema`, `validate_every`, `keep_every`.
    """

    policy: Mapping[str, torch.nn.Parameter]
    settings: Pretrain
    average: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    best_loss: float = float("inf")

    def __post_init__(self) -> None:
        if self.settings.ema is not None:
            self.average = self._copies(self.policy)

    def update(self) -> None:
        """Move the average towards the weights of this step."""
        decay = self.settings.ema
        if decay is None:
            return
        with torch.no_grad():
            for name, parameter in self.policy.items():
                self.average[name].lerp_(parameter.detach(), 1 - decay)

    def current(self) -> Weights:
        """Copies of the average, or without one of the weights, on the CPU."""
        return {
            name: tensor.cpu() for name, tensor in self._copies(self.average or self.policy).items()
        }

    def final(self) -> Weights:
        """Copies of the best weights if there was a validation, else the current ones."""
        return dict(self.best) if self.best else self.current()

    def validated(self, loss: Callable[[], float]) -> float:
        """The `loss` of the current weights, which the model has while `loss` is called.

        They become the best weights if their loss is the lowest so far.
        """
        before = self._copies(self.policy)
        self._load(self.average or before)
        try:
            value = loss()
        finally:
            self._load(before)
        if value < self.best_loss:
            self.best, self.best_loss = self.current(), value
        return value

    def state_dict(self) -> dict[str, Any]:
        """The average, the best weights and their loss."""
        return {"average": self.average, "best": self.best, "best_loss": self.best_loss}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore them."""
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.best, self.best_loss = state["best"], float(state["best_loss"])

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.items():
                parameter.copy_(weights[name])

    @staticmethod
    def _copies(tensors: Mapping[str, torch.Tensor]) -> Weights:
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class AfterStep:
    """What happens after a step besides its update: averaging, validation, keeping.

    loss: the validation loss of the weights in the model. keep: called on rank 0 with the number
    of finished steps and the weights.
    """

    result: Result
    settings: Pretrain
    loss: Callable[[], float]
    keep: Keep
    world: World

    def __call__(self, done: int) -> dict[str, float]:
        """What is to be logged of it. done: the number of finished steps."""
        self.result.update()
        every = self.settings.validate_every
        logged = {}
        if every is not None and done % every == 0:
            logged = {"validation": self.result.validated(self.loss)}
        if self.settings.keep_every is not None and done % self.settings.keep_every == 0:
            with self.world.collective():
                if self.world.is_main:
                    self.keep(done, self.result.current())
        return logged
