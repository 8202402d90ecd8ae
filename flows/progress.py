"""How far a stage is, as a progress artifact of the Prefect run, from what the stage notes in
work/<stage>/metrics.jsonl.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact


def last_step(root: Path, stage: str, since: float) -> tuple[int, int] | None:
    """(finished steps, all steps) from the last whole line the stage wrote after the time `since`;
    None without one.
    """
    path = root.joinpath("work", *stage.split("@"), "metrics.jsonl")
    try:
        if path.stat().st_mtime < since:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
        row: dict[str, Any] = json.loads(lines[-1])
        return int(row["step"]) + 1, int(row["of"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return None


class Progress:
    """A context: `update` now and then; the artifact appears with the first step that is seen.

    A server that is away costs one line to `warn` and no stage: the next update tries again.
    Signals go through.
    """

    def __init__(self, stage: str, root: Path, warn: Callable[[str], object]) -> None:
        self.stage, self.root, self.warn = stage, root, warn
        self._artifact: UUID | None = None
        self._warned = False

    def __enter__(self) -> "Progress":
        self._since = time.time()
        return self

    def update(self) -> None:
        """Look, and show what is new."""
        found = last_step(self.root, self.stage, self._since)
        if found is not None:
            self._show(100.0 * found[0] / max(found[1], 1))

    def _show(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    percent, description=f"steps of {self.stage}"
                )  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent)
        # Whatever it is: the caller stops the trainer for any exception, and only Prefect's and the
        # user's are meant for it.
        except Exception as error:
            if not self._warned:
                self._warned = True
                self.warn(f"no progress is shown ({type(error).__name__}); the stage goes on")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._artifact is not None:
            self._show(100.0)
