"""gdpo.walk: linked folders are entered, once each, and loops end."""

import os

import pytest

from gdpo.walk import is_hidden, walk


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_behind_linked_folders_are_there(tmp_path):
    outside = write(tmp_path / "outside/deep/b.png").parents[1]
    root = write(tmp_path / "photos/a.png").parent
    (root / "more").symlink_to(outside)
    (root / "c.png").symlink_to(outside / "deep/b.png")
    (root / "gone.png").symlink_to("nowhere.png")
    tree = walk(root)
    assert tree.files == [root / "a.png", root / "c.png", root / "more/deep/b.png"]
    assert tree.broken == [root / "gone.png"] and tree.repeated == {}


def test_loops_end_and_each_folder_is_read_once(tmp_path):
    root = write(tmp_path / "photos/set/a.png").parents[1]
    write(tmp_path / "outside/inner/b.png")
    (root / "again").symlink_to(root / "set")  # sorts before the folder that it leads to
    (root / "set/up").symlink_to(root)
    (root / "itself").symlink_to("itself")
    (root / "x").symlink_to(tmp_path / "outside/inner")
    (root / "y").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path / "outside")
    tree = walk(root)
    assert tree.files == [root / "set/a.png", root / "x/b.png"]
    assert tree.broken == [root / "itself"]
    assert tree.repeated == {
        root / "again": root / "set",
        root / "set/up": root,
        root / "y/back": root / "y",
        root / "y/inner": root / "x",
    }


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "closed/a.png")
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("gdpo.walk.os.scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        walk(tmp_path)


def test_hidden_is_decided_below_the_folder(tmp_path):
    below = tmp_path / ".cache/photos"
    assert is_hidden(below / ".old/a.png", below) and is_hidden(below / ".a.png", below)
    assert not is_hidden(below / "set/a.png", below)
