"""Running DVC stages from outside, on small repositories; Prefect's engine is not started."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.faults import is_network_fault
from flows.repro import StageFailed, ancestors, check_commit, check_inputs, commit_of, graph, outdated, run_dvc
from flows.workplace import read_ledger, write_ledger

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
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that nothing ran in."""
    folder = tmp_path_factory.mktemp("template")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / "slow.py").write_text(SLOW)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("number: 1\n")
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return shutil.copytree(template, tmp_path, dirs_exist_ok=True)


def repro(stage: str, repository: Path, on_line: Callable[[str], None]) -> None:
    run_dvc(["repro", "--single-item", stage], repository, on_line)


def test_stages_come_after_what_they_depend_on(repository: Path) -> None:
    edges = graph(repository)
    order = list(edges)
    assert edges["after@x"] == {"made"} and not edges["made"]
    assert sorted(order) == ["after@x", "after@y", "broken", "made", "slow", "stubborn"]
    assert order.index("made") < min(order.index("after@x"), order.index("after@y"))


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
    with pytest.raises(StageFailed, match="dvc repro --single-item broken ended with code") as caught:
        repro("broken", repository, lambda line: None)
    assert "the reason" in str(caught.value)


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


def test_a_stage_is_outdated_by_a_parameter_but_not_by_absent_data(repository: Path) -> None:
    assert outdated([], repository) == {}
    repro("made", repository, lambda line: None)
    repro("after@x", repository, lambda line: None)
    assert outdated(["made", "after@x"], repository) == {}
    (repository / "made").unlink()
    assert outdated(["made", "after@x"], repository) == {}
    (repository / "params.yaml").write_text("number: 2\n")
    assert outdated(["made", "after@x"], repository) == {"made": "it was run with another number"}
    assert outdated(["after@y"], repository) == {"after@y": "it was never run"}


def test_what_a_stage_is_made_from() -> None:
    edges: dict[str, set[str]] = {"a": set(), "b": {"a"}, "c": set(), "d": {"b"}, "e": {"c"}}
    assert ancestors(edges, ["d"]) == ["a", "b", "d"]
    assert ancestors(edges, ["e", "b"]) == ["a", "b", "c", "e"]
    assert ancestors(edges, []) == []


def test_inputs_made_with_other_parameters_are_refused(repository: Path) -> None:
    repro("made", repository, lambda line: None)
    edges = graph(repository)
    assert check_inputs("training", ["after@x", "after@y"], edges, repository) == ["made"]
    (repository / "params.yaml").write_text("number: 2\n")
    with pytest.raises(StageFailed, match="training reads what stage made makes, but it was run with another number: prefect"):
        check_inputs("training", ["after@x", "after@y"], edges, repository)


def test_the_ledger_travels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Entries of another clone's dvc.lock are laid over; DVC takes the file and knows the stage."""
    assert read_ledger(repository) == {}
    repro("made", repository, lambda line: None)
    entries = read_ledger(repository)
    assert entries["made"]["outs"][0]["path"] == "made"
    other = shutil.copytree(repository, tmp_path_factory.mktemp("other"), dirs_exist_ok=True)
    (other / "made").unlink()
    (other / "dvc.lock").unlink()
    write_ledger(other, entries)
    write_ledger(other, {"else": {"cmd": "x", "outs": [{"path": "y", "md5": "0" * 32}]}})
    assert read_ledger(other) == {**entries, "else": {"cmd": "x", "outs": [{"path": "y", "md5": "0" * 32}]}}
    run_dvc(["pull", "--force", "made"], other, lambda line: None)  # from the cache: no remote is needed
    assert (other / "made").read_text() == "1\n"


def test_a_clone_at_another_commit_is_refused(repository: Path) -> None:
    here = commit_of(repository)
    check_commit(repository, here)
    check_commit(repository, None)
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    check_commit(repository, here)  # the ledger may differ
    (repository / "params.yaml").write_text("number: 3\n")
    assert commit_of(repository) == f"{here}+changes"
    with pytest.raises(StageFailed, match=r"this clone is at [0-9a-f]{40}\+changes, the caller's at"):
        check_commit(repository, here)


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: unexpected error - Could not connect to the endpoint URL: 'http://s3/dvc'",
        "botocore.exceptions.ClientError: An error occurred (503) when calling the PutObject operation: Service Unavailable",
        "An error occurred (SlowDown) when calling the UploadPart operation: Please reduce your request rate.",
        "aiohttp.client_exceptions.ServerDisconnectedError: Server disconnected",
        "s3://gdpo-sr/runs/x: the upload broke off (Connection was closed before we received a valid response)",
        "[Errno -3] Temporary failure in name resolution",
        "Read timeout on endpoint URL",
    ],
)
def test_the_network_is_worth_another_try(line: str) -> None:
    assert is_network_fault(f"dvc push ended with code 1:\nuploading\n{line}")


@pytest.mark.parametrize(
    "line",
    [
        "gdpo-sr: select: none of 500 patches is fit; lower select.min_detail",
        "ERROR: failed to pull data from the cloud - Checkout failed for following targets: data/rollouts",
        "An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
        "s3://gdpo-sr/x: there is no such object or bucket (NoSuchKey)",
        "step 500: loss is not finite; the last good checkpoint is work/finetune/gdpo/checkpoint.pt",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 502.00 MiB",
    ],
)
def test_a_failing_stage_is_not(line: str) -> None:
    assert not is_network_fault(line)
