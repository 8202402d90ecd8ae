"""A checkout has the same bytes whatever the line ends of the system are."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BYTES = b"\x89 one\r\ntwo\nthree\r\n"  # to be kept as they are
TEXT = b"one\ntwo\n"


def git(folder: Path, *args: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=true"]
    return subprocess.run(
        ["git", *settings, *args], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def test_a_checkout_that_asks_for_windows_line_ends_has_the_committed_bytes(tmp_path):
    files = {"a.py": TEXT, "dvc.lock": TEXT, "code/index.sha256": TEXT, "Makefile": TEXT}
    files |= {f"b.{kind}": BYTES for kind in ("webp", "png", "jpg", "safetensors", "mat")}
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    for name in files:
        (tmp_path / name).unlink()
    git(tmp_path, "checkout", "-q", ".")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_no_committed_file_has_other_line_ends():
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    lines = git(ROOT, "ls-files", "--eol").splitlines()
    assert lines
    assert [line for line in lines if line.split()[0] in ("i/crlf", "i/mixed")] == []
