"""Running DVC stages from outside, on small repositories; Prefect's engine is not started."""

import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.states import Failed

from flows.dvc import bucket
from flows.dvc import run as flows_repro
from flows.dvc.run import (
    StageBroke,
    StageFailed,
    check_commit,
    commit_of,
    committed,
    run_dvc,
    worth_another_try,
)
from flows.evaluate import restore_committed_lock
from flows.workplace import read_lock_entries, write_lock_entries

pytestmark = pytest.mark.processes

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
  made: {cmd: echo one; echo 1 > made, params: [number], outs: [made]}
  broken: {cmd: echo the reason; exit 7, outs: [nothing]}
  slow: {cmd: python slow.py, deps: [slow.py], outs: [slow]}
  stubborn: {cmd: python slow.py stubborn, deps: [slow.py], outs: [stubborn]}
"""


@pytest.fixture(scope="module")
def template(initialised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that nothing ran in."""
    folder = shutil.copytree(initialised, tmp_path_factory.mktemp("template"), dirs_exist_ok=True)
    (folder / "slow.py").write_text(SLOW)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("number: 1\n")
    for command in (
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return shutil.copytree(template, tmp_path, dirs_exist_ok=True)


def repro(stage: str, repository: Path, on_line: Callable[[str], None]) -> None:
    run_dvc(["repro", "--single-item", stage], repository, on_line)


def test_a_stage_runs_once_and_its_lines_are_handed_on(repository: Path) -> None:
    lines: list[str] = []
    repro("made", repository, lines.append)
    assert "one" in lines
    repro("after@y", repository, lines.append)
    assert (repository / "after-y").is_file()
    lines.clear()
    repro("made", repository, lines.append)
    assert any("didn't change, skipping" in line for line in lines)


def test_a_failing_stage_raises_with_its_last_lines(repository: Path) -> None:
    with pytest.raises(
        StageFailed, match="dvc repro --single-item broken ended with code"
    ) as caught:
        repro("broken", repository, lambda line: None)
    assert "the reason" in str(caught.value)


def test_a_line_that_cannot_be_logged_costs_the_line(repository: Path) -> None:
    """Without a reader the stage would break on its pipe."""

    def on_line(line: str) -> None:
        raise RuntimeError("the log is away")

    repro("made", repository, on_line)
    assert (repository / "made").read_text() == "1\n"
    with pytest.raises(StageFailed, match="the reason"):
        repro("broken", repository, on_line)


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_of_the_network_is_tried_again_until_the_stage_has_begun(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        args: list[str],
        root: Path,
        on_line: Callable[[str], None],
        on_tick: Callable[[], None],
        variables: dict[str, str],
    ) -> None:
        assert variables == {"GDPO_CHECKPOINTS": "s3://gdpo-sr/results/checkpoints"}
        for line in ["Running stage 'x':"] * begun + ["Connection reset by peer"] * 20:
            on_line(line)
        raise StageFailed("dvc repro ended with code 1:\nConnection reset by peer")

    monkeypatch.setattr(bucket.Variable, "get", lambda name: "s3://gdpo-sr")
    monkeypatch.setattr(flows_repro, "run_dvc", broken)
    monkeypatch.setattr(flows_repro, "get_run_logger", lambda: logging.getLogger("test"))
    with pytest.raises(StageFailed, match="reset by peer") as caught:
        flows_repro.repro.fn("x", tmp_path, share=True)
    assert isinstance(caught.value, StageBroke) == begun
    state = Failed(
        data=caught.value, message=f"Task run encountered unexpected exception: {caught.value!r}"
    )
    assert worth_another_try(None, None, state) != begun


def test_pull_repro_and_push_are_tried_again() -> None:
    """By that condition, and with the repeats that a server needs to come back."""
    for task in (flows_repro.pull, flows_repro.repro, flows_repro.push):
        assert task.retries == 4 and task.retry_condition_fn is worth_another_try


def test_no_pipeline_inside_a_stage(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "rollout")
    with pytest.raises(StageFailed, match="inside the DVC stage rollout"):
        repro("made", repository, lambda line: None)
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
            run_dvc(["repro", "--single-item", stage], repository, on_line, grace_s=grace_s)
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


def test_lock_entries_travel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Entries of another clone's dvc.lock are laid over; DVC takes the file and knows the stage."""
    assert read_lock_entries(repository) == {}
    repro("made", repository, lambda line: None)
    entries = read_lock_entries(repository)
    assert entries["made"]["outs"][0]["path"] == "made"
    other = shutil.copytree(repository, tmp_path_factory.mktemp("other"), dirs_exist_ok=True)
    (other / "made").unlink()
    (other / "dvc.lock").unlink()
    write_lock_entries(other, entries)
    write_lock_entries(other, {"else": {"cmd": "x", "outs": [{"path": "y", "md5": "0" * 32}]}})
    assert read_lock_entries(other) == {
        **entries,
        "else": {"cmd": "x", "outs": [{"path": "y", "md5": "0" * 32}]},
    }
    # From the cache: no remote is needed.
    run_dvc(["pull", "--force", "made"], other, lambda line: None)
    assert (other / "made").read_text() == "1\n"


def test_a_clone_at_another_commit_is_refused(repository: Path) -> None:
    here = commit_of(repository)
    check_commit(repository, here)
    check_commit(repository, None)
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    check_commit(repository, here)  # dvc.lock may differ
    (repository / "params.yaml").write_text("number: 3\n")
    changed = commit_of(repository)
    assert changed.startswith(f"{here}+changes-")
    with pytest.raises(
        StageFailed, match=r"this clone is at [0-9a-f]{40}\+changes-[0-9a-f]{12}, the caller's at"
    ):
        check_commit(repository, here)
    (repository / "params.yaml").write_text("number: 4\n")  # other changes are another commit
    assert commit_of(repository).startswith(f"{here}+changes-") and commit_of(repository) != changed
    (repository / "params.yaml").write_text("number: 3\n")
    check_commit(repository, changed)
    # Another host.
    subprocess.run(["git", "config", "diff.noprefix", "true"], cwd=repository, check=True)
    check_commit(repository, changed)
    (repository / "slow.py").unlink()
    assert commit_of(repository) not in (here, changed)


def test_the_committed_lock_takes_the_place_of_the_clones(repository: Path) -> None:
    """At night every worker judges the same, whatever ran in its clone since."""
    with pytest.raises(StageFailed, match=r"no dvc\.lock is committed here"):
        restore_committed_lock(repository)
    repro("made", repository, lambda line: None)
    there = (repository / "dvc.lock").read_bytes()
    for command in (
        ["add", "dvc.lock"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "y"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (repository / "params.yaml").write_text("number: 2\n")
    repro("made", repository, lambda line: None)
    repro("after@x", repository, lambda line: None)
    assert (repository / "dvc.lock").read_bytes() != there
    restore_committed_lock(repository)
    assert (repository / "dvc.lock").read_bytes() == there
    assert not list(repository.glob("*.part")) and not list(repository.glob(".dvc.lock*"))


def test_a_refusal_of_git_is_shown_in_its_own_words(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git` of another owner's clone, of an archive without .git, and no git at all."""
    assert committed("nothing", repository) is None
    config = (repository / ".git/config").read_text()
    (repository / ".git/config").write_text("[core]\n\trepositoryformatversion = 9\n")
    for call in (lambda: commit_of(repository), lambda: committed("dvc.lock", repository)):
        with pytest.raises(StageFailed, match=r"git failed: .*repo version") as caught:
            call()
        assert "\n" not in str(caught.value)
    (repository / ".git/config").write_text(config)
    monkeypatch.setenv("PATH", str(repository / "empty"))
    with pytest.raises(StageFailed, match="git cannot be started"):
        commit_of(repository)
