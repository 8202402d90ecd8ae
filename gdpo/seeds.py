"""Seeded random draws: every generator is seeded by a tuple such as (seed, step, sample), never by
global state.

A draw therefore depends on its key alone: not on batching, the number of processes, or what was
drawn before.
"""

import hashlib
import json

import numpy as np
import torch

Key = tuple[int | str, ...]  # what seeds a generator


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from any tuple of numbers and names, e.g. (seed, step, sample); equal on every
    machine.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*key)`. Noise is drawn on the CPU so that every device
    sees the same.
    """
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*key)`."""
    return np.random.default_rng(seed_of(*key))


def seeded_noise(seeds: list[int], shape: tuple[int, ...], count: int = 1) -> torch.Tensor:
    """Standard normal noise (count, len(seeds), *shape), column i from a generator of its own,
    seeded with seeds[i]: independent of batching and of rank.
    """
    return torch.stack(
        [
            torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ],
        1,
    )
