"""tasks.run.fingerprint: every file counts, also those behind links."""

import pytest

from tasks.run.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.bin").write_bytes(b"1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/part").symlink_to(tmp_path / "outside")
    return tmp_path / "model"


def test_a_change_behind_a_linked_folder_is_seen(folder):
    before = fingerprint({}, [folder])
    (folder.parent / "outside/a.bin").write_bytes(b"2")
    assert fingerprint({}, [folder]) != before


def test_a_link_counts_by_its_content_not_by_where_it_leads(folder):
    before = fingerprint({}, [folder])
    (folder / "part").unlink()
    (folder / "part").mkdir()
    (folder / "part/a.bin").write_bytes(b"1")
    assert fingerprint({}, [folder]) == before


def test_a_link_to_another_folder_of_the_tree_is_seen(folder):
    for name in "xy":
        (folder / name).mkdir()
        (folder / name / "b.bin").write_bytes(name.encode())
    (folder / "z").symlink_to("x")
    before = fingerprint({}, [folder])
    (folder / "z").unlink()
    (folder / "z").symlink_to("y")
    assert fingerprint({}, [folder]) != before
