"""How far a stage is, as a progress artifact of the Prefect run, from what the stage notes in work/<stage>/metrics.jsonl."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact


def last_step(root: Path, stage: str, since: float) -> tuple[int, int] | None:
    """(finished steps, all steps) from the last whole line the stage wrote after the time `since`; None without one."""
    path = root.joinpath("work", *stage.split("@"), "metrics.jsonl")
    try:
        if path.stat().st_mtime < since:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
        row: dict[str, Any] = json.loads(lines[-1])
        return int(row["step"]) + 1, int(row["of"])
    except (OSError, IndexError, KeyError, ValueError):
        return None


class Progress:
    """A context: `update` now and then; the artifact appears with the first step that is seen."""

    def __init__(self, stage: str, root: Path) -> None:
        self.stage, self.root = stage, root
        self._artifact: UUID | None = None

    def __enter__(self) -> "Progress":
        self._since = time.time()
        return self

    def update(self) -> None:
        """Look, and show what is new."""
        found = last_step(self.root, self.stage, self._since)
        if found is None:
            return
        percent = 100.0 * found[0] / max(found[1], 1)
        if self._artifact is None:
            made = create_progress_artifact(percent, description=f"steps of {self.stage}")
            assert isinstance(made, UUID)
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._artifact is not None:
            update_progress_artifact(self._artifact, 100.0)
