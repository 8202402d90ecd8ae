"""The paper's figures as data, and the tables that put ours beside them."""

import csv
from pathlib import Path

import pytest

from tasks.report import blocks, paper
from tasks.report.blocks import Run, same
from tasks.report.published import tables
from tasks.report.sweeps import Sweep
from tasks.report.tables import Table, to_csv, to_html, to_markdown
from tests.tasks.printed import printed

TABLE_4 = Path(__file__).parents[1] / "paper_table_4.csv"


def found(
    runs: list[Run] | None = None,
    sweeps: dict[str, Sweep] | None = None,
    inference: list[dict[str, object]] | None = None,
) -> dict[str, Table]:
    return {table.name: table for table in tables(runs or [], sweeps or {}, inference or [])}


def rows(table: Table, **wanted: str) -> list[dict[str, str]]:
    texts = [
        dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows
    ]
    return [row for row in texts if all(row[key] == value for key, value in wanted.items())]


def test_every_value_is_the_printed_one() -> None:
    read = {
        str(number): {
            (dataset, method): values
            for dataset, methods in table.results.items()
            for method, values in methods.items()
        }
        for number, table in paper.TABLES.items()
    }
    assert read == {number: printed(number) for number in read}
    header, *lines = csv.reader(TABLE_4.read_text().splitlines())
    assert tuple(header[1:]) == paper.TABLE_4_METHODS
    assert {name: tuple(map(float, values)) for name, *values in lines} == paper.TABLE_4


def test_the_tables_agree_about_gdpo_sr() -> None:
    main = paper.TABLES[1].results
    for number in (2, 3, 12):
        for dataset, methods in paper.TABLES[number].results.items():
            assert methods[paper.OURS] == main[dataset][paper.OURS]
    middle = {
        column: value for column, value in main["RealSR"][paper.OURS].items() if column != "FID"
    }
    assert paper.TABLES[10].results["RealSR"]["250"] == middle


def test_tables_have_the_papers_shape() -> None:
    made = found()
    assert list(made) == [
        "table-1",
        "table-2",
        "table-3",
        "table-4",
        "figure-7",
        "table-8",
        "table-10",
        "table-12",
    ]
    counts = {number: len(rows(made[f"table-{number}"], From="paper")) for number in paper.TABLES}
    assert counts == {1: 6, 2: 21, 3: 4, 8: 2, 10: 3, 12: 12}
    assert rows(made["table-3"], Dataset="RealSR", Method="DP2O-SR")[0]["AFINE ↓"] == "8.654"
    for table in made.values():
        assert all(len(row) == len(table.header) for row in table.rows)


def test_without_a_run_every_cell_of_ours_is_empty_and_says_why() -> None:
    for name, table in found().items():
        for row in rows(table, From="ours") if "From" in table.header else []:
            assert set(list(row.values())[3:]) == {"–"}, name
    assert (
        "RealSR: nothing of ours, the benchmark realsr was not evaluated."
        in found()["table-1"].notes
    )
    assert any("benchmarks.inference" in note for note in found()["table-4"].notes)
    assert any("benchmarks/sweep.py" in note for note in found()["figure-7"].notes)
    assert any(
        "benchmarks/sweep.py --benchmark realsr" in note for note in found()["table-10"].notes
    )


def test_tables_say_which_of_our_metrics_stand_in_the_papers_columns() -> None:
    for name in ("table-1", "table-2", "table-3", "table-8", "table-10", "table-12"):
        note = next(note for note in found()[name].notes if "Our names of the columns" in note)
        assert (
            "maniqa_pipal" in note
            and "lpips_alex" in note
            and ("fid" in note) == (name != "table-10")
        )


@pytest.fixture
def realsr() -> Run:
    models = {
        "bicubic": {"psnr_y": [24.0]},
        "osediff": {"psnr_y": [25.1]},
        "NAOSD": {"psnr_y": [25.0, 26.0], "fid": [110.0, 120.0]},
        "GDPO-SR": {"psnr_y": [25.2, 25.4], "fid": [111.0, 112.0]},
    }
    return Run("realsr", 2, models)


