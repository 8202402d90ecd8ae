"""Progress of a running stage: work/<stage>/metrics.jsonl, a progress bar (or a line every 10 s
without a terminal), and a tracker.

    {"step": 12, "of": 64, "loss": 0.691, ...}     one line per step, readable while the stage runs;
                                                   never a DVC output

The first value opens and truncates the file. A resumed loop replays its history through `log`
(gdpo.train.loop.Loop), so the file is complete again after an interruption. The metrics under
reports/ are separate: a stage writes them when it is done. Only this file records the cost of a
step, because the cost differs between runs:

    seconds          since the end of the previous step, including the writing of a checkpoint in
                     between
    samples_per_s    LR patches per second over all processes; in finetune, each LR patch comes with
                     its group of candidates
    memory_gb        peak memory of this process so far, in 10^9 bytes: of its GPU, or of main
                     memory if it uses no GPU

Replayed steps have no cost, nor has the first step after them, whose start time is unknown.
"""

import errno
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from gdpo.train.world import current
from tasks import paths
from tasks.run.tracking import Tracking

LINE_EVERY_S = 10.0


class Recorder:
    """`log` for gdpo.hooks.Hooks; use as a context manager.

    total: the number of steps, if known. samples: samples per step of a training loop. track:
    "none", or the tracker to which rank 0 sends its values.

    Errors: if the tracker does not start, entering raises BadParams on rank 0 and ValueError on the
    other ranks.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        total: int | None = None,
        *,
        samples: int | None = None,
        track: str = "none",
    ) -> None:
        self.path = folder / paths.STEP_VALUES
        self.name = name
        self.total = total
        self.samples = samples
        self.track = track
        self._tracking: Tracking | None = None
        self._begun: float | None = None  # start time of the current step, if known
        self._file: FileIO | None = None
        self._bar: tqdm[Any] | None = None  # no iterable: updated by hand
        self._next_line = 0.0  # the first step is shown at once
        self._unshown = ""  # the line of the last step, if it was not written yet

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step (0-based)."""
        of = {"of": self.total} if self.total else {}
        logged = (
            {"step": step, **of}
            | {name: value for name, value in values.items() if name != "step"}
            | self._cost()
        )
        # Some stages know their total only after they start, and state it with each step.
        self.total = int(logged["of"]) if "of" in logged else None
        self._write(json.dumps(logged) + "\n")
        if self._tracking is not None:
            self._tracking.log(
                step, {name: value for name, value in logged.items() if name not in ("step", "of")}
            )
        self._show(step + 1, logged)

    def _write(self, line: str) -> None:
        """Add a line to the live file. OSError naming it, of a full disk for example."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: the file is read while the stage runs, and what a full disk refused
            # must not come back as a second error when the file is closed.
            self._file = self.path.open("wb", buffering=0)
        data = line.encode()
        try:
            if self._file.write(data) < len(data):  # as much as there was room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def timed(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Wrap `should_stop` to time the steps: a training loop calls it after every step it
        computes, so the call marks the start of the next step.
        """

        def ask() -> bool:
            self._begun = self._begun or time.monotonic()
            return should_stop()

        return ask

    def _cost(self) -> dict[str, float]:
        """The cost of the step that just ended; empty if its start time is unknown."""
        if self._begun is None or self.samples is None:
            return {}
        seconds = time.monotonic() - self._begun
        self._begun = None
        return {
            "seconds": round(seconds, 4),
            "samples_per_s": round(self.samples / seconds, 4),
            "memory_gb": round(_peak_bytes() / 1e9, 3),
        }

    def _show(self, done: int, values: dict[str, float]) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=self.total, desc=self.name, unit="step", leave=False)
            self._bar.set_postfix_str(_text(values), refresh=False)
            self._bar.update(done - self._bar.n)
            return
        of = f"/{self.total}" if self.total else ""
        self._unshown = f"{self.name} {done}{of} {_text(values)}\n"
        # A log file would otherwise get a line per step: 35,000 of a pretraining.
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._show_line()

    def _show_line(self) -> None:
        sys.stderr.write(self._unshown)
        sys.stderr.flush()
        self._unshown = ""

    def __enter__(self) -> "Recorder":
        if self.track != "none":
            with (world := current()).collective():
                if world.is_main:
                    self._tracking = Tracking(self.track, self.path.parent, self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        self._show_line()
        if self._file is not None:
            self._file.close()
        if self._tracking is not None:
            self._tracking.close(failed=kind is not None)


def _peak_bytes() -> int:
    """Peak memory of this process, in bytes: of the GPU if CUDA is in use, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _text(values: dict[str, float]) -> str:
    """The first four values, with four significant digits."""
    named = [(name, value) for name, value in values.items() if name not in ("step", "of")][:4]
    return " ".join(
        f"{name} {value:.4g}" if math.isfinite(value) else f"{name} {value}"
        for name, value in named
    )
