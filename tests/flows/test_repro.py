"""Running DVC stages from outside, on small repositories; Prefect's engine is not started."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.repro import StageFailed, run_dvc, stages

SLOW = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path("checkpoint").write_text("written")
    print("checkpointed", flush=True)
    sys.exit(143)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, stop)
print("started", flush=True)
time.sleep(60)
"""

# Stages that no alphabet puts into order; slow and stubborn run for a minute.
DVC_YAML = """
stages:
  after:
    matrix: {run: [x, y]}
    cmd: python -c "print(open('made').read() + '${item.run}', file=open('after-${item.run}', 'w'))"
    deps: [made]
    outs: ["after-${item.run}"]
  made: {cmd: echo one; echo 1 > made, outs: [made]}
  broken: {cmd: echo the reason; exit 7, outs: [nothing]}
  slow: {cmd: python slow.py, deps: [slow.py], outs: [slow]}
  stubborn: {cmd: python slow.py stubborn, deps: [slow.py], outs: [stubborn]}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that nothing ran in."""
    folder = tmp_path_factory.mktemp("template")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / "slow.py").write_text(SLOW)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return shutil.copytree(template, tmp_path, dirs_exist_ok=True)


def test_stages_come_after_what_they_depend_on(repository: Path) -> None:
    order = stages(repository)
    assert sorted(order) == ["after@x", "after@y", "broken", "made", "slow", "stubborn"]
    assert order.index("made") < min(order.index("after@x"), order.index("after@y"))


def test_a_stage_runs_once_and_its_lines_are_handed_on(repository: Path) -> None:
    lines: list[str] = []
    run_dvc("made", repository, lines.append)
    assert "one" in lines
    run_dvc("after@y", repository, lines.append)
    assert (repository / "after-y").is_file()
    lines.clear()
    run_dvc("made", repository, lines.append)
    assert any("didn't change, skipping" in line for line in lines)


def test_a_failing_stage_raises_with_its_last_lines(repository: Path) -> None:
    with pytest.raises(StageFailed, match="dvc repro broken ended with code") as caught:
        run_dvc("broken", repository, lambda line: None)
    assert "the reason" in str(caught.value)


def test_no_pipeline_inside_a_stage(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "rollout")
    with pytest.raises(StageFailed, match="inside the DVC stage rollout"):
        run_dvc("made", repository, lambda line: None)
    assert not (repository / "made").exists()


class Cancelled(BaseException):
    """As Prefect's TerminationSignal: not an Exception."""


def cancel(stage: str, repository: Path, grace_s: float) -> list[str]:
    """Run `stage` and cancel it as Prefect does, by an exception in the main thread; its lines."""
    lines: list[str] = []
    begun = threading.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "started":
            begun.set()

    def interrupt() -> None:
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGUSR1)

    def raise_cancelled(*_: object) -> None:
        raise Cancelled

    old = signal.signal(signal.SIGUSR1, raise_cancelled)
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        with pytest.raises(Cancelled):
            run_dvc(stage, repository, on_line, grace_s)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, old)
    return lines


def left_over(repository: Path) -> list[str]:
    """Command lines of processes that still work in the repository."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == repository.resolve():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_cancelling_lets_the_stage_checkpoint_and_leaves_no_process(repository: Path) -> None:
    lines = cancel("slow", repository, grace_s=30)
    assert (repository / "checkpoint").read_text() == "written"
    assert "checkpointed" in lines
    assert not left_over(repository)


def test_a_stage_that_ignores_the_signal_is_killed(repository: Path) -> None:
    cancel("stubborn", repository, grace_s=0.5)
    assert not left_over(repository)
