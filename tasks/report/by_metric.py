"""What RealSR-R1's GRPO has changed, metric by metric; GDPO-SR's reward is no part of it.

changed(summary)         whether any score has changed surely, then each with its interval
without_reward(summary)  what a table may show
"""

from dataclasses import replace

from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.statistics import LEVEL
from tasks.report.tables import Summary, Table, evaluated, label, models_table, sample
from tasks.report.verdict import evidence


def changed(summary: Summary) -> list[str]:
    """Whether GRPO has changed a score surely; then each score after it minus that of the cold
    start.
    """
    models = evaluated(summary)
    rows = [
        row
        for row in summary["differences"]
        if (row["a"], row["b"]) == (models.ours, models.baseline) and row["metric"] != REWARD
    ]
    sure = [row for row in rows if row["verdict"] != "not significant"]
    names = ", ".join(f"{label(row['metric'])} ({row['verdict']})" for row in sure)
    return [
        f"Surely changed by GRPO (p < {LEVEL}): {names}."
        if sure
        else f"GRPO has surely changed none of these scores (p < {LEVEL}).",
        *(f"{label(row['metric'])}: {evidence(row)}, {row['verdict']}" for row in rows),
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
    if summary["noises"] > 1:
        return models_table(summary)
    caption = (
        f"Mean ± standard error over {sample(summary)}, one sample each. Bold: the best mean of "
        "the column."
    )
    return replace(models_table(without_reward(summary)), caption=caption)
