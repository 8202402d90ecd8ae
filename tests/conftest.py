"""What every test may use: no network, one device, the sample configuration."""

import gc
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tasks.run.imports import without_bitsandbytes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MPLBACKEND", "agg")

ROOT = Path(__file__).parents[1]
without_bitsandbytes()  # as every command does: it costs seconds of each test process
gc.disable()  # while everything is imported and collected; see pytest_collection_finish


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="run the tests that use the `device` fixture there, e.g. cuda",
    )


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no search for garbage looks at them again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where tensors live: the same test runs on a GPU with `pytest --device cuda`."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of random weights (tests/tiny.py); not to be written to."""
    from tests import tiny

    return tiny.write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def sample_config() -> Any:
    """The parameters of the tests, tests/params.yaml."""
    from tasks.params import load

    return load(ROOT / "tests/params.yaml")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test that tries it."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
            "0.0.0.0",
        ):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def repository(root: Path, tmp_path: Path) -> Path:
    """A small repository with deploy/, a DVC configuration and a committed dvc.lock."""
    from tests.guide import git

    place = tmp_path / "repository"
    shutil.copytree(root / "deploy", place / "deploy")
    shutil.copytree(
        root / ".dvc",
        place / ".dvc",
        ignore=lambda folder, names: set(names) - {".gitignore", "config"},
    )
    (place / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (place / ".gitignore").write_text(".venv/\n")
    git("init", "-q", at=place)
    git("add", "-A", at=place)
    git("commit", "-qm", "one", at=place)
    return place
