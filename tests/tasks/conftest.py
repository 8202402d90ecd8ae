"""What the tests of the stages share."""

from collections.abc import Iterator

import pytest

from tests.tasks.forks import Forks
from tests.tasks.published import address, finished  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts `python -m tasks ...` processes; one at a time."""
    server = Forks()
    yield server
    server.close()
