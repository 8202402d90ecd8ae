"""Items of a stopped run: used for equal inputs, set aside for others, never lost."""

import json
import logging
import os
from pathlib import Path

import pytest

from gdpo.items import ItemStore, differences


def inputs(**values: object) -> str:
    return json.dumps({"code": "a" * 64, "lr": 0.1, **values}, sort_keys=True)


def store(folder: Path, text: str) -> ItemStore:
    opened = ItemStore(folder, text, "*.txt")
    opened.open()
    return opened


def write(items: ItemStore, name: str, text: str) -> None:
    with items.write(name) as part:
        part.write_text(text)


def test_items_of_equal_inputs_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(store(tmp_path / "kept", inputs()), "0.txt", "zero")
    assert store(tmp_path / "kept", inputs()).path("0.txt").read_text() == "zero"
    assert not caplog.records


def test_items_of_other_inputs_are_set_aside_and_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    write(store(tmp_path, inputs()), "0.txt", "zero")
    with caplog.at_level(logging.WARNING):
        other = store(tmp_path, inputs(code="b" * 64, lr=0.2, steps=3))
    assert not other.path("0.txt").exists() and (tmp_path / "metrics.jsonl").exists()
    (record,) = caplog.records
    said = record.getMessage()
    assert "other code, other lr (0.1, now 0.2), other steps (null, now 3); " in said
    assert "\n" not in said
    (unused,) = tmp_path.glob("unused-*")
    assert unused.name in said and (unused / "0.txt").read_text() == "zero"

    write(other, "0.txt", "another zero")
    assert store(tmp_path, inputs()).path("0.txt").read_text() == "zero"
    assert not unused.exists()


@pytest.mark.parametrize("moved", ["0.txt", "1.txt"])
def test_a_kill_between_two_moves_loses_nothing(tmp_path: Path, moved: str) -> None:
    for name, present in (("same", inputs()), ("other", inputs(lr=0.2))):
        folder = tmp_path / name
        first = store(folder, inputs())
        for item in ("0.txt", "1.txt"):
            write(first, item, item)
        first.set_aside("stopped here", inputs())
        (unused,) = folder.glob("unused-*")
        os.replace(unused / moved, folder / moved)  # as if it had not been reached
        store(folder, present)
        assert store(folder, inputs()).path("0.txt").read_text() == "0.txt"
        assert (folder / "1.txt").read_text() == "1.txt"


def test_items_of_unknown_inputs_are_never_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.txt").write_text("whose?")
    assert not store(tmp_path, inputs()).path("0.txt").exists()
    assert "unknown inputs" in caplog.text
    assert (tmp_path / "unused-unknown/0.txt").read_text() == "whose?"


def test_removing_leaves_what_is_not_of_these_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    write(store(folder, inputs()), "0.txt", "zero")
    items = store(folder, inputs(lr=0.2))
    write(items, "1.txt", "one")
    items.remove()
    assert [path.name[:7] for path in folder.iterdir()] == ["unused-"]
    other = store(tmp_path / "other", inputs())
    write(other, "0.txt", "zero")
    other.remove()
    assert not (tmp_path / "other").exists()


def test_many_differences_are_counted() -> None:
    before, now = (json.dumps({f"key{i}": i + shift for i in range(9)}) for shift in (0, 1))
    text = differences(before, now)
    assert text.startswith("other key0 (0, now 1), ") and text.endswith(" and 3 more")
    assert differences("one run", "another run") == "other inputs"


def test_a_kill_after_an_item_leaves_no_folder_for_ever(tmp_path: Path) -> None:
    """The process ended between the rename and the deletion of its scratch folder."""
    kept = store(tmp_path / "kept", inputs())
    write(kept, "0.txt", "zero")
    (tmp_path / "kept" / ".0.txt.12345.abcdefgh").mkdir()
    kept.remove()
    assert not (tmp_path / "kept").exists()
