"""Seeded random draws: a tuple such as (seed, step, sample) seeds every generator.

No draw uses global state, so it depends on its key alone: not on batching, the number of processes
or earlier draws.
"""

import hashlib
import json

import numpy as np
import torch

Key = tuple[int | str, ...]  # seeds a generator


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a tuple of numbers and names, e.g. (seed, step, sample).

    The seed is the same on every machine.
    """
    # JSON and not hash(): Python salts the hash of texts in each process. It also tells ("a", 1)
    # from ("a1",).
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*key)`.

    Noise is drawn on the CPU so that it is the same for every device.
    """
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*key)`."""
    return np.random.default_rng(seed_of(*key))


def seeded_noise(seeds: list[int], shape: tuple[int, ...], count: int = 1) -> torch.Tensor:
    """Standard normal noise (count, len(seeds), *shape).

    Column i comes from its own generator, seeded with seeds[i], so the noise does not depend on
    batching or rank.
    """
    return torch.stack(
        [
            torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ],
        1,
    )
