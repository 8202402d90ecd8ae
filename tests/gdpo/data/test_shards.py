"""gdpo.data.shards: what is written is read, in any order, or the damage is named."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.data import shards
from gdpo.data.shards import Box, Pair, Shards, enlarge, write_shards


def _pair(i: int, side: int = 16) -> Pair:
    rng = np.random.default_rng(i)
    hr = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Pair(f"id{i:04d}", f"photo{i % 3}", Box(i, 2 * i, side, side), hr, hr[::4, ::4], {"enlarge": "area"}, i / 100)


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 pairs in several shards and row groups of 7."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP", 7)
        assert write_shards(tmp_path / "s", (_pair(i) for i in range(40)), 0.02) == 40
    return tmp_path / "s"


def test_round_trip(folder):
    """Every field of every pair."""
    read = Shards(folder)
    assert len(read) == 40 and read.ids == [f"id{i:04d}" for i in range(40)]
    for i in (0, 6, 7, 39, -1):
        expected, found = _pair(i % 40), read[i]
        for name in ("id", "source", "box", "degradation", "detail_share", "tags"):
            assert getattr(found, name) == getattr(expected, name)
        np.testing.assert_array_equal(found.hr, expected.hr)
        np.testing.assert_array_equal(found.lr, expected.lr)
    with pytest.raises(IndexError):
        read[40]


def test_layout(folder):
    """Shards near the size asked for, row groups of at most ROW_GROUP, images uncompressed, a versioned schema."""
    paths = sorted(folder.iterdir())
    assert len(paths) > 1 and paths[0].name == "00000.parquet"
    for path in paths:
        assert path.stat().st_size < 0.02e6 + 8000  # the footer comes on top
        file = pq.ParquetFile(path)
        assert file.schema_arrow.metadata[b"gdpo-shard"] == b"1"
        for group in range(file.num_row_groups):
            meta = file.metadata.row_group(group)
            assert meta.num_rows <= 7
            columns = {meta.column(c).path_in_schema: meta.column(c) for c in range(meta.num_columns)}
            assert columns["hr"].compression == columns["lr"].compression == "UNCOMPRESSED"


def test_writing_is_deterministic(folder, tmp_path):
    """The same pairs, the same bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP", 7)
        write_shards(tmp_path / "again", (_pair(i) for i in range(40)), 0.02)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_pair_larger_than_a_shard_is_still_written(tmp_path):
    """One row per shard then."""
    write_shards(tmp_path / "s", (_pair(i) for i in range(3)), 1e-6)
    assert len(list((tmp_path / "s").iterdir())) == 3 and len(Shards(tmp_path / "s")) == 3


def test_an_error_leaves_the_old_folder_and_nothing_else(folder):
    """A stream that breaks, an empty one and a repeated id: no half-written shard, no scratch folder."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def breaking():
        yield from (_pair(i) for i in range(20))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_shards(folder, breaking(), 0.02)
    with pytest.raises(ValueError, match="no pair"):
        write_shards(folder, [], 0.02)
    with pytest.raises(ValueError, match="id id0001"):
        write_shards(folder, [_pair(1), _pair(1)], 0.02)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["s"]


@pytest.mark.parametrize("column", ["hr", "lr"])
def test_a_flipped_byte_names_shard_and_row(folder, column):
    """SHA-256 sees it; the other rows are still read."""
    path = sorted(folder.iterdir())[1]
    number = sum(pq.ParquetFile(p).metadata.num_rows for p in sorted(folder.iterdir())[:1]) + 3
    stored = pq.read_table(path)[column][3].as_py()
    data = bytearray(path.read_bytes())
    assert data.count(stored) == 1  # no copy of it in the statistics
    at = data.find(stored)
    data[at + len(stored) // 2] ^= 1
    path.write_bytes(data)
    read = Shards(folder)
    read[number - 1]
    with pytest.raises(ValueError, match=rf"00001\.parquet: row 3 of row group 0 \(id {read.ids[number]}\) is damaged"):
        read[number]


def test_broken_missing_and_foreign_files_are_named(folder, tmp_path):
    """A cut shard, a shard deleted meanwhile, another schema, no shard at all."""
    read = Shards(folder)
    path = sorted(folder.iterdir())[0]
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"00000\.parquet: damaged or missing shard"):
        read[0]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"00000\.parquet: damaged or missing shard") as error:
        Shards(folder)
    assert "\n" not in str(error.value)
    table = pq.read_table(sorted(folder.iterdir())[1])
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match=r"00000\.parquet: not a shard of schema version 1"):
        Shards(folder)
    with pytest.raises(ValueError, match="no shards here"):
        Shards(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_order_is_a_permutation_split_over_ranks(folder, world):
    """Every index once over all ranks, parts of equal length up to one, the same on every call, others per epoch."""
    read = Shards(folder)
    parts = [read.order(3, 1, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [Shards(folder).order(3, 1, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == read.order(3, 1)
    assert read.order(3, 1) != read.order(3, 2) != read.order(4, 2)


def test_order_reads_each_row_group_about_once(folder, monkeypatch):
    """With room for the window only, no row group is read twice in one pass."""
    read = Shards(folder)
    reads: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *args, **kwargs: (reads.append(1), original(*args, **kwargs))[1]
    )
    for i in read.order(0, 0):
        read[i]
        assert len(read._cache) <= len(read._groups)
    assert len(reads) == len(read._groups)


def test_cache_is_bounded(folder, monkeypatch):
    """Old row groups go when the budget is spent; the one in use stays."""
    monkeypatch.setattr(shards, "CACHE_MB", 1e-6)
    read = Shards(folder)
    for i in range(len(read)):
        assert read[i].id == read.ids[i]
        assert len(read._cache) == 1


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_enlarge_is_the_releases_interpolation(mode):
    """F.interpolate to full size, rounded to 8 bits; area copies blocks."""
    lr = _pair(0).lr
    planes = torch.from_numpy(lr).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=(16, 16), mode=mode)[0].permute(1, 2, 0)
    assert np.abs(enlarge(lr, (16, 16), mode) - expected.clamp(0, 255).numpy()).max() <= 0.501
    if mode == "area":
        np.testing.assert_array_equal(enlarge(lr, (16, 16), mode), lr.repeat(4, 0).repeat(4, 1))
