"""SIGKILL in the middle of index and of degrade (which writes shards): nothing half-written is
visible, and the next run makes the same bytes. Real processes; a kill lands where the scratch
folder shows that the work has begun."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gdpo.data.shards import Shards
from gdpo.images import write_png
from tests.tasks.forks import Forks
from tests.tasks.photos import config, files, photo

pytestmark = pytest.mark.processes

COMMANDS = {"index": ("index",), "degrade": ("degrade", "--part", "00")}
OUTPUTS = {
    "index": ("data/photos", "reports/photographs"),
    "degrade": ("data/shards/train/00", "reports/degrade/00"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """14 photographs, indexed and degraded without interruption."""
    root = tmp_path_factory.mktemp("finished")
    for i in range(14):
        write_png(root / f"photos/train/p{i:02d}.png", photo(i, 96, 96))
    write_png(root / "photos/held/c.png", photo(1000, 72, 72))
    settings = config(parts=["00"]).model_dump()
    settings["degrade"]["shard_mb"] = 0.05
    YAML(typ="safe", pure=True).dump(settings, root / "params.yaml")
    for command in COMMANDS.values():
        forks.start(root, *command)
        assert forks.wait() == 0, (root / "stderr.txt").read_text()
    return root


def scratch(root: Path, stage: str) -> list[Path]:
    """The folders in which the outputs of a stage are being written."""
    found = []
    for output in map(root.joinpath, OUTPUTS[stage]):
        pattern = re.compile(rf"\.{output.name}\.\d+\.\w+")
        found += [path for path in output.parent.glob(".*") if pattern.fullmatch(path.name)]
    return found


def visible(root: Path) -> set[str]:
    """Every file but those in folders with a leading dot, the log and the photographs."""
    return {
        name
        for name in files(root)
        if not re.search(r"(^|/)\.|^(photos|work)/|^stderr|^params", name)
    }


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_killed_in_the_middle(
    finished: Path, tmp_path: Path, forks: Forks, stage: str, delay: float
) -> None:
    root = tmp_path / "place"
    shutil.copytree(finished, root)
    for output in OUTPUTS[stage]:
        shutil.rmtree(root / output)
    before = visible(root)
    process = forks.start(root, *COMMANDS[stage])
    deadline = time.monotonic() + 60
    while (
        not scratch(root, stage) and not set(visible(root)) - before and time.monotonic() < deadline
    ):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    code = forks.wait()
    wanted = visible(finished)
    assert visible(root) <= wanted
    for output in OUTPUTS[stage]:  # whole, or not there
        assert not (root / output).exists() or files(root / output) == files(finished / output)
    if stage == "degrade" and code == -signal.SIGKILL and not (root / OUTPUTS[stage][0]).exists():
        with pytest.raises(ValueError, match="no shards here"):
            Shards(root / "data/shards/train")
    forks.start(root, *COMMANDS[stage])
    assert forks.wait() == 0, (root / "stderr.txt").read_text()
    assert visible(root) == wanted
    for output in OUTPUTS[stage]:
        assert files(root / output) == files(finished / output)
    assert scratch(root, stage) == []
    assert (
        len(Shards(root / "data/shards/train"))
        == len(Shards(finished / "data/shards/train"))
        == 350
    )


def test_parts_side_by_side_in_one_folder(finished: Path, tmp_path: Path, forks: Forks) -> None:
    """Two processes at once, one per part: the union is that of one part."""
    second = Forks()
    try:
        root = tmp_path / "place"
        shutil.copytree(finished / "photos", root / "photos")
        settings = config(parts=["00", "01"]).model_dump()
        YAML(typ="safe", pure=True).dump(settings, root / "params.yaml")
        forks.start(root, "index")
        assert forks.wait() == 0, (root / "stderr.txt").read_text()
        forks.start(root, "degrade", "--part", "00")
        second.start(root, "degrade", "--part", "01")
        assert [forks.wait(), second.wait()] == [0, 0], (root / "stderr.txt").read_text()
        whole, union = Shards(finished / "data/shards/train"), Shards(root / "data/shards/train")
        assert union.ids == whole.ids
        assert all((union[i].lr == whole[i].lr).all() for i in range(0, 350, 37))
    finally:
        second.close()
