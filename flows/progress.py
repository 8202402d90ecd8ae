"""Shows a stage's progress as a progress artifact of the Prefect flow run.

The steps come from work/<stage>/metrics.jsonl, which the stage writes.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks import paths


def last_step(root: Path, stage: str, since: float) -> tuple[int, int] | None:
    """(finished steps, all steps) from the last complete line of the stage's metrics.jsonl.

    None if there is no such line, or the file was not written after the time `since`.
    """
    path = paths.work(root, *stage.split("@")) / paths.STEP_VALUES
    try:
        if path.stat().st_mtime < since:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]  # without a line that is still being written
        step: dict[str, Any] = json.loads(lines[-1])
        return int(step["step"]) + 1, int(step["of"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return None


class Progress:
    """A context manager; call `update` regularly. The first step found creates the artifact.

    If the server does not answer, the stage continues and the next update tries again; only the
    first error goes to `warn`. Signals are not suppressed.
    """

    def __init__(self, stage: str, root: Path, warn: Callable[[str], object]) -> None:
        self.stage, self.root, self.warn = stage, root, warn
        self._artifact: UUID | None = None
        self._warned = False

    def __enter__(self) -> "Progress":
        # File times come from a coarser clock and can lag behind this one by a tick (4 to 10 ms).
        self._since = time.time() - 0.05
        return self

    def update(self) -> None:
        """Read the last step and update the artifact."""
        latest = last_step(self.root, self.stage, self._since)
        if latest is not None:
            self._show(100.0 * latest[0] / max(latest[1], 1))

    def _show(self, percent: float) -> None:
        try:
            if self._artifact is None:
                created = create_progress_artifact(percent, description=f"steps of {self.stage}")
                self._artifact = cast(UUID, created)  # typed as if it might be a coroutine
            else:
                update_progress_artifact(self._artifact, percent)
        # Catch every error: the caller stops the trainer on any exception. Prefect's
        # TerminationSignal and KeyboardInterrupt are no `Exception` and still get through.
        except Exception as error:
            if not self._warned:
                self._warned = True
                self.warn(f"progress is not shown ({type(error).__name__}); the stage continues")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._artifact is not None:
            self._show(100.0)
