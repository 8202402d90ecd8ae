"""A base and a model folder that a test may change."""

import shutil
from pathlib import Path

import pytest

from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import save_model
from tests.gdpo.model.folders import adapters


@pytest.fixture
def base_folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A base folder of the test's own."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def model_folder(base_folder: Path, tmp_path: Path) -> Path:
    """models/naosd over the test's base."""
    save_model(
        tmp_path / "models/naosd",
        base_folder,
        [adapters()],
        IDENTITIES["naosd"],
        t_add=200,
        t_diff=90,
        prompt="crisp",
    )
    return tmp_path / "models/naosd"
