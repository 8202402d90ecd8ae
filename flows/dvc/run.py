"""Run DVC from Prefect: the only place that starts `dvc`.

    run_dvc(args): one dvc command in a session of its own, every line handed on as it comes
    cancelled:     SIGTERM to the whole group, its last lines handed on, SIGKILL after 25 s (Prefect
                   allows 30 s)
    killed:        the session's leader (flows/dvc/guard.py) sees it within a second and does the
                   same

All matter. SIGTERM to `dvc repro` alone leaves the stage's process behind, and Prefect's cancel
signals only its own. The three tasks are what a worker does with a stage: `pull` what it reads,
`repro` it, `push` what it made.
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
    """A dvc command was refused, or ended with an error: the message has the last lines."""


class StageBroke(StageFailed):
    """The same of a stage that had begun: whatever it says, it is not run again."""


def run_dvc(
    args: Sequence[str],
    root: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
) -> None:
    """Run `dvc ARGS` in the repository at `root`; `on_tick` is called every few seconds from this
    thread.

    Raises `StageFailed`. On any exception in the calling thread, Prefect's `TerminationSignal` and
    those of `on_tick` included, the whole process group is stopped before the exception goes on. An
    `on_line` that fails costs its line.
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
    if code < 0:  # somebody killed the leader, which itself ends with the others' code
        _stop_group(process, reader, grace_s)
    if code != 0:
        raise StageFailed(f"dvc {' '.join(args)} ended with code {code}:\n" + "\n".join(last))


def _environment() -> dict[str, str]:
    """Ours, with this interpreter first on the path (a stage's command starts with `python`) and
    unbuffered output.
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
    """Until the last process of the group has closed its output."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if text := line.rstrip():
                last.append(text)
                with suppress(
                    Exception
                ):  # without a reader the lines, and the last ones of a failure, would end here
                    on_line(text)


def _stop_group(process: subprocess.Popen[str], reader: threading.Thread, grace_s: float) -> None:
    """SIGTERM, the end of the output (dvc leaves at once, a trainer after its checkpoint), then
    SIGKILL.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    reader.join(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(1.0)


def commit_of(root: Path) -> str:
    """The commit checked out at `root`; with "+changes-<hash>" if tracked files other than dvc.lock
    differ from it.
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
    # Of the files, not of git's diff: how that looks is each host's own settings.
    digest = hashlib.sha256()
    for name in sorted(changed):
        content = sha256_of(root / name) if (root / name).is_file() else "deleted"
        digest.update(os.fsencode(f"{name}\0{content}\0"))
    return f"{head}+changes-{digest.hexdigest()[:12]}"


def check_commit(root: Path, wanted: str | None, whose: str = "the caller's") -> None:
    """`StageFailed` unless the clone is at the commit of another, `whose` it is; None: that one
    does not mind.
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
    """The file `path` as the commit checked out at `root` has it; None if it has none."""
    result = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=root, capture_output=True)
    return result.stdout if result.returncode == 0 else None


def dvc_output(args: Sequence[str], root: Path) -> str:
    """What a quick dvc command prints. `StageFailed` with its error."""
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
    """Prefect's retry condition: the network, and S3, before the stage itself has begun."""
    return not isinstance(state.data, StageBroke) and is_network_fault(str(state.message))


TRANSFER_TAG = "gdpo-transfer"  # flows/setup.py limits how many tasks with it run at once
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_another_try,
}


@task(task_run_name="pull for {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def pull(stage: str, inputs: Sequence[str], root: Path) -> None:
    """Bring the outputs of the stages `inputs`, as dvc.lock has them, from the cache or the DVC
    remote.
    """
    if inputs:
        run_dvc(["pull", "--force", *inputs], root, get_run_logger().info, Heartbeat().update)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, **RETRIES)
def repro(stage: str, root: Path, *, share: bool = False) -> None:
    """One stage; its lines are the task's logs, its steps a progress artifact. What is up to date
    is not run again.

    share: take the outputs from the remote if somebody has run the same stage on the same inputs.
    DVC asks for them before the stage begins: a fault of the remote is tried again, one of the
    stage is a `StageBroke` and is not.
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
    """Send the outputs of a stage, and DVC's record of the run, to the remote."""
    run_dvc(["push", "--run-cache", stage], root, get_run_logger().info, Heartbeat().update)
