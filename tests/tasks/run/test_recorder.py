"""What a step costs is noted in work/<stage>/metrics.jsonl, and nowhere else."""

import errno
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gdpo.config import Config
from gdpo.hooks import Hooks, Stopped
from gdpo.train.loop import Loop
from gdpo.train.world import World
from tasks import __main__ as cli
from tasks.run.recorder import Recorder
from tasks.run.training import write_history

COST = {"seconds", "samples_per_s", "memory_gb"}


def train(
    folder: Path, steps: int, stop_after: int | None = None, **told: Any
) -> list[dict[str, Any]]:
    """A loop of `steps` on its way through a Recorder, asked to stop after a step; the rows of its
    live file.
    """

    def step(number: int) -> dict[str, float]:
        time.sleep(0.01)
        return {"loss": 1.0 / (number + 1)}

    with Recorder(folder, "pretrain", steps, **told) as recorder:
        asked = iter(range(1, steps + 1))
        hooks = Hooks(
            log=recorder.log, should_stop=recorder.timed(lambda: next(asked) == stop_after)
        )
        try:
            history = Loop(folder, steps, {}, "same", 100, hooks).run(step)
        except Stopped:
            history = torch.load(folder / "checkpoint.pt", weights_only=True)["history"]
    assert all(row.keys() == {"step", "loss"} for row in history)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_has_its_time_throughput_and_memory(tmp_path: Path) -> None:
    first, *others = train(tmp_path, 4, samples=8)
    assert not COST & first.keys()  # it began before the loop could be watched
    for row in others:
        assert row.keys() >= COST
        assert 0.01 <= row["seconds"] < 10
        assert row["samples_per_s"] == pytest.approx(8 / row["seconds"], rel=0.02)
        assert 0.05 < row["memory_gb"] < 1000


def test_replayed_steps_have_no_cost(tmp_path: Path) -> None:
    train(tmp_path, 6, stop_after=3, samples=8)
    rows = train(tmp_path, 6, samples=8)
    assert [row["step"] for row in rows] == list(range(6))
    assert [row.keys() >= COST for row in rows] == [False] * 4 + [True] * 2
    assert not any(COST & row.keys() for row in rows[:4])


def test_a_full_disk_names_the_live_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught, Recorder(tmp_path, "index") as recorder:
        recorder.log(0, {"photographs": 1.0})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_other_stages_have_values_alone(tmp_path: Path) -> None:
    assert all(row.keys() == {"step", "of", "loss"} for row in train(tmp_path, 3))


def test_memory_is_that_of_the_gpu_where_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2_345_678_901)
    assert train(tmp_path, 2, samples=8)[1]["memory_gb"] == 2.346


def test_cost_and_tracker_are_those_of_the_training_stages(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command: both reach the live file and TensorBoard; reports and other stages know
    nothing of them.
    """

    def run(config: Config, root: Path, hooks: Hooks, *name: str) -> None:
        loop = Loop(root / "checkpoints", config.pretrain.steps, {}, "same", 100, hooks)
        write_history(root / "reports", loop.run(lambda step: {"loss": 1.0}))

    module = ModuleType("a_fake_stage")
    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    shutil.copy(root / "tests/params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--set", "track=tensorboard", "--set", "pretrain.steps=3", "--set", "allow_cpu=true"]
    for stage, trains in (("pretrain", True), ("select", False)):
        monkeypatch.setitem(cli.STAGES, stage, replace(cli.STAGES[stage], module=module.__name__))
        assert cli.main([stage, *options]) == 0
        rows = [
            json.loads(line)
            for line in (tmp_path / "work" / stage / "metrics.jsonl").read_text().splitlines()
        ]
        assert [row.keys() >= COST for row in rows] == [False, trains, trains]
        assert (tmp_path / "work" / stage / "tensorboard").is_dir() == trains
        reported = (tmp_path / "reports/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line).keys() for line in reported] == [{"step", "loss"}] * 3


def test_the_first_process_alone_has_a_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.run.recorder.current", lambda: World(rank=1))
    with Recorder(tmp_path / "work", "pretrain", 3, samples=8, track="tensorboard"):
        pass
    assert not (tmp_path / "work").exists()
