"""Where the values of every step go besides metrics.jsonl (key `track`): TensorBoard, or Weights &
Biases.

    tensorboard    files in work/<stage>/tensorboard/; `tensorboard --logdir work` shows all stages
    wandb          a run of the project gdpo-sr, named after the stage. Its own files lie in
                   work/<stage>/wandb/, and with WANDB_MODE=offline all of it; `wandb sync` uploads
                   that

A resumed loop replays its history, so both begin anew with each start and show every step once:
TensorBoard drops what older files in the folder hold, W&B gets another run. We send the values of
steps and no more: no parameters, code, git remote, environment or output (W&B itself adds the
machine's load, the command line and the installed packages). A tracker that does not start is an
error, since nothing is lost by then; one that fails later costs a line, not the training.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from tasks.params import BadParams

PROJECT = "gdpo-sr"
# how long the end of a stage may wait for W&B; what is not uploaded by then stays in
# work/<stage>/wandb
UPLOAD_S = 60.0


class Tracker(Protocol):
    """What shows curves."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add one step, larger than the last."""
        ...

    def close(self, failed: bool) -> None:
        """Write out what is left; failed: the stage did not come to its end."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Not by removing the old files: a TensorBoard that watches the folder would then never read
        # the new one.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0, flush_secs=10)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, name: str) -> None:
        os.environ.setdefault(
            "WANDB_ERROR_REPORTING", "false"
        )  # read at the import: its own crashes, to its makers
        wandb = importlib.import_module("wandb")
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            finish_timeout=UPLOAD_S,
            finish_timeout_raises=True,
        )
        self._run = wandb.init(project=PROJECT, name=name, dir=str(folder), settings=settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
}


class Tracking:
    """The tracker `kind` while it works: given up, with a line, at the first failure after the
    start.

    folder: work/<stage>, made if need be; name: of the run. Raises BadParams where the tracker does
    not start.
    """

    def __init__(self, kind: str, folder: Path, name: str) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._tracker: Tracker | None = _TRACKERS[kind](folder, name)
        except ModuleNotFoundError as error:
            raise BadParams(
                f"track: {kind} is not installed here ({error}); pip install {kind}, or set "
                "track: none"
            ) from error
        except Exception as error:  # W&B has its own kinds
            raise BadParams(
                f"track: {kind} does not start ({error}); set track: none to go on without it"
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the values of one step."""
        self._send(lambda tracker: tracker.log(step, values))

    def close(self, failed: bool) -> None:
        """End the tracker's run; failed: the stage did not come to its end."""
        self._send(lambda tracker: tracker.close(failed))

    def _send(self, send: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            send(self._tracker)
        except Exception as error:
            self._tracker = None
            why = " ".join(str(error).split()) or type(error).__name__
            line = (
                f"gdpo-sr: track: {self.kind} failed ({why}); going on without it, "
                f"{self.folder / 'metrics.jsonl'} is whole"
            )
            tqdm.write(line, file=sys.stderr)  # above a progress bar
