"""Roots before and after an ablation, not to be written to."""

import json
import shutil
from pathlib import Path

import pytest

from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks
from tasks import __main__ as cli
from tasks.ablate.runs import Job
from tasks.stages import pretrain
from tests import tiny
from tests.tasks.ablate.runs import (
    configured,
    in_this_process,
    really,
)


@pytest.fixture(scope="session")
def selected(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root as `dvc repro select` leaves it, and params.yaml; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("selected") / "root", tiny_base)
    write_shards(root / "data/shards/evaluation", (tiny.pair(i) for i in range(10, 12)), 1.0)
    pretrain.run(tiny.settings(pretrain={"steps": 1}), root, Hooks())
    (root / "params.yaml").write_text(json.dumps(configured().model_dump()))
    return root


@pytest.fixture(scope="session")
def straight(selected: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Job]]:
    """A root after `ablate 7` in one process, left in peace, and what was done."""
    root = Path(
        shutil.copytree(selected, tmp_path_factory.mktemp("straight") / "root", symlinks=True)
    )
    with pytest.MonkeyPatch.context() as patch, in_this_process(really) as did:
        patch.chdir(root)
        assert cli.main(["ablate", "7"]) == 0
    return root, did
