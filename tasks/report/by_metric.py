"""RealSR-R1's scores, metric by metric; GDPO-SR's reward is no part of what is said of them.

changed(summary)         whether GRPO has changed any score surely, then each with its interval
enlarged(summary)        the cold start against bicubic enlargement, in one sentence
scores_table(summary), differences_table(summary), without_reward(summary)
                         what the page shows
"""

from dataclasses import replace

from gdpo.config.evaluation import BICUBIC
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.statistics import LEVEL
from tasks.report import tables
from tasks.report.tables import Summary, Table, evaluated, label, models_table, sample
from tasks.report.verdict import DifferenceRow, evidence


def changed(summary: Summary) -> list[str]:
    """Whether GRPO has changed a score surely; then each score after it minus that of the cold
    start.
    """
    models = evaluated(summary)
    rows = _rows(summary, models.ours, models.baseline)
    sure = [row for row in rows if row["verdict"] != "not significant"]
    names = ", ".join(f"{label(row['metric'])} ({row['verdict']})" for row in sure)
    return [
        f"Surely changed by GRPO (p < {LEVEL}): {names}."
        if sure
        else f"GRPO has surely changed none of these scores (p < {LEVEL}).",
        *(f"{label(row['metric'])}: {evidence(row)}, {row['verdict']}" for row in rows),
    ]


def enlarged(summary: Summary) -> str:
    """The cold start against bicubic enlargement: the difference and verdict of each score."""
    models = evaluated(summary)
    rows = _rows(summary, models.baseline, BICUBIC)
    found = "; ".join(f"{label(r['metric'])} {tables.mean_text(r)} ({r['verdict']})" for r in rows)
    return f"{models.label(models.baseline)} minus bicubic: {found}." if rows else ""


def _rows(summary: Summary, a: str, b: str | None) -> list[DifferenceRow]:
    """The differences of model `a` minus model `b`, one for each metric but GDPO-SR's reward."""
    return [
        row
        for row in summary["differences"]
        if (row["a"], row["b"]) == (a, b) and row["metric"] != REWARD
    ]


def without_reward(summary: Summary) -> Summary:
    """The summary, without GDPO-SR's reward if there is one sample per image: it has no unit."""
    if summary["noises"] > 1:
        return summary
    return {
        **summary,
        "metrics": {name: of for name, of in summary["metrics"].items() if name != REWARD},
        "differences": [row for row in summary["differences"] if row["metric"] != REWARD],
    }


def scores_table(summary: Summary) -> Table:
    """As `models_table`, for any number of samples."""
    samples = summary["noises"]
    each = "one sample each" if samples == 1 else f"of the mean over {samples} samples"
    caption = (
        f"Mean ± standard error over {sample(summary)}, {each}. Bold: the best mean of the column."
        f"{_reward_note(summary)}{tables.no_published_niqe(summary['metrics'])}"
    )
    return replace(models_table(without_reward(summary)), caption=caption)


def differences_table(summary: Summary) -> Table:
    """As `tables.differences_table`, for any number of samples."""
    table = tables.differences_table(without_reward(summary))
    return replace(table, caption=table.caption.replace("noises", "samples"))


def _reward_note(summary: Summary) -> str:
    if summary["noises"] == 1:
        return ""
    models = evaluated(summary)
    return (
        " Reward: that of GDPO-SR’s evaluation, not one of the four that GRPO raises; 0 is the "
        f"mean of {models.label(models.baseline)}, 1 its standard deviation over samples."
    )
