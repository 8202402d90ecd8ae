"""The evaluate stage in real processes: terminated, killed and started again, it ends in the bytes
of a run left in peace.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from gdpo.data.shards import write_shards
from tests import tiny
from tests.tasks.forks import Forks

pytestmark = pytest.mark.processes

IMAGES = 14
KEPT = "work/evaluate/sample/images"


@pytest.fixture
def root(tmp_path: Path, tiny_base: Path) -> Path:
    """Held-out pairs and two models, both the base model itself."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "base").symlink_to(tiny_base)
    write_shards(root / "data/shards/evaluation", (tiny.pair(i) for i in range(IMAGES)), 1.0)
    settings = {
        "models": {"naosd": "base", "gdpo": "base"},
        "noises": 8,
        "batch": 3,
        "metrics": ["psnr_y", "ssim_y"],
    }
    (root / "params.yaml").write_text(
        json.dumps(tiny.settings(evaluate=settings).model_dump() | {"allow_cpu": True})
    )
    return root


def finished(root: Path) -> int:
    return len(list((root / KEPT).glob("*/result.json")))


def wait_for(root: Path, images: int) -> None:
    deadline = time.monotonic() + 120
    while finished(root) < images:
        assert time.monotonic() < deadline, "the stage did not get there in time"
        time.sleep(0.002)


def test_terminated_and_killed_it_ends_in_the_same_bytes(
    root: Path, tmp_path: Path, forks: Forks
) -> None:
    straight = Path(shutil.copytree(root, tmp_path / "straight", symlinks=True))
    forks.start(straight, "evaluate", "--benchmark", "sample")
    assert forks.wait() == 0, (straight / "stderr.txt").read_text()

    process = forks.start(root, "evaluate", "--benchmark", "sample")
    wait_for(root, 1)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143
    before = finished(root)
    assert 1 <= before < IMAGES and not (root / "reports").exists()
    said = f"stopped after image {before}, kept in work/evaluate/sample/images; "
    assert said in (root / "stderr.txt").read_text()

    process = forks.start(root, "evaluate", "--benchmark", "sample")
    wait_for(root, before + 2)
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL
    assert before + 2 <= finished(root) < IMAGES and not (root / "reports").exists()

    forks.start(root, "evaluate", "--benchmark", "sample")
    assert forks.wait() == 0
    assert tiny.tree(root / "reports") == tiny.tree(straight / "reports")
    assert not (root / KEPT).exists()
