"""Tables and sentences: one source, honest words, no markup from names."""

import csv
import io
from typing import Any

import pytest

from gdpo.evaluate.statistics import summarise
from gdpo.metrics.table import METRICS
from tasks.report.tables import (
    Cell,
    Table,
    differences_table,
    label,
    models_table,
    number,
    p_text,
    to_csv,
    to_html,
    to_markdown,
    to_text,
)
from tasks.report.verdict import claims, headline, verdict_sentence
from tests.tasks import fabricated


def summary(gain: float, images: int = 12) -> dict[str, Any]:
    return {
        **fabricated.ABOUT,
        "images": images,
        "photographs": images,
        "noises": 8,
        "reward": {"fidelity": ["psnr_y"], "perception": ["niqe"]},
        "metrics": {
            metric: {"higher_is_better": higher} for metric, higher in fabricated.HIGHER.items()
        },
        **summarise(
            fabricated.scores(images, 8, gain),
            fabricated.HIGHER,
            fabricated.PAIRS,
            unit_of="naosd",
            photographs=[f"{i}" for i in range(images)],
        ),
    }


def test_the_best_of_a_column_follows_the_direction_of_the_metric() -> None:
    table = models_table(summary(2.0))
    assert table.header == ["Model", "PSNR-Y ↑", "NIQE (own fit) ↓", "Reward ↑"]
    best = {row[0].text: [cell.best for cell in row[1:]] for row in table.rows}
    assert best["GDPO-SR"] == [True, True, True] and not any(best["NAOSD"])


def test_distances_of_sets_are_columns_with_their_spread_over_noises() -> None:
    table = models_table(
        {
            **summary(2.0),
            "sets": {"fid": {"bicubic": [40.0], "naosd": [20.0, 22.0], "gdpo": [19.0, 19.0]}},
        }
    )
    assert table.header[-1] == "FID ↓" and "FID: of all images together" in table.caption
    texts = {row[0].text: (row[-1].text, row[-1].best) for row in table.rows}
    assert texts == {
        "Bicubic": ("40.00 ± –", False),
        "NAOSD": ("21.00 ± 1.00", False),
        "GDPO-SR": ("19.00 ± 0.00", True),
        "Control": ("–", False),
    }


@pytest.mark.parametrize("table", [models_table, differences_table])
def test_a_caption_says_what_is_behind_the_heading_niqe(table: Any) -> None:
    found = summary(2.0)
    assert "so no published NIQE compares" in table(found).caption
    rows = [row for row in found["differences"] if row["metric"] != "niqe"]
    metrics = {name: direction for name, direction in found["metrics"].items() if name != "niqe"}
    assert "NIQE" not in table({**found, "metrics": metrics, "differences": rows}).caption


def test_headings_tell_the_variants_of_a_metric_apart() -> None:
    names = [label(metric) for metric in METRICS]
    assert len(set(names)) == len(names)
    for family in ("NIQE", "MANIQA"):
        assert all(name.startswith(f"{family} (") for name in names if family == name.split()[0])


def test_intervals_say_how_many_photographs_they_come_from() -> None:
    assert "over 12 photographs, tiles" in differences_table(summary(2.0)).caption
    tiled = {**summary(2.0), "photographs": 3}
    assert "over 3 photographs (12 tiles), tiles" in differences_table(tiled).caption


def test_verdict_of_a_gain_and_of_none() -> None:
    good = summary(2.0)
    assert headline(good).startswith("GDPO-SR is better than NAOSD: reward +")
    assert "better: PSNR-Y, NIQE (own fit)" in verdict_sentence(good)
    assert [claim.holds for claim in claims(good)] == [True] * 3
    none = summary(0.0)
    assert headline(none).startswith("No sure difference between GDPO-SR and NAOSD: reward ")
    assert "no sure difference: PSNR-Y, NIQE" in verdict_sentence(none)
    assert [claim.holds for claim in claims(none)][:2] == [False] * 2
    assert headline(summary(-2.0)).startswith("GDPO-SR is worse than NAOSD: reward −")


def test_a_gain_that_the_control_shares_is_called_so() -> None:
    scores = fabricated.scores(12, 8, 2.0)
    scores["control"] = scores["gdpo"]
    shared = {
        **summary(2.0),
        **summarise(
            scores,
            fabricated.HIGHER,
            fabricated.PAIRS,
            unit_of="naosd",
            photographs=[f"{i}" for i in range(12)],
        ),
    }
    assert headline(shared).startswith(
        "GDPO-SR gains on NAOSD, but not surely more than its control"
    )
    assert "Whether the preferences matter is open" in verdict_sentence(shared)
    assert "changed, but not surely other than in the control: PSNR-Y" in verdict_sentence(shared)
    assert [claim.holds for claim in claims(shared)][:2] == [False] * 2


def test_a_loss_of_psnr_breaks_its_promise() -> None:
    assert not claims(summary(-1.0))[2].holds


def test_a_metric_outside_the_reward_is_judged_by_itself() -> None:
    found = {**summary(2.0), "reward": {"fidelity": [], "perception": ["niqe"]}}
    assert [(claim.text, claim.holds) for claim in claims(found)][2] == (
        "A metric outside the reward improves",
        True,
    )


def test_where_bicubic_leads_in_psnr_it_is_said_why() -> None:
    assert "Bicubic has the highest PSNR" not in verdict_sentence(summary(2.0))
    assert "Bicubic has the highest PSNR" in verdict_sentence(_bicubic_first())


def _bicubic_first() -> dict[str, Any]:
    found = summary(2.0)
    found["models"]["bicubic"]["psnr_y"]["mean"] = 99.0
    return found


def test_the_best_is_bold_on_a_terminal_and_has_a_star_elsewhere() -> None:
    table = models_table(summary(2.0))
    plain, terminal = to_text(table), to_text(table, bold=True)
    assert plain.count("*") == 3 and "\033" not in plain
    assert terminal.count("\033[1m") == 3 and "*" not in terminal


def test_one_image_has_no_interval_and_no_verdict() -> None:
    one = summary(5.0, images=1)
    assert "one image: no interval" in verdict_sentence(one)
    assert "–" in to_text(differences_table(one)) and "± –" in to_text(models_table(one))


def test_the_three_formats_say_the_same() -> None:
    table = differences_table(summary(2.0))
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == table.header and len(rows) == len(table.rows) + 1
    assert float(rows[1][2]) == table.rows[0][2].value
    markdown = to_markdown(table).splitlines()
    assert markdown[2].count("|") == len(table.header) + 1 and "**better**" in markdown[2]
    html = to_html(table)
    assert html.count("<tr>") == len(table.rows) + 1 and "<strong>better</strong>" in html
    assert f'data-value="{table.rows[0][2].value!r}"' in html


def test_markup_in_texts_stays_text() -> None:
    table = Table("<i>", ["<b>", "|"], [[Cell("<script>"), Cell("a|b", 1.0)]])
    html = to_html(table)
    assert (
        "<script>" not in html
        and "&lt;script&gt;" in html
        and "<b>" not in html
        and "<i>" not in html
    )
    assert "a\\|b" in to_markdown(table)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (-1.239, "−1.24"), (2.0, "2.00"), (None, "–")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value, 2) == text


def test_p_values() -> None:
    assert [p_text(p) for p in (0.0004, 0.0104, None)] == ["< 0.001", "0.010", "–"]
