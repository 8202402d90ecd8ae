"""Atomic writes: a file or folder is written aside, then renamed; it is complete or absent."""

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
    """A temporary path beside `target` (file or folder) that replaces `target` on success.

    If the body raises, the temporary path is deleted and `target` is unchanged. After a SIGKILL the
    temporary path remains, in a folder with a leading dot, until the next writer of the same target
    deletes it.
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
        # os.replace cannot overwrite a folder that is not empty.
        if target.is_dir() and not target.is_symlink():
            os.replace(target, scratch / f"{target.name}.old")
        os.replace(part, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _scratch(target: Path) -> tuple[Path, int | None]:
    """A new scratch folder beside `target` and its lock (None on a file system without locks)."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent))
        try:
            return scratch, _locked(scratch, target.name)
        except (BlockingIOError, FileNotFoundError):
            continue  # another writer saw the folder before it was locked and is deleting it
        except OSError:
            return scratch, None


def _locked(scratch: Path, name: str) -> int:
    """Lock a scratch folder until this process ends; returns the file descriptor of the lock.

    OSError if another process holds the lock or the folder is gone. A process id cannot replace the
    lock: the id of a killed writer is soon reused, and means nothing in another container.
    """
    path = scratch / f"{name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another writer may have deleted the folder between open and flock.
        if not os.path.samestat(os.fstat(lock), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(lock)
        raise
    return lock


def _clear_left_behind(target: Path) -> None:
    """Delete the scratch folders beside `target` whose process has ended."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"\d+\.[a-z0-9_]{8}")
    for path in target.parent.iterdir():
        if not pattern.fullmatch(path.name):
            continue
        try:
            lock = _locked(path, target.name)
        except OSError:  # in use, already deleted, or owned by another user
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
