"""Run one DVC stage from Prefect: the only place that starts `dvc`.

    run_dvc(stage): dvc repro --single-item STAGE, in a session of its own, every line handed on as it comes
    cancelled:      SIGTERM to the whole group, its last lines handed on, SIGKILL after 25 s (Prefect allows 30 s)

Both matter. SIGTERM to `dvc repro` alone leaves the stage's process behind, and Prefect's cancel signals only its own.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

GRACE_S = 25.0
LAST_LINES = 15


class StageFailed(RuntimeError):
    """A stage was refused, or its `dvc repro` ended with an error: the message has the last lines."""


def run_dvc(stage: str, root: Path, on_line: Callable[[str], None], grace_s: float = GRACE_S) -> None:
    """Reproduce one stage of the repository at `root`; its upstream stages are taken as they are.

    Raises `StageFailed`. On any exception in the calling thread, Prefect's `TerminationSignal` included, the whole
    process group is stopped before the exception goes on.
    """
    if "DVC_STAGE" in os.environ:
        raise StageFailed(f"inside the DVC stage {os.environ['DVC_STAGE']}: a stage must not start the pipeline")
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", stage],
        cwd=root, env=_environment(), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    last: deque[str] = deque(maxlen=LAST_LINES)
    reader = threading.Thread(target=_hand_on, args=(process, last, on_line), daemon=True)
    try:
        reader.start()
        code = process.wait()
        reader.join()
    except BaseException:
        _stop_group(process, reader, grace_s)
        raise
    if code != 0:
        raise StageFailed(f"dvc repro {stage} ended with code {code}:\n" + "\n".join(last))


def _environment() -> dict[str, str]:
    """Ours, with this interpreter first on the path (a stage's command starts with `python`) and unbuffered output."""
    here = str(Path(sys.executable).parent)
    return os.environ | {"PATH": here + os.pathsep + os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"}


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


def stages(root: Path) -> list[str]:
    """The stages of dvc.yaml at `root`, each after those it depends on."""
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    result = subprocess.run(command, cwd=root, env=_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        raise StageFailed(f"dvc dag failed: {result.stderr.strip()}")
    graph: dict[str, set[str]] = {}
    for line in result.stdout.splitlines():
        names = [part.strip().strip('"') for part in line.strip().removesuffix(";").split("->")]
        if line.strip().startswith('"'):
            graph.setdefault(names[-1], set()).update(names[:-1])
    return list(TopologicalSorter(graph).static_order())


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def repro(stage: str, root: Path) -> None:
    """One stage as a Prefect task; its lines are the task's logs. What is up to date is not run again: DVC knows."""
    logger = get_run_logger()
    run_dvc(stage, root, logger.info)
