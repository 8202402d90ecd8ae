"""Where numbers come from: the commit of the code, its hash, and what is part of neither."""

import subprocess
from pathlib import Path

import pytest

from tasks.run import provenance as origin


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose second commit changes nothing of the code."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    for path in origin.CODE:
        file = tmp_path / path if path.endswith(".py") else tmp_path / path / "a.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "code")
    (tmp_path / "dvc.lock").write_text("hashes\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "lock")
    return tmp_path


def test_the_commit_is_the_last_that_changed_the_code(repository: Path) -> None:
    found = origin.commit(repository)
    assert (
        found
        == git(repository, "rev-parse", "HEAD~1")
        == git(repository, "log", "-1", "--format=%H", "--", *origin.CODE)
    )


@pytest.mark.parametrize("change", ["edited", "new", "deleted"])
def test_changes_that_are_in_no_commit_are_said(repository: Path, change: str) -> None:
    before, code = origin.commit(repository), origin.code(repository)
    if change == "edited":
        (repository / "gdpo/a.py").write_text("two\n")
    elif change == "new":
        (repository / "gdpo/b.py").write_text("one\n")
    else:
        (repository / "gdpo/a.py").unlink()
    assert origin.commit(repository) == f"{before}+changes"
    assert origin.code(repository) != code


def test_other_files_are_no_part_of_it(repository: Path) -> None:
    before = origin.commit(repository), origin.code(repository)
    (repository / "docs.md").write_text("words\n")
    (repository / "gdpo/__pycache__").mkdir()
    (repository / "gdpo/__pycache__/a.pyc").write_bytes(b"0")
    (repository / "tasks/stages/report.py").write_text("other\n")
    assert (origin.commit(repository), origin.code(repository)) == before


def test_outside_a_checkout_the_hash_stands_alone(repository: Path) -> None:
    code = origin.code(repository)
    (repository / ".git").rename(repository / "away")
    assert origin.commit(repository) == "unknown" and origin.code(repository) == code
    git(repository, "init", "-q")
    assert origin.commit(repository) == "unknown"  # no commit yet
