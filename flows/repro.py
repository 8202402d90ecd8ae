"""Run DVC from Prefect: the only place that starts `dvc`.

    run_dvc(args): one dvc command in a session of its own, every line handed on as it comes
    cancelled:     SIGTERM to the whole group, its last lines handed on, SIGKILL after 25 s (Prefect allows 30 s)

Both matter. SIGTERM to `dvc repro` alone leaves the stage's process behind, and Prefect's cancel signals only its own.
The three tasks are what a worker does with a stage: `pull` what it reads, `repro` it, `push` what it made.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.faults import is_network_fault
from flows.progress import Progress
from flows.workplace import read_ledger

GRACE_S = 25.0
LAST_LINES = 15
TICK_S = 5.0


class StageFailed(RuntimeError):
    """A dvc command was refused, or ended with an error: the message has the last lines."""


def run_dvc(
    args: Sequence[str],
    root: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
) -> None:
    """Run `dvc ARGS` in the repository at `root`; `on_tick` is called every few seconds from this thread.

    Raises `StageFailed`. On any exception in the calling thread, Prefect's `TerminationSignal` included, the whole
    process group is stopped before the exception goes on.
    """
    if "DVC_STAGE" in os.environ:
        raise StageFailed(f"inside the DVC stage {os.environ['DVC_STAGE']}: a stage must not start the pipeline")
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *args],
        cwd=root, env=_environment(), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    last: deque[str] = deque(maxlen=LAST_LINES)
    reader = threading.Thread(target=_hand_on, args=(process, last, on_line), daemon=True)
    try:
        reader.start()
        code = _wait(process, on_tick)
        reader.join()
    except BaseException:
        _stop_group(process, reader, grace_s)
        raise
    if code != 0:
        raise StageFailed(f"dvc {' '.join(args)} ended with code {code}:\n" + "\n".join(last))


def _environment() -> dict[str, str]:
    """Ours, with this interpreter first on the path (a stage's command starts with `python`) and unbuffered output."""
    here = str(Path(sys.executable).parent)
    return os.environ | {"PATH": here + os.pathsep + os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"}


def _wait(process: subprocess.Popen[str], on_tick: Callable[[], None]) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(TICK_S)
        on_tick()


def _hand_on(process: subprocess.Popen[str], last: deque[str], on_line: Callable[[str], None]) -> None:
    """Until the last process of the group has closed its output."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if text := line.rstrip():
                last.append(text)
                on_line(text)


def _stop_group(process: subprocess.Popen[str], reader: threading.Thread, grace_s: float) -> None:
    """SIGTERM, the end of the output (dvc leaves at once, a trainer after its checkpoint), then SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    reader.join(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(1.0)


def commit_of(root: Path) -> str:
    """The commit checked out at `root`, with "+changes" if tracked files other than dvc.lock differ from it."""
    changes = _git(["status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock"], root)
    return _git(["rev-parse", "HEAD"], root) + ("+changes" if changes else "")


def check_commit(root: Path, wanted: str | None) -> None:
    """`StageFailed` unless the clone is at the caller's commit; None: the caller does not mind."""
    here = commit_of(root)
    if wanted is not None and here != wanted:
        raise StageFailed(f"this clone is at {here}, the caller's at {wanted}: check out the same commit here, without changes")


def _git(args: Sequence[str], root: Path) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def graph(root: Path) -> dict[str, set[str]]:
    """The stages of dvc.yaml at `root` in an order that works: stage -> the stages whose outputs it reads."""
    edges: dict[str, set[str]] = {}
    for line in _output(["dag", "--dot"], root).splitlines():
        names = [part.strip().strip('"') for part in line.strip().removesuffix(";").split("->")]
        if line.strip().startswith('"'):
            edges.setdefault(names[-1], set()).update(names[:-1])
    return {stage: edges.get(stage, set()) for stage in TopologicalSorter(edges).static_order()}


def outdated(stages: Sequence[str], root: Path) -> dict[str, str]:
    """Those of `stages` that were never run, or with other code or parameters: {stage: which}.

    Data that is merely not here does not count: it can be pulled.
    """
    known = read_ledger(root)
    found = {stage: "it was never run" for stage in stages if stage not in known}
    if len(found) < len(stages):
        status = json.loads(_output(["status", "--json", *stages], root).splitlines()[-1])
        changed = {stage: _changed(entries) for stage, entries in status.items()}
        found.update({stage: f"it was run with another {what}" for stage, what in changed.items() if what})
    return found


def ancestors(edges: dict[str, set[str]], stages: Sequence[str]) -> list[str]:
    """`stages` and everything they are made from, in the order of `edges`."""
    wanted = set(stages)
    for stage in reversed(edges):
        if stage in wanted:
            wanted |= edges[stage]
    return [stage for stage in edges if stage in wanted]


def check_inputs(what: str, stages: Sequence[str], edges: dict[str, set[str]], root: Path) -> list[str]:
    """What `stages` read that is not of their own making; `StageFailed` if it was made with other code or parameters."""
    inputs = sorted({name for stage in stages for name in edges[stage]} - set(stages))
    old = outdated(ancestors(edges, inputs), root)
    if old:
        stage, why = next(iter(old.items()))
        raise StageFailed(
            f"{what} reads what stage {stage} makes, but {why}: prefect deployment run gdpo-pipeline/head makes it anew"
        )
    return inputs


def _changed(entries: list[Any]) -> str:
    """The first changed parameter or file in one stage's status, or ""."""
    for entry in entries:
        if isinstance(entry, str):
            continue  # "changed command", "always changed"
        for path, state in entry.get("changed deps", {}).items():
            if isinstance(state, dict):
                return next(iter(state))
            if state in ("modified", "new"):
                return str(path)
    return ""


def _output(args: Sequence[str], root: Path) -> str:
    result = subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, env=_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        raise StageFailed(f"dvc {' '.join(args)} failed: {result.stderr.strip()}")
    return result.stdout


def worth_another_try(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:
    """Prefect's retry condition: the network, and S3."""
    return is_network_fault(str(state.message))


TRANSFER_TAG = "gdpo-transfer"  # flows/setup.py limits how many tasks with it run at once
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_another_try,
}


@task(task_run_name="pull for {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def pull(stage: str, inputs: Sequence[str], root: Path) -> None:
    """Bring the outputs of the stages `inputs`, as dvc.lock has them, from the cache or the DVC remote."""
    if inputs:
        run_dvc(["pull", "--force", *inputs], root, get_run_logger().info)


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def repro(stage: str, root: Path, *, share: bool = False) -> None:
    """One stage; its lines are the task's logs, its steps a progress artifact. What is up to date is not run again.

    share: take the outputs from the remote if somebody has run the same stage on the same inputs.
    """
    with Progress(stage, root) as progress:
        command = ["repro", "--single-item", stage, *(["--pull"] if share else [])]
        run_dvc(command, root, get_run_logger().info, progress.update)


@task(task_run_name="push {stage}", tags=[TRANSFER_TAG], cache_policy=NO_CACHE, **RETRIES)
def push(stage: str, root: Path) -> None:
    """Send the outputs of a stage, and DVC's record of the run, to the remote."""
    run_dvc(["push", "--run-cache", stage], root, get_run_logger().info)
