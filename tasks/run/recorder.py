"""What a person sees of a running loop: work/<stage>/metrics.jsonl, a progress bar or a line now
and then, and a tracker.

    {"step": 12, "of": 64, "loss": 0.691, ...}     one line per step, readable while the stage runs;
                                                   never a DVC output

The file is opened for writing at the first value. A resumed loop replays its history through `log`
(gdpo.train.loop.Loop), so the file is whole again after an interruption. The metrics under reports/
are another matter: a stage writes them when it is done. What a step cost is noted here alone, since
no two runs agree about it:

    seconds          from the end of the step before, so with a checkpoint that was written in
                     between
    samples_per_s    LR patches per second over all processes; of finetune, each with its group of
                     candidates
    memory_gb        the most this process has held until now, in 10^9 bytes: of its GPU, or of main
                     memory where it uses none

Steps that are replayed, and the first one after them, whose beginning is not known, come without.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

import torch
from tqdm import tqdm

from gdpo.train.world import current
from tasks.run.tracking import Tracking

LINE_EVERY_S = 10.0


class Recorder:
    """`log` for gdpo.train.loop.Hooks; use as a context manager.

    total: the number of steps, where it is known; samples: in each step of a training loop; track:
    none, or the tracker that the first process sends its values to. Entering raises BadParams where
    that does not start: ValueError in the others.
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
        self.path = folder / "metrics.jsonl"
        self.name = name
        self.total = total
        self.samples = samples
        self.track = track
        self._tracking: Tracking | None = None
        self._begun: float | None = None  # when the present step began
        self._file: TextIO | None = None
        self._bar: tqdm | None = None  # type: ignore[type-arg]  # tqdm of nothing: moved by hand
        self._next_line = time.monotonic() + LINE_EVERY_S

    def log(self, step: int, values: dict[str, float]) -> None:
        """Note the values of one step (0-based)."""
        of = {"of": self.total} if self.total else {}
        row = (
            {"step": step, **of}
            | {name: value for name, value in values.items() if name != "step"}
            | self._cost()
        )
        self.total = (
            int(row["of"]) if "of" in row else None
        )  # a stage may count its steps only after it has begun
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", buffering=1)
        self._file.write(json.dumps(row) + "\n")
        if self._tracking is not None:
            self._tracking.log(
                step, {name: value for name, value in row.items() if name not in ("step", "of")}
            )
        self._show(step + 1, row)

    def timed(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """`should_stop` for the same hooks: a training loop asks it after every step that it makes,
        and the next one begins.
        """

        def ask() -> bool:
            self._begun = self._begun or time.monotonic()
            return should_stop()

        return ask

    def _cost(self) -> dict[str, float]:
        if self._begun is None or self.samples is None:
            return {}
        seconds = time.monotonic() - self._begun
        self._begun = None
        return {
            "seconds": round(seconds, 4),
            "samples_per_s": round(self.samples / seconds, 4),
            "memory_gb": round(_peak_bytes() / 1e9, 3),
        }

    def _show(self, done: int, row: dict[str, float]) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=self.total, desc=self.name, unit="step", leave=False)
            self._bar.set_postfix_str(_text(row), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            of = f"/{self.total}" if self.total else ""
            sys.stderr.write(f"{self.name} {done}{of} {_text(row)}\n")
            sys.stderr.flush()

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
        if self._file is not None:
            self._file.close()
        if self._tracking is not None:
            self._tracking.close(failed=kind is not None)


def _peak_bytes() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _text(row: dict[str, float]) -> str:
    """The first four values, short."""
    named = [(name, value) for name, value in row.items() if name not in ("step", "of")][:4]
    return " ".join(
        f"{name} {value:.4g}" if math.isfinite(value) else f"{name} {value}"
        for name, value in named
    )
