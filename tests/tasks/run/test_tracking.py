"""TensorBoard and Weights & Biases: every step once, no start without them, no end because of
them.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
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
        self.asked: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def _may_break(self, name: str) -> None:
        if name == self.broken:
            raise RuntimeError(f"{name}:\nthe service is gone")

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **asked: Any) -> "FakeWandb":
        self._may_break("init")
        self.asked = asked
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
    settings = wandb.asked.pop("settings")
    assert wandb.asked == {
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


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_later_costs_one_line(
    tmp_path: Path, wandb: FakeWandb, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.broken = broken
    assert record(tmp_path, 4, "wandb") == [0, 1, 2, 3]
    line = (
        f"track: wandb failed ({broken}: the service is gone); going on without it, "
        f"{tmp_path}/metrics.jsonl is whole"
    )
    assert capsys.readouterr().err == f"gdpo-sr: {line}\n"


def test_a_full_disk_ends_tensorboard_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert record(tmp_path, 3, "tensorboard") == [0, 1, 2]
    said = capsys.readouterr().err
    assert (
        "track: tensorboard failed ([Errno 28] No space left on device); going on" in said
        and said.count("\n") == 1
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
