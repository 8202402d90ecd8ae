"""A training stage as N processes of torchrun on this host (`pretrain.gpus`, `finetune.gpus`), or
on each of several hosts (`pretrain.nodes`, `finetune.nodes`).

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
    joined-0, joined-1...
              created when a rank is in the process group: before, it cannot read the stop request
    0, 1...   exit code and message of a failed or stopped rank; the stage prints the lowest rank's,
              once

On several hosts the same command is started on each, in the same working folder on a network file
system. Each is a stage with ranks of its own. Whichever is asked to stop first, all ranks agree on
the step. What names the hosts comes from the environment, as Slurm and Kubernetes set it:

    MASTER_ADDR, MASTER_PORT    the first host, and a port there (29500)
    NODE_RANK                   this host's place, from 0; else SLURM_NODEID (Slurm) or
                                JOB_COMPLETION_INDEX (an indexed Job of Kubernetes)
"""

import fcntl
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import paths
from tasks.run.exit_codes import STOPPED

if TYPE_CHECKING:
    from gdpo.train.world import World

FOLDER = "GDPO_RANKS"  # environment variable that names the temporary folder
TICK_S = 0.1
RANK_GRACE_S = 10.0  # for the ranks to write their checkpoint
PLACES = ("NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX")
PORT = "29500"
SEEN_S = 60.0  # network file systems show a new file late


@dataclass(frozen=True)
class Host:
    """This host among those of a training. address, port: the first host's."""

    nodes: int = 1
    place: int = 0
    address: str = ""
    port: str = PORT


def host(nodes: int, key: str) -> Host:
    """This host's part of a training on `nodes` hosts, from the environment.

    key: the parameter that states `nodes`. ValueError naming it and the variables if they do not
    tell.
    """
    if nodes == 1:
        return Host()
    address = os.environ.get("MASTER_ADDR", "")
    place = next((value for name in PLACES if (value := os.environ.get(name))), "")
    if not address or not place.isdecimal() or int(place) >= nodes:
        raise ValueError(
            f"{key} is {nodes}: start the command on each of the hosts, with MASTER_ADDR the first "
            f"host's address and NODE_RANK (or {' or '.join(PLACES[1:])}) its place from 0 to "
            f"{nodes - 1}; here they are {address or 'not set'} and {place or 'not set'}"
        )
    return Host(nodes, int(place), address, os.environ.get("MASTER_PORT", PORT))


def start(
    arguments: Sequence[str],
    count: int,
    should_stop: Callable[[], bool],
    host: Host = Host(),
) -> int:
    """Run `python -m tasks ARGUMENTS` as `count` ranks until they end; returns the exit code.

    host: this one, if there are others with as many ranks.
    should_stop: polled every `TICK_S` seconds; once true, the ranks write a checkpoint and stop. If
    they are not all in the process group yet, there is nothing to write, and they are ended.
    """
    options = [*rendezvous(count, host), "-m", "tasks"]
    ranks = range(host.place * count, (host.place + 1) * count)
    ended_early = False
    with tempfile.TemporaryDirectory(prefix="gdpo-ranks-") as name:
        folder = Path(name)
        # torchrun's default is one thread per rank; a stage on the CPU would leave most cores idle.
        threads = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, FOLDER: name}
        with (folder / "lock").open("w") as lock:
            # Before torchrun starts: a rank that found the lock free would end at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.run.torchrun", *options, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            while process.poll() is None:
                # Touched again in each round: that is harmless, and needs no state here.
                if should_stop():
                    (folder / "stop").touch()
                    # A rank that has not joined blocks in the rendezvous and reads no stop request.
                    if not all((folder / f"joined-{rank}").exists() for rank in ranks):
                        ended_early = True
                        _end(process)
                time.sleep(TICK_S)
        # The lowest rank's report: torchrun ends the others, whose reports say no more.
        for rank in ranks:
            if (folder / str(rank)).exists():
                code, text = json.loads((folder / str(rank)).read_text())
                sys.stderr.write(text)
                return int(code)
    if ended_early:
        sys.stderr.write(
            f"gdpo-sr: {arguments[0]}: stopped before all {count} processes had joined; "
            "no step was lost, and the same command starts again\n"
        )
        return STOPPED
    if process.returncode != 0:
        sys.stderr.write(
            f"gdpo-sr: {arguments[0]}: one of its {count} processes ended with code "
            f"{process.returncode}, see its "
            "output above; the same command resumes from the last checkpoint\n"
        )
        return 1
    return 0


def rendezvous(count: int, host: Host) -> list[str]:
    """torchrun's options for `count` ranks on this host.

    The address is stated, because torchrun would give the ranks the host's own name, which need not
    resolve.
    """
    if host.nodes > 1:
        places = ["--nnodes", str(host.nodes), "--node-rank", str(host.place)]
        first = ["--master-addr", host.address, "--master-port", host.port]
        return [*places, *first, "--nproc-per-node", str(count)]
    return ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its ranks; if it does not, they notice that the stage has ended."""
    process.terminate()
    try:
        process.wait(RANK_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    # Before joining: joining blocks until all ranks are there, and the stage may end meanwhile.
    threading.Thread(target=_end_with_the_stage, args=(folder / "lock",), daemon=True).start()
    with joined() as world:
        (folder / f"joined-{os.environ['RANK']}").touch()
        if world.size > int(os.environ["LOCAL_WORLD_SIZE"]):
            _share_the_folder(world)
        yield lambda: should_stop() or (folder / "stop").exists()


def _share_the_folder(world: "World") -> None:
    """ValueError on all ranks unless all hosts see the first one's working folder.

    Rank 0 alone writes checkpoints and outputs, and every rank reads them.
    """
    work = Path(paths.WORK)

    def mark() -> str:
        work.mkdir(exist_ok=True)
        file, name = tempfile.mkstemp(prefix=".hosts-", dir=work)
        os.close(file)
        return Path(name).name

    # A new name each time: a file that an earlier start left behind would prove nothing.
    name = world.from_main(mark)
    # Polled: NFS clients cache the listing of a folder for up to a minute.
    try:
        with world.collective():
            end = time.monotonic() + SEEN_S
            while not (work / name).exists():
                if time.monotonic() > end:
                    raise ValueError(
                        f"{platform.node()}: {Path.cwd()} is not the folder of the first host; the "
                        "hosts of a training must share it"
                    )
                time.sleep(TICK_S)
    finally:
        if world.is_main:
            (work / name).unlink()


def _end_with_the_stage(lock: Path) -> None:
    """Kill this process as soon as the stage releases its lock, that is, when the stage ends."""
    with suppress(OSError), lock.open() as file:
        # Waits here for the whole life of the stage. The kernel frees the lock when the stage ends,
        # also after SIGKILL; a pipe or a parent's id would not reach through torchrun's sessions.
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

    # torchrun's report of a failure is pages long; the rank has written its own line.
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
