"""Shards with small row groups, which a test may change."""

from pathlib import Path

import pytest

from gdpo.data import writer
from gdpo.data.shards import write_shards
from tests.gdpo.data.pairs import noise_pair


@pytest.fixture
def row_groups_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables get several row groups too."""
    monkeypatch.setattr(writer, "ROW_GROUP", 7)


@pytest.fixture
def shard_folder(row_groups_of_seven: None, tmp_path: Path) -> Path:
    """40 pairs in several shards and row groups of 7."""
    assert write_shards(tmp_path / "s", (noise_pair(i) for i in range(40)), 0.02) == 40
    return tmp_path / "s"
