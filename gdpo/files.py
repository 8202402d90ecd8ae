"""Atomic writes, hashes, and where the files that ship with the package are.

A file or folder is written aside, then renamed; it is complete or absent.
"""

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Windows has none; there, what a killed writer left stays.
_FCNTL: Any = importlib.util.find_spec("fcntl") and importlib.import_module("fcntl")
_PACKAGED = Path(__file__).resolve().parent / "shipped"  # in a wheel; setup.py writes it

FULL = 1 << 20  # bytes; with less left a failed write is one of a full disk


def shipped(name: str) -> Path:
    """A file or folder that ships, by its name in the repository: `assets/tiny-sd/niqe.mat`.

    It lies in the repository, or inside the package after the installation of a wheel.
    """
    return (_PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parents[1]) / name


def here_or_shipped(root: Path, name: str) -> Path:
    """`root / name` if there is such a file or folder, else the one that ships under that name.

    `root / name` if neither exists, for the message that names it.
    """
    own, ours = root / name, shipped(name)
    return ours if not own.exists() and ours.exists() else own


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` (file or folder) that replaces `target` on success.

    The files get the mode that the umask gives to new files, whichever library wrote them:
    safetensors makes files that only their owner can read, whatever the umask is.

    If the body raises, the temporary path is deleted and `target` is unchanged. A full disk is an
    OSError naming `target`, whatever the library that wrote makes of it. After a SIGKILL the
    temporary path remains, in a folder with a leading dot, until the next writer of the same target
    deletes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_left_behind(target.parent, target.name)
    scratch, lock = _scratch(target)
    try:
        part = scratch / target.name
        yield part
        _open_to_umask(part, scratch / "mode")
        if part.is_file():
            with part.open("rb") as file:
                # Some file systems write the rename before the content: after a power cut an empty
                # file would be in the place of the old one.
                os.fsync(file.fileno())
        # os.replace cannot overwrite a folder that is not empty.
        if target.is_dir() and not target.is_symlink():
            os.replace(target, scratch / f"{target.name}.old")
        os.replace(part, target)
    except Exception as error:
        if _is_of_full_disk(error, scratch):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_writable(target: Path) -> None:
    """Check before the work that a file or folder can be written at `target`.

    Errors: ValueError naming `target` and the folder in which it cannot be created.
    """
    above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{target}: {above} is not a folder that can be written to")


def _is_of_full_disk(error: Exception, scratch: Path) -> bool:
    """Whether a writer failed because the disk is full, or the quota used up.

    torch's error names a position in the file and not the disk, so the free space is measured.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(scratch).free < FULL


def _open_to_umask(part: Path, sample: Path) -> None:
    """Give every file of `part` the mode of a new file, which `sample` becomes.

    Python can read the umask only by setting it, which other threads would notice.
    """
    sample.touch()
    mode = stat.S_IMODE(sample.stat().st_mode)
    for path in [part, *part.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


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
    if _FCNTL is None:
        raise OSError("no locks on this system")
    path = scratch / f"{name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _FCNTL.flock(lock, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        # Another writer may have deleted the folder between open and flock.
        if not os.path.samestat(os.fstat(lock), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(lock)
        raise
    return lock


def clear_left_behind(folder: Path, name: str | None = None) -> None:
    """Delete the scratch folders in `folder` whose process has ended.

    name: only those of this file or folder.
    """
    target = re.escape(name) if name is not None else ".+"
    pattern = re.compile(rf"\.({target})\.\d+\.[a-z0-9_]{{8}}")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        try:
            lock = _locked(path, match[1])
        except OSError:  # in use, already deleted, or owned by another user
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
