"""The tool `prior`: how photographs are split. (Its parts are tested in
tests/gdpo/prior/test_train.py.)
"""

import argparse
from pathlib import Path

import cv2
import pytest

from tasks import __main__ as cli
from tasks.tools import prior, prior_command


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
    assert counts == {"train": [12, 12, 2], "choice": [2, 2, 1], "left_out": [0, 0, 0]}


def test_the_split_goes_by_name_and_not_by_place(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(14)]
    for place in ("here", "there"):
        photos(tmp_path / place, names)
    here, there = (prior.split(tmp_path / place) for place in ("here", "there"))
    for part in here:
        assert [path.name for path in here[part]] == [path.name for path in there[part]]
    assert [path.name for path in here["choice"]] != names[:2]


def test_a_picture_of_the_validation_photographs_is_trained_on_under_no_name(
    tmp_path: Path,
) -> None:
    shipped = sorted(Path("assets/photos/train").glob("*.webp"))[:4]
    (tmp_path / "photos").mkdir()
    (tmp_path / "apart").mkdir()
    for path in shipped:
        (tmp_path / "photos" / path.name).symlink_to(path.resolve())
    (tmp_path / "apart" / shipped[0].name).symlink_to(shipped[0].resolve())  # the same bytes
    smaller = cv2.resize(cv2.imread(str(shipped[1])), (300, 300), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "apart/other-name.jpg"), smaller, [cv2.IMWRITE_JPEG_QUALITY, 80])
    parts = prior.split(tmp_path / "photos", [tmp_path / "apart"])
    assert {path.name for path in parts["left_out"]} == {path.name for path in shipped[:2]}
    assert {path.name for part in ("train", "choice") for path in parts[part]} == {
        path.name for path in shipped[2:]
    }


def test_the_photographs_for_choices_and_figures_are_left_out_unless_a_user_says_otherwise() -> (
    None
):
    parser = argparse.ArgumentParser()
    prior_command.add_arguments(parser)
    assert parser.parse_args(["photos"]).leave_out == (
        Path("assets/photos/validation"),
        Path("assets/photos/kodak"),
    )
    assert parser.parse_args(["photos", "--leave-out"]).leave_out == []


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name}: no photographs here"):
        prior.split(tmp_path)


def test_a_folder_of_other_things_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/a.txt").write_text("kept")
    assert cli.main(["prior", str(tmp_path), "-o", str(tmp_path / "holiday")]) == 1
    assert "holiday: already exists and is not a prior" in capsys.readouterr().err
    assert (tmp_path / "holiday/a.txt").read_text() == "kept"
