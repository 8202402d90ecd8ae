"""A training stage as N processes of torchrun on this host (`pretrain.gpus`, `finetune.gpus`).

    python -m tasks pretrain                                the stage: starts torchrun, forwards the
                                                            stop request, reports how the ranks
                                                            ended
      python -m tasks.run.torchrun ... -m tasks pretrain    torchrun
        N x python -m tasks pretrain                        the ranks

torchrun runs in its own session, so that a signal to the stage or its process group cannot end it
before the ranks have written a checkpoint. The stage and the ranks communicate through a temporary
folder, named by an environment variable:

    stop      created when the stage is asked to stop; the ranks agree on the step after which they
              stop
    lock      locked by the stage while it runs. A rank that acquires the lock kills itself at once:
              torchrun puts its ranks into sessions of their own, which a SIGKILL to the stage's
              process group does not reach
    0, 1...   exit code and message of a failed or stopped rank; the stage prints the lowest rank's,
              once
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

FOLDER = "GDPO_RANKS"  # environment variable that names the temporary folder
TICK_S = 0.1
STOPPED = 143  # exit code of a stage that stopped on request


def start(arguments: Sequence[str], count: int, should_stop: Callable[[], bool]) -> int:
    """Run `python -m tasks ARGUMENTS` as `count` ranks until they end; returns the exit code.

    should_stop: polled every `TICK_S` seconds; once true, the ranks write a checkpoint and stop.
    """
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
    """Whether `start` launched this process."""
    return FOLDER in os.environ


@contextmanager
def rank(should_stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Join the process group, and end with the stage. Yields `should_stop`, extended by the stage's
    stop request.
    """
    from gdpo.train.world import joined

    folder = Path(os.environ[FOLDER])
    threading.Thread(target=_end_with_the_stage, args=(folder / "lock",), daemon=True).start()
    with joined():
        yield lambda: should_stop() or (folder / "stop").exists()


def _end_with_the_stage(lock: Path) -> None:
    """Kill this process as soon as the stage releases its lock, that is, when the stage ends."""
    with suppress(OSError), lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    os.kill(os.getpid(), signal.SIGKILL)


def ended(code: int, line: str) -> int:
    """Report why the command ends with `code`; returns the exit code. A rank leaves both to the
    stage.

    A rank that stopped on request returns 0: for any other code torchrun would terminate the
    remaining ranks, which may still be finishing.
    """
    text = f"gdpo-sr: {line}\n"
    if not is_rank():
        sys.stderr.write(text)
        return code
    Path(os.environ[FOLDER], os.environ["RANK"]).write_text(json.dumps([code, text]))
    return 0 if code == STOPPED else code


def main(arguments: Sequence[str]) -> int:
    """Run torchrun without its own failure report; returns the exit code of the first rank that
    failed.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()
    try:
        run.main(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A negative code is the signal that killed the rank; shells report 128 + signal.
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
