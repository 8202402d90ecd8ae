"""docs/architecture.md, "Adding a stage", done with a toy stage in a copy of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
PARTS = ("gdpo", "tasks", "flows", "tests", "assets", "code", "profiles", "docs", "benchmarks")
PARTS += ("promoted", "pyproject.toml", "dvc.yaml", "dvc.lock", "params.yaml", "Makefile")

MODULE = '''"""Stage `toy`: writes the number of its steps, one file per step."""

from pathlib import Path

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from gdpo.train.loop import Loop
from tasks.run.training import write_history


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Run the loop and write reports/toy/metrics.jsonl."""
    loop = Loop(root / "work/toy", config.toy.steps, {}, "toy", 1, hooks)
    write_history(root / "reports/toy", loop.run(lambda step: {"value": 2.0 * step}))
'''
ROW = """    "toy": Stage(
        "tasks.stages.toy", "count", "toy.steps=2", ("reports/toy",), trains="toy"
    ),
    "report": Stage("""
SECTION = '''class Toy(Section):
    """Stage `toy`."""

    steps: Annotated[int, Field(gt=0)] = 3
    batch: Annotated[int, Field(gt=0)] = 1


class Config(Section):
'''
KEYS = """| a count | - | - | ours | `toy.steps`, `toy.batch` | none |

## 2. Pretraining"""
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
    (tmp_path / "tasks/stages/toy.py").write_text(MODULE)
    insert(tmp_path / "tasks/commands.py", '    "report": Stage(', ROW)
    config = tmp_path / "gdpo/config/__init__.py"
    insert(config, "class Config(Section):\n", SECTION)
    insert(config, "    ablate: Ablate = ", "    toy: Toy = Toy()\n    ablate: Ablate = ")
    insert(tmp_path / "docs/fidelity.md", "\n## 2. Pretraining", KEYS)
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
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    yaml = YAML(typ="safe", pure=True)
    before = {path.name: path.read_text() for path in (repository / "code").iterdir()}
    run(sys.executable, "-m", "tasks.run.code")
    after = {path.name: path.read_text() for path in (repository / "code").iterdir()}
    assert after.pop("toy.sha256") and after == before  # no other stage runs again
    for name in ("params.yaml", "tests/params.yaml", "profiles/paper.yaml"):
        stated = (repository / name).read_text()
        assert stated.startswith((ROOT / name).read_text()), name
        assert yaml.load(stated)["toy"] == {"steps": 3, "batch": 1}, name

    assert "example: gdpo-sr toy" in run(sys.executable, "-m", "tasks", "toy", "--help")
    run("dvc", "init", "-q", "--no-scm")
    run("dvc", "repro", "-q", "toy")
    assert len((repository / "reports/toy/metrics.jsonl").read_text().splitlines()) == 3
    assert (repository / "work/toy/metrics.jsonl").is_file()  # progress, as of every training
    assert "didn't change" in run("dvc", "repro", "toy")
    # What holds of every stage holds of this one.
    tests = ("tests/test_pipeline.py", "tests/test_fidelity.py", "tests/test_layers.py")
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
