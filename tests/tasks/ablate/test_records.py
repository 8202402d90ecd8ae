"""Our measurements beside the paper's: records, the overview, the CSV and the sentences."""

import math
from typing import Any

import numpy as np
import pytest

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD, rewards
from tasks.ablate.effects import (
    AGREES,
    DISAGREES,
    UNCLEAR,
)
from tasks.ablate.figure_7 import figure_7, figure_7_tables
from tasks.ablate.findings import (
    RowScores,
    add_reward,
    beyond_controls,
    records,
    signs,
    what_matters,
)
from tasks.ablate.rows import ABLATIONS, base, changed, metrics_of
from tasks.ablate.tables import details, flat, overview, rewarded, verdicts
from tasks.report import paper
from tasks.report.tables import Table, to_csv
from tests import tiny

Scores = dict[str, np.ndarray]


def scores(config: Config, shift: float = 0.0, repeats: int = 3, seed: int = 0) -> Scores:
    """(6 images, repeats, 4 noises): the same noise for all rows of a seed, shifted; higher by
    `shift` in every metric.
    """
    rng = np.random.default_rng(seed)
    images = {metric: rng.normal(20, 1, (6, 1, 1)) for metric in metrics_of(config)}
    noise = rng.normal(0, 0.1, (6, repeats, 4))
    return {metric: image + noise + shift for metric, image in images.items()}


@pytest.fixture
def config() -> Config:
    return base(tiny.settings())


def measured(config: Config, shifts: dict[str, float]) -> tuple[Scores, dict[str, RowScores]]:
    reference = scores(config, repeats=1)
    found = {
        name: RowScores(scores(config, shift), scores(config)) for name, shift in shifts.items()
    }
    runs: list[Any] = [
        part for result in found.values() for part in (result.scores, result.control)
    ]
    add_reward(config, reference, np.full(6, 0.3), runs)
    return reference, found


def test_records_hold_ours_the_papers_and_the_signs(config: Config) -> None:
    reference, found = measured(
        config, {"Diffusion-DPO": 0.5, "DanceGRPO": -0.5, "GDPO (ours)": 1.0, "AWM": 0.0}
    )
    made = {(r["row"], r["column"]): r for r in records("5", config, reference, found)}
    dpo = made["Diffusion-DPO", "PSNR"]
    assert (
        dpo["paper"] == 25.41 and dpo["paper_to_naosd"] == 0.16 and dpo["sign_to_naosd"] == AGREES
    )
    assert dpo["to_control"]["mean"] == pytest.approx(0.5) and dpo["to_gdpo"][
        "mean"
    ] == pytest.approx(-0.5)
    assert dpo["paper_to_gdpo"] == -0.07 and dpo["sign_to_gdpo"] == AGREES
    # Ours is SSIM, which rises; DISTS rises too, and that is worse.
    assert (
        made["Diffusion-DPO", "DISTS"]["metric"] == "ssim_y"
        and made["Diffusion-DPO", "DISTS"]["sign_to_naosd"] == DISAGREES
    )
    assert (
        made["DanceGRPO", "PSNR"]["sign_to_naosd"] == AGREES
        and made["DanceGRPO", "MUSIQ"]["sign_to_naosd"] == AGREES
    )
    assert (
        made["AWM", "PSNR"]["sign_to_naosd"] is None
        and not made["AWM", "PSNR"]["to_control"]["distinguishable"]
    )
    assert made["NAOSD", "PSNR"]["to_naosd"] is None and made["NAOSD", REWARD][
        "ours"
    ] == pytest.approx(0, abs=1e-12)
    assert (
        made["GDPO (ours)", "FID"]["metric"] is None
        and made["GDPO (ours)", "FID"]["paper"] == 112.13
    )
    assert (
        made["GDPO (ours)", "PSNR"]["to_gdpo"] is None
        and made["GDPO (ours)", "PSNR"]["paper_to_gdpo"] is None
    )
    assert {verdict for _, _, verdict, _ in signs(list(made.values()))} <= {
        AGREES,
        DISAGREES,
        UNCLEAR,
    }


