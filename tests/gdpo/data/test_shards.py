"""gdpo.data.{schema,writer,rows,shards}: what is written is read, in any order, or the damage is
named.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Degradation
from gdpo.data import rows, shards, writer
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.schema import SCHEMA
from gdpo.data.shards import Box, Pair, Shards, enlarge, shard_files, write_shards
from gdpo.images import decode_image
from tests.gdpo.data.pairs import noise_pair

pytestmark = pytest.mark.usefixtures("row_groups_of_seven")


def _equal(found: Pair, expected: Pair) -> None:
    for name in ("id", "source", "box", "degradation", "detail_share", "tags"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.hr, expected.hr)
    np.testing.assert_array_equal(found.lr, expected.lr)


def test_round_trip(shard_folder):
    """Every field of every pair; the stored draw makes the LR image again."""
    read = Shards(shard_folder)
    assert len(read) == 40
    for i in range(40):
        _equal(read[i], noise_pair(i))
        assert read.ids[i] == noise_pair(i).id
    _equal(read[-1], noise_pair(39))
    drawn = read[3].degradation
    np.testing.assert_array_equal(
        low_resolution(read[3].hr.astype(np.float32) / 255, drawn), read[3].lr
    )
    with pytest.raises(IndexError):
        read[40]


def test_the_struct_holds_every_kind_of_draw(tmp_path):
    """None inside a draw stays None, a parameter that a kernel does not have stays absent; less
    than a draw is kept too.
    """
    draws = [
        draw(Degradation(second_prob=0.5, final_sinc_prob=0.5), np.random.default_rng(i))
        for i in range(60)
    ]
    kinds = {d["first"]["blur"]["kind"] for d in draws}
    assert len(kinds) == 7 and {d["second"] is None for d in draws} == {True, False}
    draws += [{}, {"enlarge": "area"}]
    plain = [
        Pair(f"{i:02d}", "p", Box(i, 0, 16, 16), noise_pair(0).hr, noise_pair(0).lr, d, 0.5)
        for i, d in enumerate(draws)
    ]
    write_shards(tmp_path / "s", plain, 1.0)
    assert [Shards(tmp_path / "s")[i].degradation for i in range(len(draws))] == draws
    odd = Pair(
        "x",
        "p",
        Box(0, 0, 16, 16),
        noise_pair(0).hr,
        noise_pair(0).lr,
        {"enlarge": "area", "rain": 1.0},
        0.5,
    )
    with pytest.raises(
        ValueError, match=r"pair x: the schema in gdpo/data/schema\.py does not hold"
    ):
        write_shards(tmp_path / "odd", [odd], 1.0)


def test_layout(shard_folder):
    """Shards near the size asked for, row groups of at most ROW_GROUP, images uncompressed, a
    versioned schema.
    """
    paths = sorted(shard_folder.iterdir())
    assert len(paths) > 1 and paths[0].name == "00000.parquet"
    for path in paths:
        assert path.stat().st_size < 0.02e6 + 40000  # the footer comes on top
        file = pq.ParquetFile(path)
        assert file.schema_arrow.metadata[b"gdpo-shard"] == b"2"
        assert pa.types.is_struct(file.schema_arrow.field("degradation").type)
        for group in range(file.num_row_groups):
            meta = file.metadata.row_group(group)
            assert meta.num_rows <= 7
            columns = {
                meta.column(c).path_in_schema: meta.column(c) for c in range(meta.num_columns)
            }
            assert columns["hr"].compression == columns["lr"].compression == "UNCOMPRESSED"
            assert columns["sha256"].compression == "ZSTD"
        assert pq.read_table(path).num_rows == sum(
            file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)
        )


def test_row_groups_are_bounded_in_bytes_too(tmp_path, monkeypatch):
    """Large images do not add up in memory."""
    monkeypatch.setattr(writer, "GROUP_MB", 4000 / 1e6)
    write_shards(tmp_path / "s", (noise_pair(i) for i in range(7)), 1.0)
    file = pq.ParquetFile(tmp_path / "s/00000.parquet")
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [3, 3, 1]
    _equal(Shards(tmp_path / "s")[4], noise_pair(4))


def test_writing_is_deterministic(shard_folder, tmp_path):
    """The same pairs, the same bytes."""
    write_shards(tmp_path / "again", (noise_pair(i) for i in range(40)), 0.02)
    for path in shard_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_pair_larger_than_a_shard_is_still_written(tmp_path):
    """One row per shard then."""
    write_shards(tmp_path / "s", (noise_pair(i) for i in range(3)), 1e-6)
    assert len(list((tmp_path / "s").iterdir())) == 3 and len(Shards(tmp_path / "s")) == 3


def test_order_is_a_permutation_of_its_own_per_seed_and_epoch(shard_folder):
    read = Shards(shard_folder)
    assert sorted(read.order(3, 1)) == list(range(40))
    assert read.order(3, 1) == Shards(shard_folder).order(3, 1)
    assert read.order(3, 1) != read.order(3, 2) != read.order(4, 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_tree_of_parts_is_one_set_in_one_order(tmp_path, shard_folder, count):
    """However the photographs are shared out, also with an empty part: the same pairs under the
    same indices.
    """
    names = [str(part) for part in range(count)]
    for name in names:
        mine = (noise_pair(i) for i in range(40) if i // 15 % count == int(name))
        write_shards(tmp_path / "train" / name, mine, 0.02, names)
    read, flat = Shards(tmp_path / "train"), Shards(shard_folder)
    assert read.ids == flat.ids and read.order(0, 0) == flat.order(0, 0)
    _equal(read[17], noise_pair(17))


def test_the_fingerprint_is_that_of_the_rows_and_reads_no_image(
    shard_folder, tmp_path, monkeypatch
):
    """The same pairs, the same text; any other pair, another; a damaged shard is named."""
    first = Shards(shard_folder).fingerprint()
    write_shards(tmp_path / "again", (noise_pair(i) for i in range(40)), 0.02)
    write_shards(tmp_path / "other", (noise_pair(i) for i in range(1, 41)), 0.02)
    monkeypatch.setattr(rows.RowGroup, "row", None)
    assert (
        Shards(tmp_path / "again").fingerprint()
        == first
        != Shards(tmp_path / "other").fingerprint()
    )
    read = Shards(shard_folder)
    shard_files(shard_folder)[1].write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"00001\.parquet: damaged or missing shard"):
        read.fingerprint()


def test_what_a_killed_writer_left_does_not_count(shard_folder):
    """Its folder has a leading dot."""
    (shard_folder / ".00.123.abcdefgh/00").mkdir(parents=True)
    (shard_folder / ".00.123.abcdefgh/00/00000.parquet").write_bytes(b"PAR1 half")
    assert len(Shards(shard_folder)) == 40


def test_cache_is_bounded(shard_folder, monkeypatch):
    """Old row groups go when the budget is spent; the one in use stays; with room, each is read
    once.
    """
    reads = []
    original = shards.RowGroup
    monkeypatch.setattr(
        shards, "RowGroup", lambda *place: (reads.append(place), original(*place))[1]
    )
    roomy = Shards(shard_folder)
    for i in roomy.order(0, 0):
        roomy[i]
    assert sorted(reads) == sorted(roomy._groups)
    monkeypatch.setattr(shards, "CACHE_MB", 1e-6)
    read = Shards(shard_folder)
    for i in range(len(read)):
        assert read[i].id == read.ids[i]
        assert len(read._cache) == 1


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_enlarge_is_the_releases_interpolation(mode):
    """F.interpolate to full size, rounded to 8 bits; area copies blocks."""
    lr = noise_pair(0).lr
    planes = torch.from_numpy(lr).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=(16, 16), mode=mode)[0].permute(1, 2, 0)
    assert np.abs(enlarge(lr, (16, 16), mode) - expected.clamp(0, 255).numpy()).max() <= 0.501
    if mode == "area":
        np.testing.assert_array_equal(enlarge(lr, (16, 16), mode), lr.repeat(4, 0).repeat(4, 1))


def test_the_schema_has_the_columns_of_the_plan():
    """Names are what other tools query."""
    assert set(SCHEMA.names) == {
        "id",
        "source",
        "box",
        "hr",
        "lr",
        "hr_size",
        "lr_size",
        "degradation",
        "detail_share",
        "tags",
        "sha256",
    }
    assert SCHEMA.field("tags").nullable and not SCHEMA.field("sha256").nullable


def test_other_libraries_read_the_shards(shard_folder, tmp_path, monkeypatch):
    """As docs/architecture.md says: `datasets.load_dataset("parquet", ...)`, pandas, pyarrow."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    files = [str(path) for path in shard_files(shard_folder)]
    table = datasets.load_dataset(
        "parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path)
    )
    ours = Shards(shard_folder)
    by_id = {row["id"]: row for row in table}
    assert sorted(by_id) == sorted(ours.ids)
    pair = ours[0]
    row = by_id[pair.id]
    np.testing.assert_array_equal(decode_image(row["hr"]), pair.hr)
    np.testing.assert_array_equal(decode_image(row["lr"]), pair.lr)
    assert (
        row["box"] == list(pair.box)
        and row["degradation"]["enlarge"] == pair.degradation["enlarge"]
    )
