"""Jobs in processes of one thread each: two at once on two cores, one per GPU where there are GPUs.

A job's result does not depend on how many run beside it: each computes in a process that has one
thread, and reads nothing that another one writes at the same time. A worker whose parent is gone,
even by SIGKILL, stops after the step it is at, with a checkpoint: it sees that it has another
parent, or that its pipe has ended.
"""

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.ablate.runs import Job


def run_all(
    jobs: Sequence["Job"], root: Path, processes: int, done: Callable[["Job"], None]
) -> None:
    """Do the jobs whose outputs are not there, in order, `processes` at once; `done` after each,
    also those that were there.

    Errors: ValueError in one line, for what a job raised or for a process that ended; the others
    are then ended as well.
    """
    waiting = deque["Job"]()
    for job in jobs:
        if (root / job.output).exists():
            done(job)
        else:
            waiting.append(job)
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
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _check(pipe: Connection) -> None:
    """Take a worker's answer; ValueError for a job that failed, or a worker that is gone."""
    try:
        problem = pipe.recv()
    except EOFError:
        raise ValueError(
            "a process of ablate ended before its run was done (memory?); the same command goes on"
        ) from None
    if problem is not None:
        raise ValueError(problem)


def places(processes: int) -> list[str | None]:
    """One per worker: the GPU that it sees, or None without GPUs."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if count else []
    return (
        list(visible if len(visible) == count else map(str, range(count)))
        if count
        else [None] * processes
    )


def serve(pipe: Connection, root: Path, place: str | None, parent: int) -> None:
    """A worker: do what comes through the pipe; answer None, or the line of what went wrong."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group; the parent ends its workers
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # as tasks/__main__.py, before peft imports it
    import torch

    from gdpo.train.loop import Hooks, Stopped
    from tasks.ablate.runs import perform

    torch.set_num_threads(1)
    hooks = Hooks(should_stop=lambda: os.getppid() != parent)
    while True:
        try:
            job = pipe.recv()
            perform(job, root, hooks)
            answer = None
        except (EOFError, Stopped):
            return
        except (ValueError, OSError) as error:
            answer = " ".join(str(error).split())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
