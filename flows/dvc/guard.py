"""Runs dvc for a flow, and stops dvc and its stage if the flow's process is killed.

    python guard.py PARENT COMMAND...       leads a session; COMMAND runs in its process group

    output            COMMAND's output is passed on as it comes
    exit code         COMMAND's, or 128 + N if signal N ended it; the guard exits once the last
                      process of the group has closed its output
    SIGTERM           ends the other processes of the group; the guard waits until they have ended
    PARENT ended      SIGTERM to the group (a trainer writes a checkpoint), SIGKILL after 25 s

PARENT is the process id of the flow. Without the guard, SIGKILL of worker and flow would leave a
trainer on the GPU, and the next run would start a second one beside it. The guard is started by its
path and imports only the standard library, so that it starts without delay.
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
    """Run the command and return its exit code.

    Does not return if the process group had to be killed: the guard belongs to it.
    """
    # A handler that does nothing, because the command would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_hand_on, args=(process.stdout.fileno(),), daemon=True)
    reader.start()
    while reader.is_alive():
        reader.join(POLL_S)
        if os.getppid() != parent:  # the flow's process has ended
            _end_group(reader)
            break
    # After the reader: the group's last process may outlive the command itself, as a trainer below
    # a shell does.
    code = process.wait()
    return code if code >= 0 else 128 - code


def _hand_on(source: int) -> None:
    """Copy `source` to stdout until the last writer has closed it.

    Continues if the parent no longer reads: a broken pipe would end a trainer without a checkpoint.
    """
    while data := os.read(source, 65536):
        with suppress(OSError):
            while data:
                # A write to a pipe may take a part of the data only.
                data = data[os.write(1, data) :]


def _end_group(reader: threading.Thread) -> None:
    # 0 is the guard's own group: COMMAND and all that it started, unless they left the group.
    os.killpg(0, signal.SIGTERM)
    reader.join(GRACE_S)
    if reader.is_alive():
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
