"""The training loop over steps: logging, atomic checkpoints and exact resume.

    for step in range(first, steps):            # first = 0, or the step of the checkpoint
        values = step_fn(step)                  # all generators seeded by (seed, step, sample)
        every N steps, or on a stop request:
            checkpoint(step + 1, state, history)    # written aside, then renamed

A run that is killed and resumed gives the same bytes as an uninterrupted run, on an equal device
with as many threads (their number changes rounding). No random state persists between steps, and
the checkpoint has all state that does persist: weights, optimisers and the history of logged
values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

import numpy as np
import torch

from gdpo.checks import NotFinite
from gdpo.hooks import Hooks, Stopped
from gdpo.items import ItemStore
from gdpo.train.world import World, current

CHECKPOINT = "checkpoint.pt"


class Stateful(Protocol):
    """An object whose state a checkpoint stores: an optimiser, or a `Tensors` view of weights."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state."""
        ...


@dataclass(frozen=True)
class Tensors:
    """A named set of parameters as one checkpoint entry.

    Loading copies in place, so that the references of optimisers stay valid.
    """

    tensors: Mapping[str, torch.Tensor]

    def state_dict(self) -> dict[str, Any]:
        """Detached copies by name."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Copy the values in place; ValueError for a missing or extra name."""
        if state.keys() != self.tensors.keys():
            odd = sorted(state.keys() ^ self.tensors.keys())[:3]
            raise ValueError(
                f"checkpoint and model disagree about the tensors {odd}: the model changed since "
                "it was written"
            )
        # In place: optimisers and layers hold these tensors, not their names.
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


class Diverged(ValueError):
    """A loss or gradient became NaN or infinite; the last good checkpoint is unchanged."""


def checkpoints(folder: Path, fingerprint: str) -> ItemStore:
    """The store of a run's checkpoint. fingerprint: as in `Loop`."""
    return ItemStore(folder, fingerprint, CHECKPOINT)


@dataclass
class Loop:
    """A resumable loop over optimiser steps.

    folder: the folder of `checkpoint.pt`, outside the stage's outputs.
    fingerprint: text that identifies all inputs of the run: configuration, hashes of data and code.
    A checkpoint of others is set aside with a warning (gdpo.items), and the loop starts from step
    0.
    world: the processes that run the same loop (gdpo.train.world). All resume, rank 0 writes, and
    all stop after the same step.
    verify: called before the state becomes a checkpoint or the result. It raises NotFinite if the
    last update made the state NaN or infinite, which only the next step's loss would show.
    """

    folder: Path
    steps: int
    state: Mapping[str, Stateful]
    fingerprint: str
    checkpoint_every: int
    hooks: Hooks = field(default_factory=Hooks)
    history: list[dict[str, float]] = field(default_factory=list)
    world: World = field(default_factory=current)
    verify: Callable[[], None] = lambda: None

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self.folder / CHECKPOINT

    def resume(self) -> int:
        """Load this run's checkpoint if there is one; returns the number of finished steps.

        ValueError naming the file if it is unreadable.
        """
        store = checkpoints(self.folder, self.fingerprint)
        with self.world.collective():
            if self.world.is_main:
                store.open()
                self.hooks.fetch(self.fingerprint, self.steps, self.path)
        with self.world.collective():
            saved = self._saved() if self.path.exists() else None
        if saved is None:
            return 0
        why = ""
        if saved["fingerprint"] != self.fingerprint:
            why = "written by another run"
        elif saved["step"] > self.steps:
            why = f"at step {saved['step']}, beyond the {self.steps} of this run"
        if why:
            with self.world.collective():
                if self.world.is_main:
                    store.set_aside(why, self.fingerprint, f"-step-{saved['step']}")
            return 0
        for name, part in self.state.items():
            part.load_state_dict(saved["state"][name])
        self.history[:] = saved["history"]
        return int(saved["step"])

    def _saved(self) -> dict[str, Any]:
        try:
            # torch writes a checksum of each part and does not look at it when it reads.
            with ZipFile(self.path) as parts:
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"{damaged} is damaged")
            # Onto the CPU: on the GPU the loaded copy would be beside the model's own weights and
            # moments.
            saved: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            for name in ("fingerprint", "step", "history", "state"):
                # A file that torch can read may still be no checkpoint; better here than in the
                # middle of a resume.
                saved[name]
        except Exception as error:
            # Only the first sentence: the next ones of torch advise unsafe loading.
            why = str(error).partition(".")[0]
            raise ValueError(
                f"{self.path}: unreadable checkpoint ({why}); delete it to start again"
            ) from error
        return saved

    def save(self, step: int) -> None:
        """Write the checkpoint on rank 0, aside and then renamed.

        When this returns on any rank, the checkpoint exists.
        """
        with self.world.collective():
            if self.world.is_main:
                self._write(step)
                self.hooks.saved(self.fingerprint, step, self.path)

    def _write(self, step: int) -> None:
        content = {
            "step": step,
            "fingerprint": self.fingerprint,
            "history": self.history,
            "state": {name: part.state_dict() for name, part in self.state.items()},
        }
        with checkpoints(self.folder, self.fingerprint).write(CHECKPOINT) as part:
            torch.save(content, part)

    def run(self, step_fn: Callable[[int], dict[str, float]]) -> list[dict[str, float]]:
        """Run `step_fn(step)` for every remaining step; returns the history of its values.

        Raises `Stopped` (after a checkpoint) on a stop request. Raises `Diverged` when a returned
        value is not finite, or when `step_fn` or `verify` raises NotFinite.
        """
        with self.world.collective():
            first = self.resume()
        # Log the values of the resumed steps again, so that the logs are complete.
        for logged in self.history:
            self.hooks.log(int(logged["step"]), logged)
        for step in range(first, self.steps):
            try:
                values = step_fn(step)
            except NotFinite as error:
                raise self._diverged(step, str(error)) from error
            bad = [name for name, value in values.items() if not np.isfinite(value)]
            if bad:
                raise self._diverged(step, f"{bad[0]} is not finite")
            self.history.append({"step": float(step), **values})
            self.hooks.log(step, self.history[-1])
            done = step + 1
            # Asked of all ranks at the same step: a signal reaches them at different times, and a
            # rank that stopped alone would leave the others waiting in an all-reduce.
            stopping = self.world.any_rank(self.hooks.should_stop())
            due = done % self.checkpoint_every == 0
            if not (stopping or due or done == self.steps):
                continue
            try:
                self.verify()
            except NotFinite as error:
                raise self._diverged(step, f"{error} by its update") from error
            # After the last step the result itself is written; a checkpoint beside it would be of
            # no use.
            if stopping or done < self.steps:
                self.save(done)
            if stopping:
                raise Stopped(done)
        return self.history

    def _diverged(self, step: int, what: str) -> Diverged:
        kept = (
            f"the last good checkpoint is {self.path}"
            if self.path.exists()
            else "there is no checkpoint yet"
        )
        return Diverged(f"step {step}: {what}; {kept}")


def cosine(step: int, steps: int, *, warmup: int = 0) -> float:
    """Learning-rate factor: linear warm-up to 1, then half a cosine period from 1 to 0."""
    if step < warmup:
        return (step + 1) / warmup
    # max(): with no step after the warm-up the factor is 1 and not 0 / 0.
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(steps - warmup, 1))))


def grad_norm(parameters: list[torch.nn.Parameter], clip: float) -> float:
    """Clip the joint gradient norm to `clip` in place and return the norm before clipping."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, clip))
