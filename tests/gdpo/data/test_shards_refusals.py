"""Shards that are damaged, foreign, missing or there twice are named."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.data import rows
from gdpo.data.shards import Pair, Shards, shard_files, write_shards
from tests.gdpo.data.pairs import noise_pair

pytestmark = pytest.mark.usefixtures("row_groups_of_seven")


def test_an_error_leaves_the_old_folder_and_nothing_else(shard_folder):
    """A stream that breaks, an empty one and a repeated id: no half-written shard, no scratch
    folder.
    """
    before = {path.name: path.read_bytes() for path in shard_folder.iterdir()}

    def breaking() -> Iterator[Pair]:
        yield from (noise_pair(i) for i in range(20))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_shards(shard_folder, breaking(), 0.02)
    with pytest.raises(ValueError, match="no pair"):
        write_shards(shard_folder, [], 0.02)
    with pytest.raises(ValueError, match="id id0098"):
        write_shards(shard_folder, [noise_pair(1), noise_pair(1)], 0.02)
    assert {path.name: path.read_bytes() for path in shard_folder.iterdir()} == before
    assert [path.name for path in shard_folder.parent.iterdir()] == ["s"]


@pytest.mark.parametrize("column", ["hr", "lr"])
def test_a_flipped_byte_names_shard_and_row(shard_folder, column):
    """SHA-256 sees it; the other rows are still read; a scan lists it."""
    path = sorted(shard_folder.iterdir())[1]
    number = pq.ParquetFile(sorted(shard_folder.iterdir())[0]).metadata.num_rows + 3
    stored = pq.read_table(path)[column][3].as_py()
    data = bytearray(path.read_bytes())
    assert data.count(stored) == 1  # no copy of it in the statistics
    at = data.find(stored)
    data[at + len(stored) // 2] ^= 1
    path.write_bytes(data)
    read = Shards(shard_folder)
    read[number - 1]
    line = rf"00001\.parquet: row 3 of row group 0 \(id {read.ids[number]}\) is damaged"
    with pytest.raises(ValueError, match=line):
        read[number]
    count, lines = rows.damages(path)
    assert count == pq.ParquetFile(path).metadata.num_rows and len(lines) == 1
    assert [rows.damages(other)[1] for other in shard_files(shard_folder) if other != path] == [
        []
    ] * (len(shard_files(shard_folder)) - 1)


def test_broken_missing_and_foreign_files_are_named(shard_folder, tmp_path):
    """A cut shard, a shard deleted meanwhile, another schema, another writer, no shard at all."""
    read = Shards(shard_folder)
    path = sorted(shard_folder.iterdir())[0]
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"00000\.parquet: damaged or missing shard"):
        read[0]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"00000\.parquet: damaged or missing shard") as error:
        Shards(shard_folder)
    assert "\n" not in str(error.value)
    assert rows.damages(path) == (0, [str(error.value)])
    table = pq.read_table(sorted(shard_folder.iterdir())[1])
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match=r"00000\.parquet: not a shard of schema version 2"):
        Shards(shard_folder)
    pq.write_table(table, path)
    sorted(shard_folder.iterdir())[1].unlink()
    with pytest.raises(
        ValueError, match=r"00000\.parquet: column hr was not written by gdpo/data/writer\.py"
    ):
        Shards(shard_folder)[0]
    with pytest.raises(ValueError, match="no shards here"):
        Shards(tmp_path / "nothing")


def test_parts_that_are_missing_or_left_over_are_named(tmp_path):
    """A set is read whole or not at all."""
    for name in ("00", "01"):
        write_shards(tmp_path / "train" / name, [noise_pair(int(name))], 1.0, ["00", "01"])
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


def test_a_pair_that_is_there_twice_is_named(shard_folder):
    """Two shards with the same row."""
    write_shards(shard_folder.parent / "t", [noise_pair(5)], 1.0)
    (shard_folder.parent / "t/00000.parquet").rename(shard_folder / "99999.parquet")
    with pytest.raises(ValueError, match=r"the pair id0094 occurs twice"):
        Shards(shard_folder)


def test_text_that_is_none_names_shard_and_row(shard_folder):
    """Parquet does not look at it when it reads."""
    path = shard_files(shard_folder)[0]
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
