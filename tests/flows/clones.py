"""Clones of this working copy, as hosts have them, and what git and DVC do and say there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
GONE = """schema: '2.0'
stages:
  gone@part:
    cmd: python -m tasks gone
    outs:
    - path: reports/gone
      hash: md5
      md5: 00000000000000000000000000000000.dir
"""


def snapshot(folder: Path, changes: Mapping[str, Any]) -> Path:
    """This working copy as the only commit of a new repository. Its params.yaml is the committed
    one with `changes` (section.key: value), whatever profile somebody has applied here.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    committed = subprocess.run(
        ["git", "show", "HEAD:params.yaml"], cwd=ROOT, check=True, capture_output=True
    )
    (folder / "params.yaml").write_bytes(committed.stdout)
    # Nothing was made yet but what a stage made that dvc.yaml no longer has: DVC keeps such
    # entries.
    (folder / "dvc.lock").write_text(GONE)
    set_params(folder, changes)
    # The same files are the same commit, whenever it is made: evaluations name theirs.
    env = {
        **os.environ,
        "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    }
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, env=env)
    return folder


def set_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write `changes` (section.key: value) into params.yaml."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = params
        for section in sections:
            node = node[section]
        node[last] = value
    yaml.dump(params, folder / "params.yaml")


def outputs(clone: Path) -> dict[str, Any]:
    """{path: hash} of everything the pipeline made there, as DVC recorded it."""
    lock = YAML(typ="safe").load((clone / "dvc.lock").read_text())
    gone = YAML(typ="safe").load(GONE)["stages"]
    return {
        out["path"]: out["md5"]
        for name, stage in lock["stages"].items()
        if name not in gone
        for out in stage["outs"]
    }


def dvc(clone: Path, env: dict[str, str], *args: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *args], cwd=clone, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def commit(clone: Path, message: str) -> None:
    for command in (
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message],
    ):
        subprocess.run(["git", *command], cwd=clone, check=True)
