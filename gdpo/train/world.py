"""The processes that share one training step: data parallelism without a wrapper around the model.

    rank, size      0..size-1, and the number of processes; only rank 0 logs and writes
    share(batch)    positions of this rank's samples in the batch: contiguous; sizes differ by at
                    most one
    add_gradients   all-reduce (sum) of the gradients. Each rank weights its loss by its part of the
                    batch, so the sum is the gradient of the whole batch
    add             all-reduce (sum) of named values, for logging
    any_rank        whether a flag is set on any rank
    collective      barrier; re-raises the first rank's error on all ranks
    from_main       a value that rank 0 computes for all

With size 1 there is no process group and no communication. The adapters have 4 M parameters, so one
all-reduce per step is cheap. Noise comes from generators keyed by (seed, step, sample) and does not
depend on size: size changes only rounding.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from gdpo.checks import NotFinite

Value = TypeVar("Value")
# torchrun notices a dead rank at once. The timeout only limits the wait for rank 0, which hashes
# the inputs for all.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The rank and device of this process in data-parallel training; default: a single process."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """This rank's positions in a batch; over all ranks, each position occurs once."""
        # Contiguous shares: rank after rank, the positions of a batch have the order of a single
        # process, so rounding is all that the number of processes changes.
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """All-reduce: replace the gradients by their sums over the ranks, in place.

        All ranks must have gradients for the same parameters.
        """
        if self.size == 1:
            return
        # One all-reduce over a flat copy is faster than one for each parameter.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(
            gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(total.view_as(gradient))

    def add(self, values: dict[str, float]) -> dict[str, float]:
        """The sums of named values over the ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.add({"flag": float(flag)})["flag"] > 0

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Barrier; re-raises the first rank's ValueError or OSError on all ranks."""
        if self.size == 1:
            yield
            return
        own: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            own = error
        # The all-reduce in any_rank is the barrier.
        if not self.any_rank(own is not None):
            return
        errors: list[tuple[bool, str] | None] = [None] * self.size
        dist.all_gather_object(
            errors, None if own is None else (isinstance(own, NotFinite), str(own))
        )
        if own is not None:
            raise own
        not_finite, text = next(failure for failure in errors if failure is not None)
        raise NotFinite(text) if not_finite else ValueError(text)

    def from_main(self, compute: Callable[[], Value]) -> Value:
        """The value of `compute`, which rank 0 alone calls; its error is raised on all ranks."""
        values: list[Any] = [None]
        with self.collective():
            if self.is_main:
                values = [compute()]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        value: Value = values[0]
        return value


def current() -> World:
    """The `World` of this process: that of its process group, or of a single process."""
    if not dist.is_available() or not dist.is_initialized():
        return World()
    nccl = dist.get_backend() == "nccl"
    # NCCL moves tensors of its GPU only, gloo those of the CPU.
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def joined() -> Iterator[World]:
    """Join the process group of the ranks that torchrun started on this host.

    NCCL if there is a GPU for each rank, otherwise gloo on the CPU.
    """
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", timeout=TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    yield current()
    # Not in `finally`: after a failure, NCCL may wait here for a rank that has ended.
    dist.destroy_process_group()
