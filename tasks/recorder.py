"""What a person sees of a running loop: work/<stage>/metrics.jsonl, and a progress bar or a line now and then.

    {"step": 12, "of": 64, "loss": 0.691, ...}     one line per step, readable while the stage runs; never a DVC output

The file is opened for writing at the first value. A resumed loop replays its history through `log`
(gdpo.training.Loop), so the file is whole again after an interruption. The metrics under reports/ are another matter:
a stage writes them when it is done.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Recorder:
    """`log` for gdpo.training.Hooks; use as a context manager. total: the number of steps, where it is known."""

    def __init__(self, folder: Path, name: str, total: int | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self.name = name
        self.total = total
        self._file: TextIO | None = None
        self._bar: tqdm | None = None  # type: ignore[type-arg]  # tqdm of nothing: moved by hand
        self._next_line = time.monotonic() + LINE_EVERY_S

    def log(self, step: int, values: dict[str, float]) -> None:
        """Note the values of one step (0-based)."""
        of = {"of": self.total} if self.total else {}
        row = {"step": step, **of} | {name: value for name, value in values.items() if name != "step"}
        self.total = int(row["of"]) if "of" in row else None  # a stage may count its steps only after it has begun
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", buffering=1)
        self._file.write(json.dumps(row) + "\n")
        self._show(step + 1, row)

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
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()


def _text(row: dict[str, float]) -> str:
    """The first four values, short."""
    named = [(name, value) for name, value in row.items() if name not in ("step", "of")][:4]
    return " ".join(f"{name} {value:.4g}" if math.isfinite(value) else f"{name} {value}" for name, value in named)
