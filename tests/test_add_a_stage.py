"""docs/architecture.md, "Adding a stage", done with a toy stage in a copy of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

PARTS = ("gdpo", "tasks", "assets", "code", "profiles", "dvc.yaml", "params.yaml", "Makefile")

MODULE = '''"""Stage `toy`: writes the number of its steps, one file per step."""

from pathlib import Path

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.train.loop import Hooks, Loop
from tasks.run.training import write_history


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Run the loop and write reports/toy/metrics.jsonl."""
    loop = Loop(root / "work/toy", config.toy.steps, {}, "toy", 1, hooks)
    write_history(root / "reports/toy", loop.run(lambda step: {"value": 2.0 * step}))
'''
ROW = """    "toy": Stage("tasks.stages.toy", "count", "toy.steps=2", trains=True),
    "report": Stage("""
SECTION = '''class Toy(Section):
    """Stage `toy`."""

    steps: Count = 3
    batch: Count = 1
    gpus: Count = 1


class Config(Section):'''
STAGE = """  toy:
    desc: a count
    cmd: python -m tasks toy
    deps: [code/toy.sha256]
    params: [toy]
    outs: [reports/toy]
  report:
"""


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    assert content.count(before) == 1, f"{path.name}: {before!r}"
    path.write_text(content.replace(before, text))


@pytest.fixture
def repository(root: Path, tmp_path: Path) -> Path:
    """A copy of the repository with the toy stage, added as the page says."""
    for part in PARTS:
        source = root / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tmp_path / part, ignore=ignore)
        else:
            shutil.copy(source, tmp_path)
    shutil.copy(root / "tests/params.yaml", tmp_path)
    (tmp_path / "tasks/stages/toy.py").write_text(MODULE)
    insert(tmp_path / "tasks/commands.py", '    "report": Stage(', ROW)
    insert(tmp_path / "gdpo/config.py", "class Config(Section):", SECTION)
    insert(
        tmp_path / "gdpo/config.py", "    ablate: Ablate = ", "    toy: Toy\n    ablate: Ablate = "
    )
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("\ntoy:\n  steps: 3\n  batch: 1\n  gpus: 1\n")
    insert(tmp_path / "dvc.yaml", "  report:\n", STAGE)
    return tmp_path


def test_a_stage_is_added_in_four_places(repository: Path) -> None:
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    before = {path.name: path.read_text() for path in (repository / "code").iterdir()}
    run(sys.executable, "-m", "tasks.run.code")
    after = {path.name: path.read_text() for path in (repository / "code").iterdir()}
    assert after.pop("toy.sha256") and after == before  # no other stage runs again

    assert "example: gdpo-sr toy" in run(sys.executable, "-m", "tasks", "toy", "--help")
    run("dvc", "init", "-q", "--no-scm")
    run("dvc", "repro", "-q", "toy")
    assert len((repository / "reports/toy/metrics.jsonl").read_text().splitlines()) == 3
    assert (repository / "work/toy/metrics.jsonl").is_file()  # progress, as of every training
    assert "didn't change" in run("dvc", "repro", "toy")
