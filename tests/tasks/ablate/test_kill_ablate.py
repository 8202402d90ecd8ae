"""`ablate` stopped by SIGTERM and SIGKILL ends in the bytes of an undisturbed run."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tasks import __main__ as cli
from tasks.ablate.runs import Job
from tests.tasks.ablate.runs import in_this_process, really, reports, runs
from tests.tasks.forks import Forks


@pytest.fixture
def root(selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    root = Path(shutil.copytree(selected, tmp_path / "root", symlinks=True))
    monkeypatch.chdir(root)
    return root


def stopped(root: Path, forks: Forks, number: signal.Signals, after: int) -> tuple[int, str]:
    """Start it, send a signal after so many finished runs; its exit code and what it said."""
    process = forks.start(root, "ablate", "7")
    said = root / "stderr.txt"
    deadline = time.monotonic() + 240
    while runs(root) < after:
        assert time.monotonic() < deadline, f"it ended, or did not get there: {said.read_text()}"
        time.sleep(0.01)
    os.kill(process, number)
    return forks.wait(), said.read_text()


@pytest.mark.processes
@pytest.mark.timeout(900)
def test_terminated_and_killed_it_ends_in_the_bytes_of_a_run_left_in_peace(
    root: Path, straight: tuple[Path, list[Job]], forks: Forks
) -> None:
    code, stderr = stopped(root, forks, signal.SIGTERM, 1)
    assert (
        code == 143
        and "finished runs are kept in work/ablate, the same command continues" in stderr
    )
    code, _ = stopped(root, forks, signal.SIGKILL, runs(root) + 3)
    assert code == -signal.SIGKILL and not (root / "reports/ablate").exists() and runs(root) < 19
    with in_this_process(really) as did:
        assert cli.main(["ablate", "7"]) == 0
    assert 0 < len(did) < 16
    assert reports(root) == reports(straight[0])