def test_what_training_alone_does_is_taken_out(config: Config) -> None:
    """Two rows that gain the same, one of them no more than its shuffled control."""
    reference = scores(config, repeats=1)
    gains = {"Diffusion-DPO": (0.5, 0.5), "GDPO (ours)": (0.5, 0.0)}
    found = {
        row: RowScores(scores(config, gain), scores(config, control))
        for row, (gain, control) in gains.items()
    }
    add_reward(
        config,
        reference,
        np.full(6, 0.3),
        [part for r in found.values() for part in (r.scores, r.control or {})],
    )
    made = {(r["row"], r["column"]): r for r in records("5", config, reference, found)}
    dpo, gdpo = made["Diffusion-DPO", "PSNR"], made["GDPO (ours)", "PSNR"]
    assert dpo["to_gdpo"]["mean"] == pytest.approx(0) and dpo["control_to_gdpo"][
        "mean"
    ] == pytest.approx(0.5)
    assert (
        dpo["beyond_controls_to_gdpo"]["mean"] == pytest.approx(-0.5)
        and dpo["beyond_controls_to_gdpo"]["distinguishable"]
    )
    assert dpo["sign_to_naosd"] == gdpo["sign_to_naosd"] == AGREES
    assert [beyond_controls(r, "to_naosd") for r in (dpo, gdpo)] == [
        False,
        True,
    ] and not beyond_controls(dpo, "to_gdpo")
    table = overview("5", list(made.values()), config)
    assert (
        texts(table, "Diffusion-DPO", "sign to NAOSD")["PSNR ↑"] == "agrees, not beyond the control"
    )
    assert texts(table, "GDPO (ours)", "sign to NAOSD")["PSNR ↑"] == "agrees, beyond the control"
    # PSNR and MUSIQ, AFINE, DISTS: each of ours in one column; 4 signs of 4 differences, of which 2
    # agree for GDPO.
    assert any(
        note.startswith("Signs of the differences to NAOSD: ") and "8 signs, 8 measured" in note
        for note in table.notes
    )


def test_a_metric_in_two_columns_is_one_measurement(config: Config) -> None:
    reference, found = measured(config, {"ARF w/ NR": 0.5, "ARF (ours)": 0.5})
    notes = verdicts(records("6", config, reference, found))
    assert notes[0].startswith("Signs of the differences to NAOSD: ") and notes[0].endswith(
        "8 signs, 6 measured differences."
    )


def test_what_rows_are_trained_for_is_said_where_it_is_not_the_papers(config: Config) -> None:
    reference, found = measured(config, {"PSNR": 0.5, "LPIPS": 0.5})
    notes = overview("9", records("9", config, reference, found), config).notes
    assert any(
        note.startswith("The rows LPIPS and PSNR+LPIPS are trained for GMSD") for note in notes
    )
    assert any(note.startswith("All rows are trained for ") for note in rewarded("6", config))
    papers = {"reward": {"perception": ["musiq"]}, "rollout": {"metrics": ["psnr_y", "musiq"]}}
    assert rewarded("6", changed(config, papers)) == []


def test_the_reward_is_that_of_the_evaluation(config: Config) -> None:
    reference, found = measured(config, {"GDPO (ours)": 0.7})
    mine = found["GDPO (ours)"].scores
    flat_ = {m: v.reshape(6, -1) for m, v in mine.items() if m != REWARD}
    plain = {m: v[:, 0] for m, v in reference.items() if m != REWARD}
    known = rewards({"naosd": plain, "run": flat_}, np.full(6, 0.3), config.reward, "naosd")
    assert np.allclose(mine[REWARD].reshape(6, -1), known["run"])


def texts(table: Table, row: str, line: str) -> dict[str, str]:
    found = next(cells for cells in table.rows if (cells[0].text, cells[1].text) == (row, line))
    return dict(zip(table.header, (cell.text for cell in found), strict=True))


