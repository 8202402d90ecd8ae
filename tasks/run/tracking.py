"""Trackers for the values of every step, besides metrics.jsonl (key `track`): TensorBoard, W&B,
MLflow or Trackio.

    tensorboard    files in work/<stage>/tensorboard/; `tensorboard --logdir work` shows all stages
    wandb          a run of the project gdpo-sr, named after the stage. Its files are in
                   work/<stage>/wandb/; with WANDB_MODE=offline all its data stays there until
                   `wandb sync` uploads it
    mlflow         a run of the experiment gdpo-sr, on the server at MLFLOW_TRACKING_URI; without
                   one in work/<stage>/mlflow.db (`mlflow ui --backend-store-uri sqlite:///FILE`)
    trackio        a run of the project gdpo-sr in TRACKIO_DIR (`trackio show`), or in the Space at
                   TRACKIO_SPACE_ID

A resumed loop replays its history, so trackers start from scratch at each start and show every step
once: TensorBoard discards the content of older files in the folder, the others get a new run. Only
the values of the steps are sent: no parameters, code, git remote, environment or output (W&B itself
adds system load, the command line and the installed packages). A tracker that does not start is an
error, because no work is lost at that point. A tracker that fails later is disabled with one
warning, and the training continues.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from gdpo.errors import one_line
from tasks.params import BadParams
from tasks.paths import STEP_VALUES

PROJECT = "gdpo-sr"
# Timeout of W&B's upload at the end of a stage; data not uploaded by then stays in
# work/<stage>/wandb.
UPLOAD_S = 60.0


class Tracker(Protocol):
    """Interface of a tracker."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add one step, larger than the previous one."""
        ...

    def close(self, failed: bool) -> None:
        """Flush what is pending; failed: the stage did not complete."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step instead of deleting the old files: a running TensorBoard that watches the
        # folder would then never read the new file.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0, flush_secs=10)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, name: str) -> None:
        # Before the import, which reads it: W&B otherwise reports its own crashes to its servers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
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


class _Mlflow:
    def __init__(self, folder: Path, name: str) -> None:
        mlflow = importlib.import_module("mlflow")
        local = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        # A client of its own: the module's functions have a run and a server for the whole process.
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        existing = self._client.get_experiment_by_name(PROJECT)
        experiment = existing.experiment_id if existing else self._client.create_experiment(PROJECT)
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Trackio:
    def __init__(self, folder: Path, name: str) -> None:
        trackio = importlib.import_module("trackio")
        # Not its dashboard, and no samples of the GPU: only the values of the steps.
        self._run = trackio.init(project=PROJECT, name=name, embed=False, auto_log_gpu=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


class Tracking:
    """The tracker `kind`. The first failure after the start disables it, with a warning on stderr.

    folder: work/<stage>, created if missing. name: of the run.

    Errors: BadParams if the tracker does not start.
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
        except Exception as error:  # W&B raises its own exception types
            raise BadParams(
                f"track: {kind} does not start ({error}); set track: none to go on without it"
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the values of one step."""
        self._send(lambda tracker: tracker.log(step, values))

    def close(self, failed: bool) -> None:
        """End the tracker's run; failed: the stage did not complete."""
        self._send(lambda tracker: tracker.close(failed))

    def _send(self, send: Callable[[Tracker], None]) -> None:
        """Call `send` with the tracker; on any error, disable the tracker and print a warning."""
        if self._tracker is None:
            return
        try:
            send(self._tracker)
        except Exception as error:
            self._tracker = None
            line = (
                f"gdpo-sr: track: {self.kind} failed ({one_line(error)}); training continues, "
                f"{self.folder / STEP_VALUES} has every step"
            )
            tqdm.write(line, file=sys.stderr)  # keeps a progress bar intact
