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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.dvc.bucket import checkpoints_url
from flows.dvc.faults import StageBroke, StageFailed, is_network_fault
from flows.dvc.guard import GRACE_S
from flows.heartbeat import Heartbeat
from flows.progress import Progress
from tasks import paths
from tasks.run import copies
from tasks.store.s3 import sha256

GUARD = Path(__file__).with_name("guard.py")
LAST_LINES = 15
TICK_S = 5.0


def run_dvc(
    args: Sequence[str],
    root: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run `dvc ARGS` in the repository at `root`. Raises `StageFailed`.

    variables: added to the environment.
    on_line: called with every line, from another thread; an error in it loses only that line.
    on_tick: called every few seconds, from the calling thread. Any exception in the calling thread
    (also from `on_tick`, or Prefect's `TerminationSignal`) stops the whole process group before it
    propagates.
    """
    # A stage that started the pipeline would wait for DVC's lock, which its own `dvc repro` holds.
    if "DVC_STAGE" in os.environ:
        raise StageFailed(
            f"inside the DVC stage {os.environ['DVC_STAGE']}: a stage must not start the pipeline"
        )
    process = subprocess.Popen(
        # -P keeps the guard's own folder off its import path, where `run.py` or `lock.py` could be
        # taken for other modules.
        [sys.executable, "-P", str(GUARD), str(os.getpid()), sys.executable, "-m", "dvc", *args],
        cwd=root,
        env=_environment() | dict(variables or {}),
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
        # The guard has ended, but its last lines may still be in the pipe.
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
    # Not process.wait(): dvc ends at once. The pipe closes when the last process that inherited it
    # has ended, so also the trainer, after its checkpoint.
    reader.join(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A process that left the group may hold the pipe open for ever; its lines are not waited for.
    reader.join(1.0)


def commit_of(root: Path) -> str:
    """The commit checked out at `root`.

    With "+changes-<hash>" appended if tracked files other than dvc.lock differ from it.
    """
    head = _git(["rev-parse", "HEAD"], root).decode().strip()
    listed = [
        "-c",
        # A file that was only touched would otherwise count as changed.
        "diff.autoRefreshIndex=true",
        "diff",
        "HEAD",
        "--name-only",
        "--no-renames",
        "-z",
    ]
    # Not dvc.lock: every stage that runs rewrites it, and it says what was made and not how.
    changed = os.fsdecode(_git([*listed, "--", ".", ":!dvc.lock"], root)).split("\0")[:-1]
    if not changed:
        return head
    # Hash the files and not git's diff, whose format depends on each host's git settings.
    digest = hashlib.sha256()
    for name in sorted(changed):
        content = sha256(root / name) if (root / name).is_file() else "deleted"
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
    """The output of git. `StageFailed` with git's own reason if it refuses or is not installed."""
    try:
        result = subprocess.run(["git", *args], cwd=root, capture_output=True)
    except FileNotFoundError as error:
        raise StageFailed(
            f"{root}: git cannot be started ({error.strerror}); install it"
        ) from error
    if result.returncode != 0:
        message = " ".join(os.fsdecode(result.stderr).split())
        raise StageFailed(f"{root}: git failed: {message}")
    return result.stdout


def committed(path: str, root: Path) -> bytes | None:
    """The content of `path` in the commit checked out at `root`; None if the commit lacks it.

    Errors: `StageFailed` with git's own reason if it refuses.
    """
    if not _git(["ls-tree", "HEAD", "--", path], root):
        return None
    return _git(["show", f"HEAD:{path}"], root)


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
    # By the message, because the exception itself comes from dvc's output and has one type.
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
    # Without names `dvc pull` would pull everything. --force: without it, dvc would ask before it
    # replaces what another run left here, and there is no terminal to answer at.
    if inputs:
        run_dvc(["pull", "--force", *inputs], root, get_run_logger().info, Heartbeat().update)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, **RETRIES)
def repro(stage: str, root: Path, *, share: bool = False) -> None:
    """Run one stage unless it is up to date. Its output goes to the task's logs.

    Its steps are shown as a progress artifact. share: take the outputs from the DVC remote if the
    same stage was already run on the same inputs, and keep copies of a training's checkpoints in
    the bucket. DVC asks the remote before the stage starts, so a
    failure of the remote is retried; a failure of the stage is `StageBroke` and is not retried.
    """
    logger = get_run_logger()
    begun = False
    heartbeat = Heartbeat()

    def on_line(line: str) -> None:
        nonlocal begun
        # DVC prints this once the inputs are there and the stage starts: before it a failure is one
        # of DVC or the remote, after it the stage's own.
        begun = begun or "Running stage '" in line
        logger.info(line)

    def on_tick() -> None:
        progress.update()
        heartbeat.update()

    command = ["repro", "--single-item", stage, *(["--pull"] if share else [])]
    variables = {copies.URL: checkpoints_url()} if share else {}
    try:
        with Progress(stage, root, logger.warning) as progress:
            run_dvc(command, root, on_line, on_tick, variables=variables)
    except StageFailed as error:
        if begun:
            raise StageBroke(str(error)) from error
        raise


@task(task_run_name="push {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def push(stage: str, root: Path) -> None:
    """Push a stage's outputs and its run-cache entry to the DVC remote.

    Then the copies of a training's checkpoints are deleted: nothing has to go on from them.
    """
    logger = get_run_logger()
    # With the run cache, `repro --pull` of the same inputs on any other worker finds the outputs.
    run_dvc(["push", "--run-cache", stage], root, logger.info, Heartbeat().update)
    try:
        copies.forget(paths.work(root, *stage.split("@")))
    # The outputs are safe by now, so a failure here must not run the task, or the stage, again.
    except (OSError, ValueError) as error:
        logger.warning(f"copies of checkpoints stay in the bucket: {error}")
