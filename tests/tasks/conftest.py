"""What the tests of the stages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tasks.forks import Forks
from tests.tasks.published import address, finished  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts `python -m tasks ...` processes; one at a time."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def vlcot_finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root after all stages of RealSR-R1; not to be written to."""
    from tests.tasks.vlcot_root import make  # slow to import

    return make(tmp_path_factory.mktemp("vlcot") / "root", tiny_base)
