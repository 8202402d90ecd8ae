"""Pairs of noise."""

import numpy as np

from gdpo.config import Degradation
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.shards import Box, Pair


def noise_pair(i: int, side: int = 16) -> Pair:
    """Ids go down where boxes go up; noise, so that every image has its own size in bytes."""
    rng = np.random.default_rng(i)
    hr = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    drawn = draw(Degradation(second_prob=0.5), np.random.default_rng(i))
    lr = low_resolution(hr.astype(np.float32) / 255, drawn)
    return Pair(
        f"id{99 - i:04d}",
        f"photo{i // 15}",
        Box(i, 2 * i, side, side),
        hr,
        lr,
        drawn,
        i / 100,
        "a cat" if i % 2 else None,
    )
