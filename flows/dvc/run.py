"""Runs DVC from Prefect: the only module that starts `dvc`.

    run_dvc(args)    runs one dvc command in its own session and passes on every line as it comes
    flow cancelled   SIGTERM to the whole process group, its last lines are passed on, SIGKILL after
                     25 s (Prefect allows 30 s)
    flow killed      the session's leader (flows/dvc/guard.py) notices within a second and does the
                     same

Both cases need the process group: SIGTERM to `dvc repro` alone leaves the stage's process running,
and Prefect's cancellation signals only Prefect's own process.

A worker runs a stage with three tasks: `pull` its inputs, `repro` the stage, `push` its outputs.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.dvc.faults import is_network_fault
from flows.heartbeat import Heartbeat
from flows.progress import Progress
from tasks.store.s3 import sha256_of

GUARD = Path(__file__).with_name("guard.py")
GRACE_S = 25.0
LAST_LINES = 15
TICK_S = 5.0


class StageFailed(RuntimeError):
    """A dvc command or a check before it failed; the message has the command's last lines."""


class StageBroke(StageFailed):
    """Failure after the stage started; never retried."""


def run_dvc(
    args: Sequence[str],
    root: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
) -> None:
    """Run `dvc ARGS` in the repository at `root`. Raises `StageFailed`.

    on_line: called with every line, from another thread; an error in it loses only that line.
    on_tick: called every few seconds, from the calling thread. Any exception in the calling thread
    (also from `on_tick`, or Prefect's `TerminationSignal`) stops the whole process group before it
    propagates.
    """
    if "DVC_STAGE" in os.environ:
        raise StageFailed(
            f"inside the DVC stage {os.environ['DVC_STAGE']}: a stage must not start the pipeline"
        )
    process = subprocess.Popen(
        [sys.executable, "-P", str(GUARD), str(os.getpid()), sys.executable, "-m", "dvc", *args],
        cwd=root,
        env=_environment(),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    reader = threading.Thread(target=_hand_on, args=(process, last, on_line), daemon=True)
    try:
        reader.start()
        code = _wait(process, on_tick)
        reader.join()
    except BaseException:
        _stop_group(process, reader, grace_s)
        raise
    if code < 0:  # a signal killed the guard, so the rest of the group may still be running
        _stop_group(process, reader, grace_s)
    if code != 0:
        raise StageFailed(f"dvc {' '.join(args)} ended with code {code}:\n" + "\n".join(last))


def _environment() -> dict[str, str]:
    """This process's environment, for dvc: unbuffered output, and this interpreter first on PATH.

    A stage's command starts with `python`.
    """
    here = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": here + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(process: subprocess.Popen[str], on_tick: Callable[[], None]) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(TICK_S)
        on_tick()


def _hand_on(
    process: subprocess.Popen[str], last: deque[str], on_line: Callable[[str], None]
) -> None:
    """Pass on every line, until the last process of the group has closed its output."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if text := line.rstrip():
                last.append(text)
                # An error must not end this thread: all later lines would be lost, and with them
                # the last lines in `StageFailed`.
                with suppress(Exception):
                    on_line(text)


def _stop_group(process: subprocess.Popen[str], reader: threading.Thread, grace_s: float) -> None:
    """Send SIGTERM, wait up to `grace_s` until the output is closed, then send SIGKILL.

    dvc ends at once, a trainer after its checkpoint.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    reader.join(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(1.0)


def commit_of(root: Path) -> str:
    """The commit checked out at `root`.

    With "+changes-<hash>" appended if tracked files other than dvc.lock differ from it.
    """
    head = _git(["rev-parse", "HEAD"], root).decode().strip()
    listed = [
        "-c",
        "diff.autoRefreshIndex=true",
        "diff",
        "HEAD",
        "--name-only",
        "--no-renames",
        "-z",
    ]
    changed = os.fsdecode(_git([*listed, "--", ".", ":!dvc.lock"], root)).split("\0")[:-1]
    if not changed:
        return head
    # Hash the files and not git's diff, whose format depends on each host's git settings.
    digest = hashlib.sha256()
    for name in sorted(changed):
        content = sha256_of(root / name) if (root / name).is_file() else "deleted"
        digest.update(os.fsencode(f"{name}\0{content}\0"))
    return f"{head}+changes-{digest.hexdigest()[:12]}"


def check_commit(root: Path, wanted: str | None, whose: str = "the caller's") -> None:
    """`StageFailed` unless the clone is at the commit `wanted`; None accepts any commit.

    whose: names the owner of `wanted` in the message.
    """
    here = commit_of(root)
    if wanted is not None and here != wanted:
        raise StageFailed(
            f"this clone is at {here}, {whose} at {wanted}: check out the same commit here, "
            "without changes"
        )


def _git(args: Sequence[str], root: Path) -> bytes:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True).stdout


def committed(path: str, root: Path) -> bytes | None:
    """The content of `path` in the commit checked out at `root`; None if the commit lacks it."""
    result = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=root, capture_output=True)
    return result.stdout if result.returncode == 0 else None


def dvc_output(args: Sequence[str], root: Path) -> str:
    """The output of a short dvc command. `StageFailed` with its error output if it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *args],
        cwd=root,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise StageFailed(f"dvc {' '.join(args)} failed: {result.stderr.strip()}")
    return result.stdout


def worth_another_try(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:
    """Prefect's retry condition: a network or S3 failure before the stage itself started."""
    return not isinstance(state.data, StageBroke) and is_network_fault(str(state.message))


TRANSFER_TAG = "gdpo-transfer"  # flows/setup.py limits how many such tasks run at once
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_another_try,
}


@task(task_run_name="pull for {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def pull(stage: str, inputs: Sequence[str], root: Path) -> None:
    """Pull the outputs of the stages `inputs`, as dvc.lock names them, from cache or DVC remote."""
    if inputs:
        run_dvc(["pull", "--force", *inputs], root, get_run_logger().info, Heartbeat().update)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, **RETRIES)
def repro(stage: str, root: Path, *, share: bool = False) -> None:
    """Run one stage unless it is up to date. Its output goes to the task's logs.

    Its steps are shown as a progress artifact. share: take the outputs from the DVC remote if the
    same stage was already run on the same inputs. DVC asks the remote before the stage starts, so a
    failure of the remote is retried; a failure of the stage is `StageBroke` and is not retried.
    """
    logger = get_run_logger()
    begun = False
    alive = Heartbeat()

    def on_line(line: str) -> None:
        nonlocal begun
        begun = begun or "Running stage '" in line
        logger.info(line)

    def on_tick() -> None:
        progress.update()
        alive.update()

    command = ["repro", "--single-item", stage, *(["--pull"] if share else [])]
    try:
        with Progress(stage, root, logger.warning) as progress:
            run_dvc(command, root, on_line, on_tick)
    except StageFailed as error:
        if begun:
            raise StageBroke(str(error)) from error
        raise


@task(task_run_name="push {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def push(stage: str, root: Path) -> None:
    """Push a stage's outputs and its run-cache entry to the DVC remote."""
    run_dvc(["push", "--run-cache", stage], root, get_run_logger().info, Heartbeat().update)
