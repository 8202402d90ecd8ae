"""The finished items of an interrupted run, kept for the next run with equal inputs.

    work/rollout/00/chunks/
      inputs.json              what the items depend on: settings, hashes of data, code, versions
      00000000.parquet ...     items, each written aside and renamed, so it is whole or absent
      unused-3f9a1c02/         items of other inputs, with their inputs.json

A run uses items of equal inputs only. It sets others aside, into a folder named by the hash of
their inputs, and a warning says which inputs differ. A later run with those inputs takes them back.
No run deletes items of other inputs.

Checkpoints (gdpo/train/loop.py), chunks of rollouts, scores of the selection and evaluated images
are items.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gdpo.files import clear_left_behind, written_aside

INPUTS = "inputs.json"
NAMED = 6  # at most this many differing inputs are named


class ItemStore:
    """The items in `folder` whose names match the glob `pattern`; other files are left alone.

    inputs: text that identifies everything the items depend on. If it is a JSON object, a warning
    about other inputs names its keys.
    """

    def __init__(self, folder: Path, inputs: str, pattern: str) -> None:
        self.folder, self.inputs, self._pattern = folder, inputs, pattern

    def open(self) -> None:
        """Set items of other inputs aside, and take items of these inputs back.

        A kill at any point loses nothing: the next call completes the moves.
        """
        # The items are moved before the new inputs are written. Killed in between, the next run
        # sees the old inputs again and moves the rest.
        mark = self.folder / INPUTS
        saved = mark.read_text(encoding="utf-8") if mark.is_file() else None
        if saved != self.inputs:
            if any(self._items()):
                self.set_aside(f"made with {differences(saved, self.inputs)}", saved)
            with written_aside(mark) as part:
                part.write_text(self.inputs, encoding="utf-8")
        self._take_back(self.folder / _unused(self.inputs))

    def path(self, name: str) -> Path:
        """The path of an item; it exists only if the item is finished."""
        return self.folder / name

    def write(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path, file or folder, that becomes the item on success."""
        return written_aside(self.folder / name)

    def set_aside(self, why: str, inputs: str | None, suffix: str = "") -> None:
        """Move all items into `unused-<hash of inputs><suffix>`; a warning gives the reason."""
        place = self.folder / f"{_unused(inputs)}{suffix}"
        place.mkdir(exist_ok=True)
        if inputs is not None:
            with written_aside(place / INPUTS) as part:
                part.write_text(inputs, encoding="utf-8")
        for item in list(self._items()):
            _delete(place / item.name)  # of equal inputs, so of equal content
            os.replace(item, place / item.name)
        logging.getLogger(__name__).warning(
            "%s: the results of a stopped run were %s; moved to %s, "
            "and this run starts from the beginning",
            self.folder,
            why,
            place.name,
        )

    def remove(self) -> None:
        """Delete the items of these inputs; the folder too unless something else is in it."""
        for item in [*self._items(), self.folder / INPUTS]:
            _delete(item)
        # A kill between the rename of an item and the end of its scratch folder leaves that folder,
        # and no other writer of this item comes to delete it.
        if self.folder.is_dir():
            clear_left_behind(self.folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _items(self) -> Iterator[Path]:
        return self.folder.glob(self._pattern)

    def _take_back(self, place: Path) -> None:
        for item in list(place.glob(self._pattern)):
            # An item that already exists was made by a run with equal inputs, so the two are
            # equal.
            if not (self.folder / item.name).exists():
                os.replace(item, self.folder / item.name)
        if place.is_dir() and not any(place.glob(self._pattern)):
            (place / INPUTS).unlink(missing_ok=True)
            place.rmdir()


def differences(saved: str | None, present: str) -> str:
    """What differs between two inputs, in words: names, with both values where they are short."""
    if saved is None:
        return f"unknown inputs (no {INPUTS})"
    try:
        before, now = json.loads(saved), json.loads(present)
    except ValueError:
        return "other inputs"
    if not isinstance(before, dict) or not isinstance(now, dict):
        return "other inputs"
    names = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    texts = [f"other {name}{_values(before.get(name), now.get(name))}" for name in names[:NAMED]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(texts) + more


def _values(before: Any, now: Any) -> str:
    """Both values, unless one is long, such as a hash."""
    short = [json.dumps(value) for value in (before, now)]
    return f" ({short[0]}, now {short[1]})" if max(map(len, short)) <= 40 else ""


def _delete(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


def _unused(inputs: str | None) -> str:
    if inputs is None:
        return "unused-unknown"
    return f"unused-{hashlib.sha256(inputs.encode()).hexdigest()[:8]}"
