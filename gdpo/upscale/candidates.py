"""Several results for one photograph, one per seed, each with a score: best-of-N.

    made = list(candidates(model, photo, size=(512, 512), seeds=range(4), by="niqe"))
    max(made, key=lambda one: one.rank)

Shapes: H W pixels, C channels; photographs are uint8 or uint16 HWC RGB.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gdpo.metrics.table import METRICS
from gdpo.upscale.protocol import SuperResolver, UpscaledPhoto


@dataclass(frozen=True)
class Candidate:
    """The result of one seed.

    score: by the metric that chooses; None where none was asked for. rank: the greater the better.
    """

    seed: int
    photo: UpscaledPhoto
    score: float | None
    rank: float


def candidates(
    model: SuperResolver,
    photo: NDArray[Any],
    *,
    size: tuple[int, int],
    seeds: Sequence[int],
    by: str | None,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Candidate]:
    """The results of `photo` for each seed, one at a time.

    size: (height, width) of the result. by: a no-reference metric, None: no scores. on_tile: called
    with (done, total) over all seeds.
    Errors: ValueError naming the argument.
    """
    for number, seed in enumerate(seeds):

        def passed(done: int, total: int, before: int = number) -> None:
            on_tile(before * total + done, total * len(seeds))

        result = model.photo(photo, size=size, seed=seed, on_tile=passed)
        value = None if by is None else _score(result.image, by)
        sign = 1.0 if by is None or METRICS[by].higher_is_better else -1.0
        yield Candidate(seed, result, value, sign * (value or 0.0))


def _score(image: NDArray[Any], by: str) -> float:
    from gdpo.metrics.score import score  # its networks' libraries: a CPU second

    levels = np.iinfo(image.dtype).max
    one = torch.from_numpy(image.astype(np.float32) / levels).permute(2, 0, 1)[None]
    return float(score([by], one)[by])
