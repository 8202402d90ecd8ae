"""`gdpo-sr doctor --shards`: every row is read, every damaged one listed."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gdpo.data.shards import shard_files
from tasks import __main__ as cli
from tests import tiny


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("train/00", "train/01", "evaluation"):
        tiny.write_shards(tmp_path / "data/shards" / folder, (tiny.pair(i) for i in range(6)), 0.01)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damage(path: Path, row: int) -> str:
    """Flip a bit in one image; its id."""
    stored = pq.read_table(path).slice(row, 1).to_pylist()[0]
    data = bytearray(path.read_bytes())
    data[data.find(stored["hr"]) + 40] ^= 1
    path.write_bytes(data)
    return str(stored["id"])


def test_whole_shards_exit_0(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--shards"]) == 0
    assert (
        capsys.readouterr().out == f"18 rows in {len(shard_files(place))} shards, nothing damaged\n"
    )
    assert cli.main(["doctor", "--shards", "data/shards/evaluation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "shards": len(shard_files(place / "data/shards/evaluation")),
        "rows": 6,
        "damaged": [],
    }


def test_every_damaged_row_and_file_is_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_, last = shard_files(place / "data/shards/train")
    ids = [damage(first, 0), damage(last, 0)]
    second.write_bytes(second.read_bytes()[:-20])
    assert cli.main(["doctor", "--shards"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [ids[0] in lines[0], second.name in lines[1], ids[1] in lines[2]] == [True] * 3
    assert len(lines) == 4 and lines[-1].endswith("3 damaged")
    assert str(first.relative_to(place)) in lines[0] and "row 0 of row group 0" in lines[0]


def test_no_shards_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--shards", "nowhere"]) == 1
    assert capsys.readouterr().err == "gdpo-sr: nowhere: no shards here; run the degrade stage\n"
