"""Copies of a training's checkpoint in a bucket, from which another host can resume.

    GDPO_CHECKPOINTS=s3://BUCKET/results/checkpoints    where; without it nothing is copied
    GDPO_CHECKPOINT_MINUTES=5                           the least time between two copies

    results/checkpoints/<SHA-256 of the inputs>/<steps>.pt

A thread uploads the latest checkpoint in work/; on a stop request it does so at once. Uploading
never delays a step: checkpoints that are written during an upload replace each other, so only the
latest is uploaded next. A failed upload is reported in one line and tried again. An older copy is
deleted after a newer one is complete.

At its start a training fetches the copy with the most steps, if that has more than the checkpoint
in work/. Every copy is checked against its SHA-256 and against the expected inputs and steps.

    python -m tasks.run.copies work/finetune/gdpo       deletes the copies of a training whose
                                                        outputs are pushed; the flows do it too
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from gdpo.errors import one_line
from gdpo.files import written_aside

URL = "GDPO_CHECKPOINTS"
MINUTES = "GDPO_CHECKPOINT_MINUTES"
DEFAULT_MINUTES = 5.0
# Prefect ends a cancelled run after 30 s; the checkpoint itself takes some of them.
LAST_COPY_S = 15.0
THREAD = "copies of checkpoints"
NOTE = "copies.json"  # in the stage's work folder: where the copies lie


class Copies:
    """`saved` and `fetch` for gdpo.hooks.Hooks. work: the stage's folder below work/."""

    def __init__(self, url: str, every_s: float, work: Path) -> None:
        from tasks.store.s3 import Store  # boto3 comes with an extra

        self.store, self.url, self.every_s, self.work = Store.at(url), url, every_s, work
        self._changed = threading.Condition()
        # Under `_changed`: the newest checkpoint that is not copied yet, as an open file.
        self._waiting: tuple[str, int, BinaryIO] | None = None
        self._next = 0.0
        self._last = False  # set by `close`: the thread ends after the checkpoint that waits
        # A daemon: an upload that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._copy_all, name=THREAD, daemon=True)

    def fetch(self, fingerprint: str, steps: int, path: Path) -> None:
        """Replace the checkpoint at `path` by the copy with the most steps, up to `steps`, if that
        has more than the checkpoint.

        If the store does not answer or a copy is damaged, one line says so and the training starts
        without it.
        """
        local_steps = _steps_of(path)
        try:
            self._note(fingerprint)
            newest_first = sorted(self._copies(fingerprint), reverse=True)
        # Any error: a training must not depend on its copies.
        except Exception as error:
            _say(f"the bucket was not searched for a copy of the checkpoint ({one_line(error)})")
            return
        for step, key in newest_first:
            # A copy beyond `steps` is of a longer training with equal inputs; `Loop.resume` refuses
            # a checkpoint beyond its last step.
            if not local_steps < step <= steps:
                continue
            try:
                with written_aside(path) as part:
                    self.store.download(key, part)
                    _check(part, fingerprint, step)
            except Exception as error:
                _say(f"the copy {self.store.url(key)} cannot be used ({one_line(error)})")
                continue
            _say(f"going on from step {step} in {self.store.url(key)}")
            return

    def saved(self, fingerprint: str, step: int, path: Path) -> None:
        """Copy the checkpoint at `path` when its turn comes. Returns at once."""
        # The open file keeps its content when the next checkpoint is renamed over its path.
        file = path.open("rb")
        with self._changed:
            if self._waiting is not None:
                self._waiting[2].close()
            self._waiting = (fingerprint, step, file)
            self._changed.notify()
        # With the first checkpoint and not before: a run that only fetches needs no thread.
        if not self._thread.is_alive() and not self._last:
            self._thread.start()

    def close(self, *, copy: bool) -> None:
        """Stop copying. copy: first the checkpoint that waits, for at most LAST_COPY_S."""
        with self._changed:
            if not copy and self._waiting is not None:
                self._waiting[2].close()
                self._waiting = None
            self._last = True
            self._changed.notify()
        if copy and self._thread.is_alive():
            self._thread.join(LAST_COPY_S)
            if self._thread.is_alive():
                _say(f"the last checkpoint was not copied to {self.url} in {LAST_COPY_S:g} s")

    def _copy_all(self) -> None:
        while (taken := self._take()) is not None:
            fingerprint, step, file = taken
            try:
                self._copy(fingerprint, step, file)
            except Exception as error:
                _say(f"the checkpoint of step {step} was not copied ({one_line(error)})")
                self._put_back(taken)
            else:
                file.close()

    def _take(self) -> tuple[str, int, BinaryIO] | None:
        """The checkpoint that waits, when its turn comes; None at the end."""
        with self._changed:
            while not self._last and (pause := self._pause()) != 0:
                self._changed.wait(pause)
            # Taken out of `_waiting`: the upload runs without the lock, and `saved` can store the
            # next checkpoint there meanwhile.
            taken, self._waiting = self._waiting, None
            self._next = time.monotonic() + self.every_s
            return taken

    def _pause(self) -> float | None:
        """Seconds until the next copy; None while no checkpoint waits."""
        return None if self._waiting is None else max(0.0, self._next - time.monotonic())

    def _put_back(self, taken: tuple[str, int, BinaryIO]) -> None:
        """Upload it at the next turn, unless there is a newer checkpoint or `close` was called."""
        with self._changed:
            if self._waiting is None and not self._last:
                self._waiting = taken
                return
        taken[2].close()

    def _copy(self, fingerprint: str, step: int, file: BinaryIO) -> None:
        # boto3 takes a path. The checkpoint's own path may lead to a newer checkpoint by now, so
        # this is the path of the open file (Linux).
        content = Path(f"/proc/self/fd/{file.fileno()}")
        self.store.write(f"{_place(fingerprint)}{step:08d}.pt", content, threads=False)
        # After the upload: until then the older copy is the only complete one.
        for older, key in list(self._copies(fingerprint)):
            if older < step:
                self.store.delete(key)

    def _copies(self, fingerprint: str) -> Iterator[tuple[int, str]]:
        """(steps, key) of every copy."""
        place = _place(fingerprint)
        for key in self.store.keys(place):
            name = key.removeprefix(place).removesuffix(".pt")
            if name.isdecimal():
                yield int(name), key

    def _note(self, fingerprint: str) -> None:
        with written_aside(self.work / NOTE) as part:
            part.write_text(json.dumps({"store": self.url, "place": _place(fingerprint)}))


@contextmanager
def copies(work: Path) -> Iterator[dict[str, Any]]:
    """The callbacks of gdpo.hooks.Hooks that copy checkpoints, as GDPO_CHECKPOINTS says; {} without
    it.

    Errors: ValueError naming the variable or the URL.
    """
    url = os.environ.get(URL)
    if not url:
        yield {}
        return
    running = Copies(url, 60.0 * _minutes(), work)
    # A finished training needs no copy; one that stopped or failed resumes from its last.
    finished = False
    try:
        yield {"saved": running.saved, "fetch": running.fetch}
        finished = True
    finally:
        running.close(copy=not finished)


def forget(work: Path) -> None:
    """Delete the copies of the training whose folder is `work`; nothing happens if it has none.

    Errors: those of tasks.store.s3, such as a PermissionError naming the URL.
    """
    from tasks.store.s3 import Store

    note = work / NOTE
    if not note.is_file():
        return
    noted = json.loads(note.read_text())
    store = Store.at(noted["store"])
    for key in list(store.keys(noted["place"])):
        store.delete(key)
    note.unlink()


def _minutes() -> float:
    text = os.environ.get(MINUTES, str(DEFAULT_MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise ValueError(f"{MINUTES}: must be a number of minutes, got {text}")
    return minutes


def _place(fingerprint: str) -> str:
    return f"{hashlib.sha256(fingerprint.encode()).hexdigest()}/"


def _steps_of(path: Path) -> int:
    """The steps of the checkpoint at `path`; 0 if there is none that can be read."""
    try:
        return int(_load(path)["step"])
    except Exception:  # torch has many; the loop says what is wrong with the file
        return 0


def _check(path: Path, fingerprint: str, step: int) -> None:
    saved = _load(path)
    if (saved["fingerprint"], saved["step"]) != (fingerprint, step):
        raise ValueError("it is of another run or step")


def _load(path: Path) -> dict[str, Any]:
    import torch

    # Memory-mapped: only the fingerprint and the step are needed, so no tensor is read.
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return loaded


def _say(text: str) -> None:
    tqdm.write(f"gdpo-sr: {text}", file=sys.stderr)  # keeps a progress bar intact


if __name__ == "__main__":
    forget(Path(sys.argv[1]))
