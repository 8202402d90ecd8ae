"""Rollouts that the tests of training share."""

import pytest

from gdpo.preference.group import Group
from tests import tiny
from tests.gdpo.preference.training import stored


@pytest.fixture(scope="session")
def groups() -> list[Group]:
    return stored(tiny.settings())
