"""SIGKILL and SIGTERM in the middle of rollout: whole chunks are kept and not made again, nothing
half-written is visible, and the run that finishes makes the bytes of one that was left alone. Real
processes; a signal is sent when a chunk is there."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gdpo.hooks import Hooks
from tasks.stages import pretrain
from tests import tiny
from tests.tasks.forks import Forks

pytestmark = pytest.mark.processes

PAIRS = 24
CHUNKS = "work/rollout/00/chunks"
PART = ("rollout", "--part", "00")
CONFIG = tiny.settings(pretrain={"steps": 1}, rollout={"batch": 3})  # a chunk is one pair


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A root after rollout, uninterrupted."""
    root = tiny.workplace(tmp_path_factory.mktemp("finished") / "root", tiny_base, PAIRS + 1)
    (root / "params.yaml").write_text(json.dumps(CONFIG.model_dump()))
    pretrain.run(CONFIG, root, Hooks())
    forks.start(root, *PART)
    assert forks.wait() == 0, (root / "stderr.txt").read_text()
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """The same root before rollout."""
    root = Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))
    for folder in ("data/rollouts", "reports/data-docs", "work"):
        shutil.rmtree(root / folder)
    return root


def outputs(root: Path) -> dict[str, bytes]:
    return tiny.tree(root / "data/rollouts", root / "reports/data-docs")


def kept(root: Path) -> dict[str, int]:
    """When each chunk was written."""
    return {path.name: path.stat().st_mtime_ns for path in (root / CHUNKS).glob("[0-9]*.parquet")}


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, "the stage did not get there in time"
        time.sleep(0.001)


def test_killed_and_killed_again_it_makes_no_chunk_twice(
    root: Path, finished: Path, forks: Forks
) -> None:
    seen: dict[str, int] = {}
    for wanted in (1, 6):
        process = forks.start(root, *PART)
        wait_for(lambda count=wanted: len(kept(root)) >= count)
        os.kill(process, signal.SIGKILL)
        assert forks.wait() == -signal.SIGKILL
        assert not (root / "data/rollouts").exists() and not (root / "reports/data-docs").exists()
        found = kept(root)
        assert seen.items() <= found.items() and wanted <= len(found) < PAIRS
        seen = found
    process = forks.start(root, *PART)
    wait_for(lambda: len(kept(root)) > len(seen))
    assert seen.items() <= kept(root).items()
    assert forks.wait() == 0, (root / "stderr.txt").read_text()
    assert outputs(root) == outputs(finished)
    assert not (root / CHUNKS).exists() and not list((root / "data").rglob(".*"))
    live = (root / "work/rollout/00/metrics.jsonl").read_text()
    assert (
        live == (finished / "work/rollout/00/metrics.jsonl").read_text()
        and live.count("\n") == PAIRS
    )


def test_terminated_it_says_where_it_stopped_and_how_to_go_on(
    root: Path, finished: Path, forks: Forks
) -> None:
    process = forks.start(root, *PART)
    wait_for(lambda: len(kept(root)) >= 2)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143
    count = len(kept(root))
    assert 2 <= count < PAIRS and not (root / "data/rollouts").exists()
    line = f"gdpo-sr: stopped after image {count}, kept in {CHUNKS}; the same command resumes\n"
    assert (root / "stderr.txt").read_text().endswith(line)
    forks.start(root, *PART)
    assert forks.wait() == 0
    assert outputs(root) == outputs(finished)