def test_one_noise_in_table_1_and_all_in_table_8(realsr: Run) -> None:
    made = found([realsr])
    gdpo = {
        name: rows(made[name], Dataset="RealSR", Method="GDPO-SR", From="ours")[0]
        for name in ("table-1", "table-8")
    }
    assert (gdpo["table-1"]["PSNR ↑"], gdpo["table-1"]["FID ↓"]) == ("25.20", "111.00")
    assert (gdpo["table-8"]["PSNR ↑"], gdpo["table-8"]["FID ↓"]) == ("25.30", "111.50")
    assert gdpo["table-1"]["SSIM ↑"] == "–"
    assert any(note.startswith("realsr: SSIM, LPIPS, DISTS") for note in made["table-1"].notes)


def test_a_peers_row_of_ours_stands_below_the_papers(realsr: Run) -> None:
    made = found([realsr])["table-2"]
    pair = rows(made, Dataset="RealSR", Method="OSEDiff")
    assert [row["From"] for row in pair] == ["paper", "ours"] and [
        row["PSNR ↑"] for row in pair
    ] == ["25.15", "25.10"]
    assert not rows(made, Dataset="RealSR", Method="SeeSR", From="ours")
    assert any(
        "no outputs of StableSR, DiffBIR, SeeSR, PASD, InvSR were given" in note
        for note in made.notes
    )


def test_the_best_is_the_best_of_its_source(realsr: Run) -> None:
    table = found([realsr])["table-1"]
    column = table.header.index("FID ↓")
    best = {(row[0].text, row[1].text, row[2].text) for row in table.rows if row[column].best}
    assert ("RealSR", "GDPO-SR", "paper") in best and ("RealSR", "NAOSD", "ours") in best


def test_a_benchmark_the_paper_has_not_is_a_block_of_its_own() -> None:
    sample = Run("sample", 8, {"NAOSD": {"psnr_y": [27.0] * 8}, "GDPO-SR": {"psnr_y": [27.1] * 8}})
    made = found([sample])
    assert [row["Method"] for row in rows(made["table-1"], Dataset="sample")] == [
        "NAOSD",
        "GDPO-SR",
    ]
    assert not rows(made["table-2"], Dataset="sample")


def test_sweeps_fill_table_10_and_figure_7() -> None:
    sweep: Sweep = {
        "ours": {f"{t},100": {"psnr_y": [25.0 + t / 1000, 1.0]} for t in (150, 250, 350)},
        "baseline": {f"{a},{d}": {"psnr_y": [20.0, 20.0 + a / 1000]} for a, d in paper.FIGURE_7},
    }
    made = found(sweeps={"realsr": sweep})
    ours = rows(made["table-10"], From="ours")
    assert [row["PSNR ↑"] for row in ours] == ["25.15", "25.25", "25.35"] and ours[0][
        "Method"
    ] == "GDPO-SR (t_add=150)"
    ranges = {row["(t_add, t_diff)"]: row["PSNR-Y range"] for row in rows(made["figure-7"])}
    assert ranges == {
        "(100, 100)": "0.1000",
        "(250, 250)": "0.2500",
        "(500, 500)": "0.5000",
        "(250, 100)": "0.2500",
    }
    assert "MUSIQ: not computed (evaluate.metrics)." in made["figure-7"].notes


def test_measured_models_are_columns_of_table_4() -> None:
    row: dict[str, object] = {
        "model": "SD2.1-base",
        "parameters": 1.761e9,
        "macs": 2.27e12,
        "seconds": None,
        "note": "counted.",
    }
    table = found(inference=[row])["table-4"]
    assert table.header[-1] == "GDPO-SR (ours, SD2.1-base)"
    assert [cells[-1].text for cells in table.rows] == ["1.76", "–", "2.27"]
    assert table.notes[-1] == "SD2.1-base: counted."


def test_names_of_methods_are_compared_without_case_and_marks() -> None:
    assert same("DP2O-SR", "dp2osr") and same("OSEDiff", "osediff") and not same("SeeSR", "DP2O-SR")


def test_notes_are_in_every_format_but_csv() -> None:
    table = Table("c", ["a"], [], "n", ["<b> & so"])
    assert "- <b> & so" in to_markdown(table) and "<li>&lt;b&gt; &amp; so</li>" in to_html(table)
    assert to_csv(table) == "a\n"


def test_means() -> None:
    assert blocks.first_noise([3.0, 5.0]) == 3.0 and blocks.mean([3.0, 5.0]) == 4.0
