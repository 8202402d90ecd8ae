"""TensorBoard, Weights & Biases, MLflow and Trackio: every step is logged once, a missing tracker
prevents the start, and a tracker that fails later does not end the training.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tasks.params import BadParams
from tasks.run.recorder import Recorder


class FakeWandb(ModuleType):
    """What tasks/run/tracking.py uses of wandb; `broken` names the call that fails."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("wandb")
        self.broken = broken
        self.arguments: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def _may_break(self, name: str) -> None:
        if name == self.broken:
            raise RuntimeError(f"{name}:\nthe service is gone")

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> "FakeWandb":
        self._may_break("init")
        self.arguments = arguments
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._may_break("log")
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        self._may_break("finish")
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def record(folder: Path, steps: int, track: str) -> list[int]:
    """Log `steps` steps; returns those in the live file."""
    with Recorder(folder, "finetune gdpo", steps, samples=8, track=track) as recorder:
        for step in range(steps):
            recorder.log(step, {"step": float(step), "loss": 1.0 / (step + 1), "grad_norm": 2.0})
    return [json.loads(line)["step"] for line in recorder.path.read_text().splitlines()]


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    """To one that is watching, and to one that comes later."""
    watching = EventAccumulator(str(tmp_path / "tensorboard"))
    for steps in (3, 5):  # the second loop replays its history
        record(tmp_path, steps, "tensorboard")
        again = EventAccumulator(str(tmp_path / "tensorboard"))
        for reader in (watching, again):
            reader.Reload()
            assert reader.Tags()["scalars"] == ["loss", "grad_norm"]
            assert [(event.step, event.value) for event in reader.Scalars("loss")] == [
                (step, pytest.approx(1.0 / (step + 1))) for step in range(steps)
            ]


def test_wandb_gets_a_run_of_the_stage_and_its_values_alone(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    assert record(tmp_path / "work", 2, "wandb") == [0, 1]
    settings = wandb.arguments.pop("settings")
    assert wandb.arguments == {
        "project": "gdpo-sr",
        "name": "finetune gdpo",
        "dir": str(tmp_path / "work"),
    }
    assert settings["disable_git"] and settings["disable_code"] and settings["console"] == "off"
    assert wandb.rows == [
        (0, {"loss": 1.0, "grad_norm": 2.0}),
        (1, {"loss": 0.5, "grad_norm": 2.0}),
    ]
    assert wandb.exit_code == 0
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_wandb_is_told_that_a_stage_did_not_end(tmp_path: Path, wandb: FakeWandb) -> None:
    with (
        pytest.raises(ValueError, match="diverged"),
        Recorder(tmp_path, "finetune gdpo", track="wandb"),
    ):
        raise ValueError("diverged")
    assert wandb.exit_code == 1


def test_a_tracker_that_is_not_installed_is_an_error_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        BadParams,
        match=r"track: wandb is not installed here .*; pip install wandb, or set track: none",
    ):
        record(tmp_path, 2, "wandb")


def test_a_tracker_that_does_not_start_is_an_error_before_the_work(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    wandb.broken = "init"
    with pytest.raises(
        BadParams,
        match=r"track: wandb does not start \(init:\nthe service is gone\); set track: none",
    ):
        record(tmp_path, 2, "wandb")
    assert not (tmp_path / "metrics.jsonl").exists()


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said besides the progress."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("gdpo-sr:")]


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_later_costs_one_line(
    tmp_path: Path, wandb: FakeWandb, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.broken = broken
    assert record(tmp_path, 4, "wandb") == [0, 1, 2, 3]
    line = (
        f"track: wandb failed ({broken}: the service is gone); training continues, "
        f"{tmp_path}/metrics.jsonl has every step"
    )
    assert notes(capsys) == [f"gdpo-sr: {line}"]


def test_a_full_disk_ends_tensorboard_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert record(tmp_path, 3, "tensorboard") == [0, 1, 2]
    (note,) = notes(capsys)
    assert (
        "track: tensorboard failed ([Errno 28] No space left on device); training continues" in note
    )


def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "5ecret42",
        "AWS_SECRET_ACCESS_KEY": "another5ecret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    assert record(tmp_path / "work", 3, "wandb") == [0, 1, 2]
    (run,) = (tmp_path / "work/wandb").glob("offline-run-*/run-*.wandb")
    content = run.read_bytes()
    assert all(text in content for text in (b"gdpo-sr", b"finetune gdpo", b"grad_norm"))
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [
        name for name, value in secrets.items() if any(value.encode() in file for file in written)
    ]


class FakeMlflow(ModuleType):
    """What tasks/run/tracking.py uses of mlflow's client."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.uri, self.experiments, self.rows, self.status = "", dict[str, str](), [], ""

    def MlflowClient(self, uri: str) -> "FakeMlflow":
        self.uri = uri
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        known = self.experiments.get(name)
        return known and SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        assert (experiment, run_name) == ("7", "finetune gdpo")
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.rows.append((run, name, value, step))

    def set_terminated(self, run: str, status: str) -> None:
        self.status = status


def test_mlflow_gets_a_run_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):  # the second run finds the experiment
        module.rows.clear()
        assert record(tmp_path / "work", 2, "mlflow") == [0, 1]
    assert module.uri == f"sqlite:///{tmp_path}/work/mlflow.db"
    assert module.rows == [
        ("r", "loss", 1.0, 0),
        ("r", "grad_norm", 2.0, 0),
        ("r", "loss", 0.5, 1),
        ("r", "grad_norm", 2.0, 1),
    ]
    assert module.status == "FINISHED"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    with (
        pytest.raises(ValueError, match="diverged"),
        Recorder(tmp_path, "finetune gdpo", track="mlflow"),
    ):
        raise ValueError("diverged")
    assert (module.uri, module.status) == ("http://tracker:5000", "FAILED")


def test_trackio_gets_a_run_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, rows, ended = [], [], []
    run = SimpleNamespace(
        log=lambda values, step: rows.append((step, values)), finish=lambda: ended.append(True)
    )
    module = ModuleType("trackio")
    module.init = lambda **named: (arguments.append(named), run)[1]
    monkeypatch.setitem(sys.modules, "trackio", module)
    assert record(tmp_path, 2, "trackio") == [0, 1]
    assert arguments == [
        {"project": "gdpo-sr", "name": "finetune gdpo", "embed": False, "auto_log_gpu": False}
    ]
    assert rows == [(0, {"loss": 1.0, "grad_norm": 2.0}), (1, {"loss": 0.5, "grad_norm": 2.0})]
    assert ended == [True]


def test_the_real_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert record(tmp_path, 3, "mlflow") == [0, 1, 2]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("gdpo-sr")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("finetune gdpo", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [row.value for row in history] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_the_real_trackio_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    assert record(tmp_path / "work", 3, "trackio") == [0, 1, 2]
    assert any(b"grad_norm" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
