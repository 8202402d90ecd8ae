"""Runs jobs in single-threaded worker processes: `processes` at once on the CPU, or one per GPU.

A job's result does not depend on the number of concurrent jobs: each computes in a process with one
thread, and reads no file that another job writes meanwhile. A worker whose parent has ended, even
by SIGKILL, stops after its current step with a checkpoint: it detects a changed parent process id
or the end of its pipe.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from gdpo.errors import one_line
from tasks.run.imports import without_bitsandbytes

if TYPE_CHECKING:
    from tasks.ablate.runs import Job


def run_all(
    jobs: Sequence["Job"], root: Path, processes: int, done: Callable[["Job"], None]
) -> None:
    """Run the jobs whose outputs are missing, in order, `processes` at once. Calls `done` for every
    job, also for those with outputs.

    Errors: ValueError with one line if a job raised an error or a worker ended; the other workers
    are then terminated.
    """
    waiting = deque["Job"]()
    for job in jobs:
        if (root / job.output).exists():
            done(job)
        else:
            waiting.append(job)
    # A forked process would inherit torch's threads and CUDA's state, neither of which works there.
    context = multiprocessing.get_context("spawn")
    workers, busy = [], dict[Connection, "Job"]()
    try:
        for place in places(processes)[: len(waiting)]:
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=serve, args=(theirs, root, place, os.getpid()), daemon=True
            )
            worker.start()
            workers.append(worker)
            # Closed here, because the parent would otherwise hold the worker's end open too, and
            # `recv` would not fail when the worker ends.
            theirs.close()
            busy[ours] = waiting.popleft()
            ours.send(busy[ours])
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                _check(pipe)
                done(busy.pop(pipe))
                if waiting:
                    busy[pipe] = waiting.popleft()
                    pipe.send(busy[pipe])
    # SIGTERM ends a worker in the middle of a step; its job goes on from the last checkpoint.
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _check(pipe: Connection) -> None:
    """Receive a worker's answer; ValueError if its job failed or the worker ended."""
    try:
        problem = pipe.recv()
    except EOFError:
        raise ValueError(
            "a process of ablate ended early (out of memory?); the same command continues"
        ) from None
    if problem is not None:
        raise ValueError(problem)


def places(processes: int) -> list[str | None]:
    """One entry per worker: the GPU it uses, or None without GPUs."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Respect CUDA_VISIBLE_DEVICES, unless it is unset or lists invalid GPUs.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if count else []
    return (
        list(visible if len(visible) == count else map(str, range(count)))
        if count
        else [None] * processes
    )


def serve(pipe: Connection, root: Path, place: str | None, parent: int) -> None:
    """Worker loop: perform each job received through the pipe; answer None, or the error in one
    line.
    """
    # Ctrl-C reaches the whole process group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before torch is imported: CUDA reads the variable once.
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    without_bitsandbytes()
    import torch

    from gdpo.train.loop import Hooks, Stopped
    from tasks.ablate.runs import perform

    # One thread per worker, whatever their number: the order of sums, and with it the last bits,
    # depends on the number of threads.
    torch.set_num_threads(1)
    # An orphan gets another parent. No signal tells a process that its parent was killed.
    hooks = Hooks(should_stop=lambda: os.getppid() != parent)
    while True:
        try:
            job = pipe.recv()
            perform(job, root, hooks)
            answer = None
        except (EOFError, Stopped):
            return
        except (ValueError, OSError) as error:
            answer = one_line(error)
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
