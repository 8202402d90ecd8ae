"""What GRPO has changed, metric by metric, and tables without a reward that has no unit."""

from tasks.report.by_metric import (
    changed,
    differences_table,
    enlarged,
    scores_table,
    without_reward,
)
from tasks.report.summary import artifact
from tests.tasks.fabricated import SMALL

ROWS = [
    {
        "a": "gdpo",
        "b": "naosd",
        "metric": metric,
        "mean": mean,
        "standard_error": 0.05,
        "low": mean - 0.1,
        "high": mean + 0.1,
        "p": p,
        "verdict": verdict,
    }
    for metric, mean, p, verdict in (
        ("psnr_y", 0.3, 0.001, "better"),
        ("niqe", 0.05, 0.3, "not significant"),
        ("reward", 1.0, 0.001, "better"),
    )
]


def test_what_grpo_has_changed_is_said_with_its_interval() -> None:
    first, *others = changed({**SMALL, "differences": ROWS})
    assert "psnr" in first.lower() and "(better)" in first and "niqe" not in first.lower()
    assert len(others) == 2 and "+0.3" in others[0] and "not significant" in others[1]
    first, *_ = changed({**SMALL, "differences": ROWS[1:]})
    assert "none of these" in first


def test_the_cold_start_against_bicubic_in_one_sentence() -> None:
    rows = [{**row, "a": "naosd", "b": "bicubic"} for row in ROWS]
    text = enlarged({**SMALL, "differences": rows})
    assert text.startswith("NAOSD minus bicubic: ") and "+0.300 (better); " in text
    assert "reward" not in text.lower()
    assert enlarged({**SMALL, "differences": ROWS}) == ""


def test_with_one_sample_no_reward_is_shown() -> None:
    value = {"mean": 20.0, "standard_error": 0.1}
    one = {
        **SMALL,
        "noises": 1,
        "metrics": {**SMALL["metrics"], "psnr_y": {"higher_is_better": True}},
        "models": {name: {"reward": value, "psnr_y": value} for name in SMALL["models"]},
        "differences": ROWS,
    }
    assert [row["metric"] for row in without_reward(one)["differences"]] == ["psnr_y", "niqe"]
    assert len(scores_table(one).header) == 2 and "one sample" in scores_table(one).caption
    rows, text = artifact(one)
    assert all("Reward" not in heading for row in rows for heading in row)
    assert "PSNR" in text and "Reward" not in text
    two = {**one, "noises": 2}
    assert without_reward(two) == two and len(scores_table(two).header) == 3
    assert "2 samples" in scores_table(two).caption and "four" in scores_table(two).caption


def test_chains_have_samples_not_noises() -> None:
    rows = [{**row, "effect": 0.1} for row in ROWS]
    summary = {
        **SMALL,
        "metrics": {name: {"higher_is_better": True} for name in ("psnr_y", "niqe", "reward")},
        "differences": rows,
    }
    table = differences_table(summary)
    assert "samples averaged" in table.caption and "noises" not in table.caption
