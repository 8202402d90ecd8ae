"""The processes that share one training step: data parallelism without a wrapper around the model.

    rank, size      0..size-1, and how many processes; rank 0 alone logs and writes
    share(batch)    positions of this rank's samples in the batch: a contiguous run, sizes differ by
                    at most one
    add_gradients   sums the gradients over the ranks. Each rank weights its loss by its part of the
                    batch, so the sum is the gradient of the whole batch
    add             sums named values over the ranks, for logging
    any_rank        whether a flag is raised on any rank
    collective      barrier; re-raises the first rank's error on all ranks

With size 1 there is no process group and nothing is exchanged. The adapters have 4 M parameters, so
one all-reduce per step is cheap. Noise comes from generators keyed by (seed, step, sample) and does
not depend on size: size changes nothing but rounding.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from gdpo.checks import NotFinite

# A rank that dies is noticed by torchrun, at once; this is for one that hashes its inputs more
# slowly than the others.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among those that train together; by default it trains alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """The positions in a batch that are this rank's; over all ranks each position occurs
        once.
        """
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients by their sums over the ranks, which must have gradients in the same
        parameters.
        """
        if self.size == 1:
            return
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
        """Whether the flag is raised in any rank."""
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
        if not self.any_rank(own is not None):
            return
        told: list[tuple[bool, str] | None] = [None] * self.size
        dist.all_gather_object(
            told, None if own is None else (isinstance(own, NotFinite), str(own))
        )
        if own is not None:
            raise own
        not_finite, text = next(found for found in told if found is not None)
        raise NotFinite(text) if not_finite else ValueError(text)


def current() -> World:
    """The world of this process: its process group, or itself alone."""
    if not dist.is_available() or not dist.is_initialized():
        return World()
    nccl = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def joined() -> Iterator[World]:
    """Be one of the processes that torchrun started on this host: NCCL with a GPU for each,
    otherwise gloo on the CPU.
    """
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", timeout=TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    yield current()
    dist.destroy_process_group()  # not after a failure: NCCL may wait there for a rank that is gone
