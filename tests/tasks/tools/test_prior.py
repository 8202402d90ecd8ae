"""The tool `prior`: how photographs are split. (Its parts are tested in
tests/gdpo/prior/test_train.py.)
"""

from pathlib import Path

import pytest

from tasks.tools import prior


def photos(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_every_photograph_is_in_one_part_and_every_folder_in_every_part(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.png" for folder in ("a", "b") for i in range(14)]
    photos(tmp_path, [*names, "a/notes.txt", "c/x.JPG", "c/y.webp", "c/z.jpeg"])
    parts = prior.split(tmp_path)
    everything = [
        path.relative_to(tmp_path).as_posix() for paths in parts.values() for path in paths
    ]
    assert sorted(everything) == sorted([*names, "c/x.JPG", "c/y.webp", "c/z.jpeg"])
    counts = {
        name: [sum(path.parent.name == folder for path in paths) for folder in "abc"]
        for name, paths in parts.items()
    }
    assert counts == {"train": [10, 10, 1], "choice": [2, 2, 1], "evidence": [2, 2, 1]}


def test_the_split_goes_by_name_and_not_by_place(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(14)]
    for place in ("here", "there"):
        photos(tmp_path / place, names)
    here, there = (prior.split(tmp_path / place) for place in ("here", "there"))
    for part in here:
        assert [path.name for path in here[part]] == [path.name for path in there[part]]
    assert [path.name for path in here["choice"]] != names[:2]


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name}: no photographs here"):
        prior.split(tmp_path)
