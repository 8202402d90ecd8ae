"""`gdpo-sr tables`: what it reads, prints and writes."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.model.card import IDENTITIES
from tasks import __main__ as cli
from tasks.report import paper
from tasks.report.paper_tables import paper_tables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An evaluated RealSR with two noises, FID among the metrics, and a sweep."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "reports/evaluate/realsr"
    out.mkdir(parents=True)
    rows = [
        {
            "image": image,
            "model": model,
            "noise": noise,
            "psnr_y": 24.0 + noise + (image == "b"),
            "reward": 0.0,
        }
        for model in ("base", "mine")
        for image in ("a", "b")
        for noise in (1, 0)
    ]
    cards = {"base": IDENTITIES["naosd"].model_dump(), "mine": IDENTITIES["gdpo"].model_dump()}
    weights = {"base": "1", "mine": "2", "control": "3"}
    origin = {"models": json.dumps(cards), "weights": json.dumps(weights)}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(origin)
    pq.write_table(table, out / "per_image.parquet")
    sets = {"fid": {"base": [110.0, 120.0], "mine": [100.0, 104.0]}}
    (out / "summary.json").write_text(json.dumps({"sets": sets}))
    sweep = {
        "ours": {f"{t},100": {"psnr_y": [25.0]} for t in paper.T_ADD_TABLE_10},
        "baseline": {f"{a},{d}": {"psnr_y": [25.0, 26.0]} for a, d in paper.FIGURE_7},
    }
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/sweep.json").write_text(
        json.dumps({"results": {"realsr": sweep}})
    )
    return tmp_path


def cells(folder: Path, name: str) -> list[list[str]]:
    table = next(table for table in paper_tables(folder) if table.name == name)
    return [[cell.text for cell in row] for row in table.rows]


def test_ours_come_from_what_was_evaluated(folder: Path) -> None:
    assert [
        "RealSR",
        "GDPO-SR",
        "ours",
        "24.50",
        "–",
        "–",
        "100.00",
        "–",
        "–",
        "–",
        "–",
        "–",
    ] in cells(folder, "table-1")
    assert [
        "RealSR",
        "NAOSD",
        "ours",
        "25.00",
        "–",
        "–",
        "115.00",
        "–",
        "–",
        "–",
        "–",
        "–",
    ] in cells(folder, "table-8")
    assert ["realsr", "(500, 500)", "ours", "1.0000", "25.5000", "–", "–"] in cells(
        folder, "figure-7"
    )


def test_a_sweep_of_other_weights_says_so(folder: Path) -> None:
    path = folder / "benchmarks/results/sweep.json"
    content = json.loads(path.read_text())
    for weights, said in (
        ({"baseline": "1", "ours": "2"}, False),
        ({"baseline": "1", "ours": "0"}, True),
    ):
        path.write_text(json.dumps({**content, "origin": {"realsr": {"weights": weights}}}))
        for table in paper_tables(folder):
            assert any("other weights" in note for note in table.notes) == (
                said and table.name in ("table-10", "figure-7")
            )


def test_printed_as_text_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables"]) == 0
    assert "Table 10 of the paper" in capsys.readouterr().out
    assert cli.main(["tables", "--json"]) == 0
    assert [table["name"] for table in json.loads(capsys.readouterr().out)][-1] == "table-12"


def test_written_in_three_formats_from_one_source(folder: Path) -> None:
    assert cli.main(["tables", "--out", "made"]) == 0
    names = {path.name for path in (folder / "made").iterdir()}
    assert names == {
        f"{table.name}.{suffix}"
        for table in paper_tables(folder)
        for suffix in ("md", "csv", "html")
    }
    found = list(csv.reader(io.StringIO((folder / "made/table-3.csv").read_text())))
    assert found[4][:4] == ["RealSR", "DP2O-SR", "paper", "22.39"]
    for suffix in ("md", "html"):
        text = (folder / f"made/table-3.{suffix}").read_text()
        assert "DP2O-SR" in text and "22.39" in text and "Ours: noise 0" in text


def test_a_damaged_file_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "benchmarks/results/sweep.json").write_text("{}")
    assert cli.main(["tables"]) == 1
    assert capsys.readouterr().err.startswith(
        "gdpo-sr: benchmarks/results/sweep.json: damaged ('results')"
    )
    (folder / "benchmarks/results/sweep.json").unlink()
    (folder / "reports/evaluate/realsr/per_image.parquet").write_bytes(b"x")
    assert cli.main(["tables"]) == 1
    assert "per_image.parquet: not a file of the evaluate stage" in capsys.readouterr().err


def test_with_nothing_measured_the_papers_figures_stand_alone(tmp_path: Path) -> None:
    assert [row[2] for row in cells(tmp_path, "table-8")] == ["paper", "ours", "paper", "ours"]
