"""Processes by /proc: what another started, and what works in a folder."""

from contextlib import suppress
from pathlib import Path


def children() -> dict[int, list[int]]:
    """{process: those it started}, by /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parents.setdefault(
                int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []
            ).append(int(entry.name))
    return parents


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents = children()
    found, todo = [], [pid]
    while todo:
        started = parents.get(todo.pop(), [])
        found += started
        todo += started
    return found


def working_in(folder: Path) -> list[str]:
    """Command lines of the processes whose working directory is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_text().replace("\0", " ").strip()  # empty: a zombie
            if line and (entry / "cwd").resolve() == folder.resolve():
                found.append(line)
    return found
