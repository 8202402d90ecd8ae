"""Stands between a flow's process and dvc, so that dvc and its stage do not outlive a flow that was
killed.

    python guard.py PARENT COMMAND...       the leader of a session; COMMAND runs in its group

    lines             handed on as they come
    exit code         the command's, 128 + N if signal N ended it, once the last process of the
                      group has closed its output
    SIGTERM           is for the others of the group: this one stays until they are gone
    PARENT is gone    SIGTERM to the group (a trainer checkpoints), SIGKILL after 25 s

PARENT is the process id of the flow. Without a guard, SIGKILL of worker and flow leaves a trainer
on the GPU, and a second one beside it after the next run. Started by its path, with nothing but the
standard library: it is there at once.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

POLL_S = 1.0
GRACE_S = 25.0


def main(parent: int, command: list[str]) -> int:
    """Run the command and return its exit code; does not return where the group had to be
    killed.
    """
    # A function and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_hand_on, args=(process.stdout.fileno(),), daemon=True)
    reader.start()
    while reader.is_alive():
        reader.join(POLL_S)
        if os.getppid() != parent:
            _end_group(reader)
            break
    code = process.wait()
    return code if code >= 0 else 128 - code


def _hand_on(source: int) -> None:
    """Until nobody writes any more, whether the parent reads or not: a trainer's broken pipe would
    cost its checkpoint.
    """
    while data := os.read(source, 65536):
        with suppress(OSError):
            while data:
                data = data[os.write(1, data) :]


def _end_group(reader: threading.Thread) -> None:
    os.killpg(0, signal.SIGTERM)
    reader.join(GRACE_S)
    if reader.is_alive():
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
