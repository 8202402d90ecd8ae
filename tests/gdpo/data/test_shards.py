"""gdpo.data.{schema,writer,rows,shards}: what is written is read, in any order, or the damage is
named.
"""

from collections.abc import Iterator
from pathlib import Path

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


def _pair(i: int, side: int = 16) -> Pair:
    """Ids go down where boxes go up; noise, so that every image has its own size in bytes."""
    rng = np.random.default_rng(i)
    hr = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    drawn = draw(Degradation(second_prob=0.5), np.random.default_rng(i))
    lr = low_resolution(hr.astype(np.float32) / 255, drawn)
    return Pair(
        f"id{99 - i:04d}",
        f"photo{i // 15}",
        Box(i, 2 * i, side, side),
        hr,
        lr,
        drawn,
        i / 100,
        "a cat" if i % 2 else None,
    )


def _small_groups() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROW_GROUP", 7)
        yield patch


@pytest.fixture(autouse=True)
def row_groups_of_seven() -> Iterator[pytest.MonkeyPatch]:
    yield from _small_groups()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pairs in several shards and row groups of 7."""
    assert write_shards(tmp_path / "s", (_pair(i) for i in range(40)), 0.02) == 40
    return tmp_path / "s"


def _equal(found: Pair, expected: Pair) -> None:
    for name in ("id", "source", "box", "degradation", "detail_share", "tags"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.hr, expected.hr)
    np.testing.assert_array_equal(found.lr, expected.lr)


def test_round_trip(folder):
    """Every field of every pair; the stored draw makes the LR image again."""
    read = Shards(folder)
    assert len(read) == 40
    for i in range(40):
        _equal(read[i], _pair(i))
        assert read.ids[i] == _pair(i).id
    _equal(read[-1], _pair(39))
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
        Pair(f"{i:02d}", "p", Box(i, 0, 16, 16), _pair(0).hr, _pair(0).lr, d, 0.5)
        for i, d in enumerate(draws)
    ]
    write_shards(tmp_path / "s", plain, 1.0)
    assert [Shards(tmp_path / "s")[i].degradation for i in range(len(draws))] == draws
    odd = Pair(
        "x", "p", Box(0, 0, 16, 16), _pair(0).hr, _pair(0).lr, {"enlarge": "area", "rain": 1.0}, 0.5
    )
    with pytest.raises(
        ValueError, match=r"pair x: the schema in gdpo/data/schema\.py does not hold"
    ):
        write_shards(tmp_path / "odd", [odd], 1.0)


def test_layout(folder):
    """Shards near the size asked for, row groups of at most ROW_GROUP, images uncompressed, a
    versioned schema.
    """
    paths = sorted(folder.iterdir())
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
    write_shards(tmp_path / "s", (_pair(i) for i in range(7)), 1.0)
    file = pq.ParquetFile(tmp_path / "s/00000.parquet")
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [3, 3, 1]
    _equal(Shards(tmp_path / "s")[4], _pair(4))


def test_writing_is_deterministic(folder, tmp_path):
    """The same pairs, the same bytes."""
    write_shards(tmp_path / "again", (_pair(i) for i in range(40)), 0.02)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_pair_larger_than_a_shard_is_still_written(tmp_path):
    """One row per shard then."""
    write_shards(tmp_path / "s", (_pair(i) for i in range(3)), 1e-6)
    assert len(list((tmp_path / "s").iterdir())) == 3 and len(Shards(tmp_path / "s")) == 3


def test_an_error_leaves_the_old_folder_and_nothing_else(folder):
    """A stream that breaks, an empty one and a repeated id: no half-written shard, no scratch
    folder.
    """
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def breaking() -> Iterator[Pair]:
        yield from (_pair(i) for i in range(20))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_shards(folder, breaking(), 0.02)
    with pytest.raises(ValueError, match="no pair"):
        write_shards(folder, [], 0.02)
    with pytest.raises(ValueError, match="id id0098"):
        write_shards(folder, [_pair(1), _pair(1)], 0.02)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["s"]


@pytest.mark.parametrize("column", ["hr", "lr"])
def test_a_flipped_byte_names_shard_and_row(folder, column):
    """SHA-256 sees it; the other rows are still read; a scan lists it."""
    path = sorted(folder.iterdir())[1]
    number = pq.ParquetFile(sorted(folder.iterdir())[0]).metadata.num_rows + 3
    stored = pq.read_table(path)[column][3].as_py()
    data = bytearray(path.read_bytes())
    assert data.count(stored) == 1  # no copy of it in the statistics
    at = data.find(stored)
    data[at + len(stored) // 2] ^= 1
    path.write_bytes(data)
    read = Shards(folder)
    read[number - 1]
    line = rf"00001\.parquet: row 3 of row group 0 \(id {read.ids[number]}\) is damaged"
    with pytest.raises(ValueError, match=line):
        read[number]
    count, lines = rows.damages(path)
    assert count == pq.ParquetFile(path).metadata.num_rows and len(lines) == 1
    assert [rows.damages(other)[1] for other in shard_files(folder) if other != path] == [[]] * (
        len(shard_files(folder)) - 1
    )


def test_broken_missing_and_foreign_files_are_named(folder, tmp_path):
    """A cut shard, a shard deleted meanwhile, another schema, another writer, no shard at all."""
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
    assert rows.damages(path) == (0, [str(error.value)])
    table = pq.read_table(sorted(folder.iterdir())[1])
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match=r"00000\.parquet: not a shard of schema version 2"):
        Shards(folder)
    pq.write_table(table, path)
    sorted(folder.iterdir())[1].unlink()
    with pytest.raises(
        ValueError, match=r"00000\.parquet: column hr was not written by gdpo/data/writer\.py"
    ):
        Shards(folder)[0]
    with pytest.raises(ValueError, match="no shards here"):
        Shards(tmp_path / "nothing")


def test_order_is_a_permutation_of_its_own_per_seed_and_epoch(folder):
    read = Shards(folder)
    assert sorted(read.order(3, 1)) == list(range(40))
    assert read.order(3, 1) == Shards(folder).order(3, 1)
    assert read.order(3, 1) != read.order(3, 2) != read.order(4, 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_tree_of_parts_is_one_set_in_one_order(tmp_path, folder, count):
    """However the photographs are shared out, also with an empty part: the same pairs under the
    same indices.
    """
    names = [str(part) for part in range(count)]
    for name in names:
        mine = (_pair(i) for i in range(40) if i // 15 % count == int(name))
        write_shards(tmp_path / "train" / name, mine, 0.02, names)
    read, flat = Shards(tmp_path / "train"), Shards(folder)
    assert read.ids == flat.ids and read.order(0, 0) == flat.order(0, 0)
    _equal(read[17], _pair(17))


def test_parts_that_are_missing_or_left_over_are_named(tmp_path):
    """A set is read whole or not at all."""
    for name in ("00", "01"):
        write_shards(tmp_path / "train" / name, [_pair(int(name))], 1.0, ["00", "01"])
    assert len(Shards(tmp_path / "train")) == 2
    assert len(Shards(tmp_path / "train/00")) == 1
    write_shards(tmp_path / "train/02", [], 1.0, ["00", "01", "02"])
    with pytest.raises(
        ValueError, match=r"train: part 02 is left over, delete it; .* belongs to the parts 00, 01$"
    ):
        Shards(tmp_path / "train")
    (tmp_path / "train/00/00000.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"train: part 00 is missing, run it; .*01/00000.parquet belongs"
    ):
        Shards(tmp_path / "train")
    (tmp_path / "train/01/00000.parquet").unlink()
    with pytest.raises(ValueError, match="part 00 is missing"):
        Shards(tmp_path / "train")
    with pytest.raises(ValueError, match="the shards have no pairs"):
        Shards(tmp_path / "train/02")


def test_a_pair_that_is_there_twice_is_named(folder):
    """Two shards with the same row."""
    write_shards(folder.parent / "t", [_pair(5)], 1.0)
    (folder.parent / "t/00000.parquet").rename(folder / "99999.parquet")
    with pytest.raises(ValueError, match=r"the pair id0094 occurs twice"):
        Shards(folder)


def test_text_that_is_none_names_shard_and_row(folder):
    """Parquet does not look at it when it reads."""
    path = shard_files(folder)[0]
    group = rows.RowGroup(path, 0)
    broken = pa.StringArray.from_buffers(
        1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")
    )
    column = group.table.schema.get_field_index("tags")
    tags = pa.concat_arrays([group.table["tags"].slice(0, 3).combine_chunks(), broken])
    group.table = group.table.slice(0, 4).set_column(column, "tags", tags)
    group.row(2)
    with pytest.raises(ValueError, match=rf"{path}: row 3 of row group 0 is damaged \(.*utf-8"):
        group.row(3)
    with (
        pytest.raises(ValueError, match=rf"{path}: damaged or missing shard \(.*utf-8"),
        rows.damage_named(path),
    ):
        b"\xff".decode()


def test_the_fingerprint_is_that_of_the_rows_and_reads_no_image(folder, tmp_path, monkeypatch):
    """The same pairs, the same text; any other pair, another; a damaged shard is named."""
    first = Shards(folder).fingerprint()
    write_shards(tmp_path / "again", (_pair(i) for i in range(40)), 0.02)
    write_shards(tmp_path / "other", (_pair(i) for i in range(1, 41)), 0.02)
    monkeypatch.setattr(rows.RowGroup, "row", None)
    assert (
        Shards(tmp_path / "again").fingerprint()
        == first
        != Shards(tmp_path / "other").fingerprint()
    )
    read = Shards(folder)
    shard_files(folder)[1].write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"00001\.parquet: damaged or missing shard"):
        read.fingerprint()


def test_what_a_killed_writer_left_does_not_count(folder):
    """Its folder has a leading dot."""
    (folder / ".00.123.abcdefgh/00").mkdir(parents=True)
    (folder / ".00.123.abcdefgh/00/00000.parquet").write_bytes(b"PAR1 half")
    assert len(Shards(folder)) == 40


def test_cache_is_bounded(folder, monkeypatch):
    """Old row groups go when the budget is spent; the one in use stays; with room, each is read
    once.
    """
    reads = []
    original = shards.RowGroup
    monkeypatch.setattr(
        shards, "RowGroup", lambda *place: (reads.append(place), original(*place))[1]
    )
    roomy = Shards(folder)
    for i in roomy.order(0, 0):
        roomy[i]
    assert sorted(reads) == sorted(roomy._groups)
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


def test_other_libraries_read_the_shards(folder, tmp_path, monkeypatch):
    """As docs/architecture.md says: `datasets.load_dataset("parquet", ...)`, pandas, pyarrow."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    files = [str(path) for path in shard_files(folder)]
    table = datasets.load_dataset(
        "parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path)
    )
    ours = Shards(folder)
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
