"""A training stage as N processes of torchrun on this host (`pretrain.gpus`, `finetune.gpus`).

    python -m tasks pretrain                      the stage: starts torchrun, hands on the wish to
                                                  stop, says how it ended
      python -m tasks.run.torchrun ... -m tasks pretrain      torchrun, in a session of its own: no
                                                              signal to the stage or its
        N x python -m tasks pretrain                      group can end it before the ranks have a
                                                          checkpoint

What passes between the stage and the ranks lies in a temporary folder that the environment names:

    stop      there as soon as the stage was asked to stop; the ranks agree on the step after which
              they do
    lock      locked by the stage as long as it lives: a rank that gets it ends at once (torchrun
              puts its ranks into sessions of their own, out of the reach of a SIGKILL to the
              stage's group)
    0, 1...   exit code and line of a rank that did not finish; the stage says the first one's, once
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "GDPO_RANKS"
TICK_S = 0.1
STOPPED = 143


def start(arguments: Sequence[str], count: int, should_stop: Callable[[], bool]) -> int:
    """Run `python -m tasks ARGUMENTS` as `count` ranks to the end; returns the exit code."""
    options = ["--standalone", "--nproc-per-node", str(count), "-m", "tasks"]
    with tempfile.TemporaryDirectory(prefix="gdpo-ranks-") as name:
        folder = Path(name)
        threads = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, FOLDER: name}
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.run.torchrun", *options, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            while process.poll() is None:
                if should_stop():
                    (folder / "stop").touch()
                time.sleep(TICK_S)
        for rank in range(count):
            if (folder / str(rank)).exists():
                code, text = json.loads((folder / str(rank)).read_text())
                sys.stderr.write(text)
                return int(code)
    if process.returncode != 0:
        sys.stderr.write(
            f"gdpo-sr: {arguments[0]}: one of its {count} processes ended with code "
            f"{process.returncode}, its last words are "
            "above; the same command resumes from the last checkpoint\n"
        )
        return 1
    return 0


def is_rank() -> bool:
    """Whether this process is one of those that `start` started."""
    return FOLDER in os.environ


@contextmanager
def rank(should_stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Be a rank: joined with the others, and gone with the stage. Yields `should_stop`, which now
    knows the stage's wish.
    """
    from gdpo.train.world import joined

    folder = Path(os.environ[FOLDER])
    threading.Thread(target=_end_with_the_stage, args=(folder / "lock",), daemon=True).start()
    with joined():
        yield lambda: should_stop() or (folder / "stop").exists()


def _end_with_the_stage(lock: Path) -> None:
    with suppress(OSError), lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    os.kill(os.getpid(), signal.SIGKILL)


def ended(code: int, line: str) -> int:
    """Say why the command ends with `code`, and return that; a rank leaves both to the stage.

    A rank that stopped as all have agreed ends with 0: torchrun would terminate the others, who may
    still be at it.
    """
    text = f"gdpo-sr: {line}\n"
    if not is_rank():
        sys.stderr.write(text)
        return code
    Path(os.environ[FOLDER], os.environ["RANK"]).write_text(json.dumps([code, text]))
    return 0 if code == STOPPED else code


def main(arguments: Sequence[str]) -> int:
    """torchrun itself, without its report on a rank that failed; returns the exit code of the first
    that did.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()
    try:
        run.main(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
