"""What the tests of the flows share."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository of git and DVC, to be copied: `dvc init` takes CPU seconds."""
    folder = tmp_path_factory.mktemp("initialised")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder
