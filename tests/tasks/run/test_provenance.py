"""The provenance an evaluation records, in clones with the full and with partial history."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guide import git

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

PROGRAM = """
import json, sys
from pathlib import Path
from tasks.params import load
from tasks.run.provenance import origin
root = Path.cwd()
names = ("naosd", "gdpo", "control")
models = ", ".join(f"{name}: assets/tiny-sd/naosd" for name in names)
config = load(root / "tests/params.yaml", None, [f"evaluate.models={{{models}}}"])
photos = [root / "assets/photos"]
print(json.dumps(origin("tasks.stages.evaluate", config, root, "sample", ["psnr_y"], photos)))
"""
HOW = {"whole": [], "shallow": ["--depth=1"], "blobless": ["--filter=blob:none"]}


@pytest.mark.parametrize("how", ["shallow", "blobless"])
def test_two_workers_at_one_commit_write_the_same_bytes(
    root: Path, tmp_path: Path, how: str
) -> None:
    source = tmp_path / "source"
    git("clone", "-q", str(root), str(source), at=tmp_path)
    git("config", "uploadpack.allowFilter", "true", at=source)
    # So that the last commit is not the one that changed the stage's code.
    git("commit", "-q", "--allow-empty", "-m", "later", at=source)
    results = []
    for name in ("whole", how):
        clone = tmp_path / name
        git("clone", "-q", "--no-local", *HOW[name], f"file://{source}", str(clone), at=tmp_path)
        environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
        results.append(
            subprocess.run(
                [sys.executable, "-c", PROGRAM], cwd=clone, env=environment, capture_output=True
            )
        )
    assert results[0].returncode == 0, results[0].stderr.decode()
    assert results[0].stdout == results[1].stdout != b""
