"""Real `python -m tasks ...` processes without paying for `import torch` in each: one process
imports, and forks the others.

forks.py    reads [environment, folder, argument, ...] as JSON per line; forks, runs the command
            line there with these variables besides its own; writes the process id, and its exit
            code when it ends (negative: the signal that killed it)
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from tasks.commands import STAGES

ROOT = Path(__file__).parents[2]


class Forks:
    """The test's side: `start` a command in a folder, `wait` for its exit code."""

    def __init__(self) -> None:
        # One thread: only the forking thread lives on in a child, and bytes are compared.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, folder: Path, *arguments: str, **environment: str) -> int:
        """The id of the new process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([environment, str(folder), *arguments]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """The exit code of the process started last."""
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def serve() -> None:
    # What the stages import, some of it late; pandas by way of pyarrow.
    modules = [stage.module for stage in STAGES.values()]
    for name in ("great_expectations", "pyarrow.dataset", *modules):
        importlib.import_module(name)
    for line in sys.stdin:
        environment, folder, *arguments = json.loads(line)
        process = os.fork()
        if process == 0:
            os.environ.update(environment)
            os.chdir(folder)
            sys.argv[1:] = arguments
            with Path("stderr.txt").open("a") as log:
                os.dup2(log.fileno(), 2)
            runpy.run_module("tasks", run_name="__main__", alter_sys=True)  # ends in sys.exit
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
