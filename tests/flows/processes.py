"""Processes by /proc: what another started, and what works in a folder; ports, and polling."""

import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx


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


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(happens: Any, seconds: float, what: str) -> None:
    """Poll until `happens()`; TimeoutError naming what did not."""
    end = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):  # a busy server answers the next time
            if happens():
                return
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: nothing after {seconds:g} s")
        time.sleep(0.5)
