"""A training stage stopped by SIGTERM and SIGKILL ends in the bytes of an undisturbed one."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.tasks.forks import Forks
from tests.tasks.stages.training import CHECKPOINT, STAGES, outputs


@pytest.fixture
def root(after_training: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(after_training, tmp_path / "root", symlinks=True))


# Real processes, real signals.
def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "the stage did not get there in time"
        time.sleep(0.002)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.processes
@pytest.mark.parametrize("stage", STAGES)
def test_terminated_and_killed_it_ends_in_the_same_bytes(
    root: Path, tmp_path: Path, forks: Forks, stage: str
) -> None:
    """SIGTERM early: 143 and a checkpoint. SIGKILL later, between checkpoints. The third start
    finishes.
    """
    config = tiny.settings(
        **{stage: {"steps": 24, "checkpoint_every": 5, "optimizer": {"lr": 1e-4}}}
    )
    (root / "params.yaml").write_text(json.dumps(config.model_dump()))
    straight = Path(shutil.copytree(root, tmp_path / "straight", symlinks=True))
    forks.start(straight, stage)
    assert forks.wait() == 0

    live = (root / CHECKPOINT[stage]).with_name("metrics.jsonl")
    before = outputs(root)
    process = forks.start(root, stage)
    wait_for(lambda: lines(live) >= 3)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143
    steps = torch.load(root / CHECKPOINT[stage], weights_only=True)["step"]
    assert 3 <= steps < 24 and outputs(root) == before
    stderr = (root / "stderr.txt").read_text()
    assert (
        f"stopped at step {steps}, checkpoint in {CHECKPOINT[stage]}; the same command resumes"
        in stderr
    )

    changed = (root / CHECKPOINT[stage]).stat().st_mtime_ns
    process = forks.start(root, stage)
    wait_for(lambda: (root / CHECKPOINT[stage]).stat().st_mtime_ns != changed)
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL
    assert outputs(root) == before

    forks.start(root, stage)
    assert forks.wait() == 0
    assert outputs(root) == outputs(straight)
    assert not (root / CHECKPOINT[stage]).exists()
    assert lines(live) == 24
