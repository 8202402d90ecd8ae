"""Pairs that the tests of the training loop share."""

import pytest

from gdpo.data.shards import Shards, write_shards
from tests import tiny


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards(folder, (tiny.pair(i) for i in range(5)), 1.0)
    return Shards(folder)
