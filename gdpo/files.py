"""Atomic writes: a file or folder appears whole, by renaming, or not at all."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` (file or folder) that replaces it on success and vanishes on
    failure.

    After a SIGKILL it stays, in a folder with a leading dot, until the next writer of the same
    target clears it away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_left_behind(target)
    scratch, lock = _scratch(target)
    try:
        part = scratch / target.name
        yield part
        if part.is_file():
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir() and not target.is_symlink():
            os.replace(target, scratch / f"{target.name}.old")
        os.replace(part, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _scratch(target: Path) -> tuple[Path, int | None]:
    """A new folder beside `target`, and the lock in it that says it is in use: None on a file
    system without locks.
    """
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent))
        try:
            return scratch, _locked(scratch, target.name)
        except (
            BlockingIOError,
            FileNotFoundError,
        ):  # another writer took it for left behind before it was locked
            continue
        except OSError:
            return scratch, None


def _locked(scratch: Path, name: str) -> int:
    """The lock of a scratch folder, which ends with this process. OSError if another has it, or the
    folder is gone.

    A process id would not do: that of a killed writer is soon another's, and means nothing in
    another container.
    """
    path = scratch / f"{name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(lock)
        raise
    return lock


def _clear_left_behind(target: Path) -> None:
    """Remove the scratch folders beside `target` whose process is gone."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"\d+\.[a-z0-9_]{8}")
    for path in target.parent.iterdir():
        if not pattern.fullmatch(path.name):
            continue
        try:
            lock = _locked(path, target.name)
        except OSError:  # in use, just gone, or somebody else's
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
