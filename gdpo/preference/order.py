"""The order in which fine-tuning uses its groups, and the stored noise of each epoch.

The order is infinite and shuffled anew in each epoch. Epoch e uses stored noise e mod K, so K
stored noises give K different epochs. Everything follows from the training seed and the position,
which is why a resumed run continues the same order and the report can recompute it.

    seed = training_seed(config.seed, config.finetune.repeat)
    index, epoch = group_at(seed, step * batch + i, len(groups))
    noise = noise_index(epoch, repeat, noises)
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gdpo.seeds import numpy_generator, seed_of


def training_seed(seed: int, repeat: int) -> int:
    """The seed of a training: `finetune.repeat` n > 0 is another training on the same rollouts."""
    return seed_of(seed, "repeat", repeat) if repeat else seed


def group_at(seed: int, position: int, count: int) -> tuple[int, int]:
    """(index of the group, epoch) at a position 0, 1, ... of the order of `count` groups."""
    epoch, offset = divmod(position, count)
    return int(_order(seed, epoch, count)[offset]), epoch


def noise_index(epoch: int, repeat: int, noises: int) -> int:
    """Index 0..K-1 of the stored noise in an epoch; a repeated training starts with another one."""
    return (epoch + repeat) % noises


@lru_cache(maxsize=2)  # a step may reach from one epoch into the next
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The permutation of one epoch."""
    return numpy_generator(seed, "groups", epoch).permutation(count)
