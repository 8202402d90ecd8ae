"""Stage index: the lists that degrade works on, and what is said about the photographs that are in
none.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gdpo.data.sources import part_of
from gdpo.hooks import Hooks, Stopped
from gdpo.images import write_png
from tasks.stages import index
from tests.tasks.photos import config, files, photo, write

PARTS = ["00", "01", "02"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, 12)


def _lists(root: Path) -> dict[str, list[str]]:
    return {
        path.stem: pq.read_table(path)["name"].to_pylist()
        for path in sorted((root / "data/photos").iterdir())
    }


def test_every_photograph_is_in_one_list(root: Path) -> None:
    index.run(config(parts=PARTS), root, Hooks())
    lists = _lists(root)
    assert list(lists) == [*PARTS, "evaluation"] and lists["evaluation"] == ["c"]
    names = [f"p{i:02d}" for i in range(12)]
    assert sorted(lists["00"] + lists["01"] + lists["02"]) == names
    assert all(
        lists[part] == [name for name in names if part_of(name, PARTS) == part] for part in PARTS
    )
    report = json.loads((root / "reports/photographs/report.json").read_text())
    assert report["train"]["photographs"] == {"used": 12} and report["train"]["sources"] == {
        "photos/train": 12
    }
    assert report["train"]["parts"] == {part: len(lists[part]) for part in PARTS}
    row = pq.read_table(root / "data/photos/evaluation.parquet").to_pylist()[0]
    assert (row["source"], row["file"], row["height"], row["width"]) == (
        "photos/held",
        "c.png",
        72,
        72,
    )


def test_new_photographs_move_none_of_the_others(root: Path) -> None:
    """One list grows; the bytes of the others stay, so DVC reruns one part."""
    index.run(config(parts=PARTS), root, Hooks())
    before = files(root / "data/photos")
    write_png(root / "photos/train/added.png", photo(99))
    index.run(config(parts=PARTS), root, Hooks())
    after = files(root / "data/photos")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{part_of('added', PARTS)}.parquet"}


def test_a_part_may_be_empty(root: Path) -> None:
    index.run(config(parts=[f"{i:02d}" for i in range(40)]), root, Hooks())
    assert min(map(len, _lists(root).values())) == 0


def test_bad_photographs_are_reported_or_stop_the_stage(root: Path) -> None:
    """Below the allowed share they are listed; above it the stage fails and leaves nothing."""
    (root / "photos/train/bad.jpg").write_bytes(b"half a photograph")
    write_png(root / "photos/train/twin.png", photo(0))
    with pytest.raises(ValueError, match=r"bad\.jpg.*degrade\.max_failures"):
        index.run(config(), root, Hooks())
    assert sorted(path.name for path in root.iterdir()) == ["photos"]
    index.run(config(max_failures=0.3), root, Hooks())
    report = json.loads((root / "reports/photographs/report.json").read_text())["train"]
    assert report["photographs"] == {"used": 12, "duplicate": 1, "unreadable": 1}
    assert [row["name"] for row in report["skipped"]] == ["bad", "twin"]


def test_the_same_folder_for_both_is_refused(root: Path) -> None:
    """No model is evaluated on what it was trained on."""
    with pytest.raises(ValueError, match="no photograph in common"):
        index.run(config(evaluation=[{"path": "photos/train"}]), root, Hooks())
    write_png(root / "photos/held/copy.png", photo(1))
    with pytest.raises(ValueError, match=r"p01\.png: is the evaluation photograph .*copy\.png"):
        index.run(config(), root, Hooks())


def test_nothing_usable_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match=r"c\.png: 72x72 pixels, a patch needs 96x96"):
        index.run(config(evaluation_crop=96), root, Hooks())
    with pytest.raises(
        ValueError, match=r"degrade\.evaluation: none of 1 photographs can be used; .*72x72"
    ):
        index.run(config(evaluation_crop=96, max_failures=1.0), root, Hooks())


def test_stopping_keeps_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "AHEAD", 4)
    index.run(config(), root, Hooks())
    before = files(root)
    calls: list[int] = []
    with pytest.raises(Stopped):
        index.run(
            config(parts=PARTS),
            root,
            Hooks(should_stop=lambda: calls.append(1) is None and len(calls) > 3),
        )
    assert files(root) == before


@pytest.mark.parametrize("readers", [1, 3])
def test_the_number_of_readers_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    index.run(config(), root, Hooks())
    before = files(root)
    monkeypatch.setattr(index, "READERS", readers)
    index.run(config(), root, Hooks())
    assert files(root) == before