def test_the_overview_has_ours_and_the_control_beside_the_papers(config: Config) -> None:
    reference, found = measured(
        config, {"Diffusion-DPO": 0.5, "DanceGRPO": -0.5, "GDPO (ours)": 1.0, "AWM": 0.0}
    )
    made = records("5", config, reference, found)
    table = overview("5", made, config, ["a note"])
    assert texts(table, "DanceGRPO", "paper (− NAOSD)")["AFINE ↓ (ours: PIQE ↓)"] == "16.52 (−4.00)"
    assert texts(table, "DanceGRPO", "sign to NAOSD")["PSNR ↑"] == "agrees, beyond the control"
    assert texts(table, "GDPO (ours)", "ours − NAOSD")["PSNR ↑"].startswith("+0.977 (+0.894 to ")
    assert texts(table, "AWM", "control − NAOSD")["FID ↓ (ours: none)"] == "–"
    assert texts(table, "NAOSD", "ours")["Reward ↑"] == "0"
    assert {"a note", *ABLATIONS["5"].remarks} <= set(table.notes)
    assert any(
        note.startswith("MUSIQ: not in evaluate.metrics") and "NIQE" in note for note in table.notes
    )
    assert any(
        note.startswith("Disagreeing: Diffusion-DPO, DISTS to NAOSD") for note in table.notes
    )
    whole = details("5", made, config)
    assert texts(whole, "Diffusion-DPO", "− GDPO, sign")["PSNR ↑"] == "agrees, beyond the control"
    assert texts(whole, "Diffusion-DPO", "control − GDPO's control")["PSNR ↑"].startswith(
        "+0.000 ("
    )
    assert texts(whole, "Diffusion-DPO", "− GDPO, beyond the controls")["PSNR ↑"].startswith("−0.5")
    assert texts(whole, "AWM", "− NAOSD, by repeat")["PSNR ↑"].count(",") == 2
    assert "NAOSD" not in {cells[0].text for cells in whole.rows}


def test_the_csv_has_every_number_unrounded(config: Config) -> None:
    reference, found = measured(config, {"GDPO (ours)": 1.0})
    made = records("5", config, reference, found)
    lines = [line.split(",") for line in to_csv(flat("5", made)).splitlines()]
    row = dict(
        zip(
            lines[0],
            next(line for line in lines if line[:2] == ["GDPO (ours)", "PSNR"]),
            strict=True,
        )
    )
    psnr = next(r for r in made if r["row"] == "GDPO (ours)" and r["column"] == "PSNR")
    assert (
        float(row["to_control.low"]) == psnr["to_control"]["low"]
        and row["paper"] == "25.48"
        and row["to_gdpo.mean"] == ""
    )


def test_one_sentence_says_what_matters(config: Config) -> None:
    reference, found = measured(config, {"GDPO": 0.5, "noise: shared": 0.5, "omega: 5000": -0.5})
    sentence = what_matters(records("options", config, reference, found))
    assert (
        sentence.startswith(
            "Against GDPO and beyond the controls the reward changes with omega: 5000 ("
        )
        and "not distinguishable are noise: shared" in sentence
    )
    reference, found = measured(config, {"GDPO": 0.5, "noise: shared": 0.5})
    sentence = what_matters(records("options", config, reference, found))
    assert sentence.startswith(
        "Beyond the controls none is distinguishable from GDPO in the reward at this scale: "
        "noise: shared ("
    )


def test_figure_7_holds_the_claims_of_the_text_against_ours(config: Config) -> None:
    reference = scores(config, repeats=1)
    found = {}
    for factor, setting in zip((1, 2, 4, 2), paper.FIGURE_7, strict=True):
        same = scores(config)
        spread = {
            m: v.mean(axis=2, keepdims=True) * (1 - factor / 100)
            + factor * (v - v.mean(axis=2, keepdims=True))
            for m, v in same.items()
        }
        found[f"({setting[0]}, {setting[1]})"] = RowScores(spread)
    runs = [result.scores for result in found.values()]
    add_reward(config, reference, np.full(6, 0.3), runs)
    made, claims = figure_7(config, reference, found)
    assert [c["row"] for c in claims] == ["(250, 250)"] * 6 + ["(500, 500)"] * 6 + [
        "(250, 100)"
    ] * 6
    # Every metric falls here and its range grows: PSNR as the paper says, and NIQE, which is better
    # lower, as MUSIQ rises. The last setting is the second here, and neither is better.
    of_images = [c["sign"] for c in claims if c["of"] != "of the set's mean"]
    assert of_images == [AGREES] * 11 + [UNCLEAR] and claims[-1]["against"] == "(250, 250)"
    of_the_set = [c for c in claims if c["of"] == "of the set's mean"]
    assert len(of_the_set) == 6 and all(
        len(c["repeats"]) == 3 and c["mean"] > 0 for c in of_the_set
    )
    by_row = {(r["row"], r["metric"]): r for r in made}
    assert by_row["(250, 250)", "psnr_y"]["range_of_an_image"] == pytest.approx(
        2 * by_row["(100, 100)", "psnr_y"]["range_of_an_image"]
    )
    first, second = figure_7_tables(made, claims, config)
    assert [cells[0].text for cells in first.rows] == [f"({a}, {d})" for a, d in paper.FIGURE_7]
    assert second.rows[0][1].text == "the range of PSNR is larger" and not math.isnan(
        made[0]["range"]
    )
