"""A model of kind vlcot on a benchmark, several pictures at a time.

An evaluation asks for one picture's outputs after another; the chains of one picture are too few
for a batch to be quick. `Ahead` makes those of the whole group of pictures that the first missing
one belongs to. Groups are fixed by the pictures' order, so that a resumed evaluation has the same
batches, and the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from gdpo.data.operations import INFERENCE_MODE
from gdpo.data.shards import Pair, enlarge
from gdpo.evaluate.benchmark import noise_keys
from gdpo.images import to_tensor
from gdpo.seeds import Key
from gdpo.upscale.chains import VlcotResolver

PICTURES = 4  # of a group; a stop waits for one


class Pairs(Protocol):
    """The pairs of a benchmark, in order."""

    @property
    def ids(self) -> Sequence[str]:
        """Their names."""
        ...

    def __getitem__(self, index: int, /) -> Pair:
        """One pair."""
        ...


@dataclass(frozen=True)
class Ahead(VlcotResolver):
    """As `VlcotResolver`, for the keys of an evaluation of `pairs` with `seed` and `noises`."""

    pairs: Pairs
    seed: int
    noises: int
    _outputs: dict[Key, torch.Tensor] = field(default_factory=dict)

    def batch(self, enlarged_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """As in `SuperResolver`."""
        if any(key not in self._outputs for key in keys):
            self._make(keys[0])
        return torch.cat([self._outputs.pop(key) for key in keys])

    def _make(self, key: Key) -> None:
        ids = list(self.pairs.ids)
        index = next(
            i for i, id_ in enumerate(ids) if key in noise_keys(self.seed, id_, self.noises)
        )
        first = index - index % PICTURES
        pictures, keys = list[torch.Tensor](), list[Key]()
        for place in range(first, min(first + PICTURES, len(ids))):
            pair = self.pairs[place]
            enlarged = to_tensor(enlarge(pair.lr, pair.hr.shape[:2], INFERENCE_MODE))[None]
            own = noise_keys(self.seed, pair.id, self.noises)
            pictures += [enlarged] * len(own)
            keys += own
        self._outputs.clear()
        self._outputs.update(zip(keys, self.pictures(pictures, keys), strict=True))
