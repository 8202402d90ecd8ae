"""What an evaluation shows, in words: GDPO-SR against NAOSD and against the control, and which promises are kept.

    headline(summary)           one line
    claims(summary)             what the project promises, each with its evidence and whether this run shows it
    verdict_sentence(summary)   does GDPO-SR beat NAOSD, on which metrics, by how much, what is not significant

A gain that the control (advantages shuffled inside each group) shows too is none of GDPO's: so it is always named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gdpo.evaluate.tables import Summary, difference, interval_text, label, mean_text, number, p_text

LEAST_GAIN = 0.3  # of NAOSD's within-image standard deviation of the reward
MOST_PSNR_LOSS = 0.05  # dB


@dataclass(frozen=True)
class Claim:
    """A promise, whether this run shows it, and the numbers."""

    text: str
    holds: bool
    evidence: str


def evidence(row: Mapping[str, Any], unit: str = "") -> str:
    """Difference, interval and p in one phrase."""
    if row["p"] is None:
        return f"{mean_text(row)}{unit} (one image: no interval)"
    p = p_text(row["p"])
    return f"{mean_text(row)}{unit} (95 % interval {interval_text(row)}, p {p if p.startswith('<') else '= ' + p})"


def claims(summary: Summary) -> list[Claim]:
    """The project's promises about GDPO-SR beside this run's numbers: reward, no-reference metric, PSNR, control."""
    reward, control = difference(summary, "gdpo-naosd", "reward"), difference(summary, "gdpo-control", "reward")
    perception = [difference(summary, "gdpo-naosd", metric) for metric in summary["reward"]["perception"]]
    won = [row for row in perception if row["verdict"] == "better"]
    effect = number(reward["effect"], 2, sign=True)
    found = [
        Claim(
            f"The reward rises by at least {LEAST_GAIN} of NAOSD’s within-image standard deviation",
            reward["verdict"] == "better" and (reward["effect"] or 0) >= LEAST_GAIN,
            f"{effect} standard deviations; reward {evidence(reward)}",
        ),
        Claim(
            "A no-reference metric improves, p < 0.01",
            bool(won),
            "; ".join(f"{label(row['metric'])} {evidence(row)}" for row in won or perception),
        ),
        Claim(
            "The reward beats that of the control, trained with advantages shuffled inside each group",
            control["verdict"] == "better",
            f"reward {evidence(control)}",
        ),
    ]
    if "psnr_y" in summary["metrics"]:
        psnr = difference(summary, "gdpo-naosd", "psnr_y")
        text = f"PSNR falls by no more than {MOST_PSNR_LOSS} dB"
        found.append(Claim(text, psnr["mean"] >= -MOST_PSNR_LOSS, f"PSNR-Y {evidence(psnr, ' dB')}"))
    return found


def headline(summary: Summary) -> str:
    """The answer in one line; a gain on the reward that the control shows as well is said to be one."""
    reward = difference(summary, "gdpo-naosd", "reward")["verdict"]
    if reward == "better":
        beaten = difference(summary, "gdpo-control", "reward")["verdict"] == "better"
        return "GDPO-SR beats NAOSD on the reward" + ("" if beaten else ", but not its control")
    if reward == "worse":
        return "GDPO-SR is worse than NAOSD on the reward"
    return "GDPO-SR and NAOSD do not differ significantly on the reward"


def verdict_sentence(summary: Summary) -> str:
    """The answer in three sentences: the reward, each metric, the control."""
    reward, control = difference(summary, "gdpo-naosd", "reward"), difference(summary, "gdpo-control", "reward")
    rows = [row for row in summary["differences"] if row["pair"] == "gdpo-naosd" and row["metric"] != "reward"]
    by_word = {
        word: [label(row["metric"]) for row in rows if row["verdict"] == word]
        for word in ("better", "worse", "not significant")
    }
    metrics = "; ".join(f"{word}: {', '.join(names)}" for word, names in by_word.items() if names)
    relation = {"better": "better than", "worse": "worse than", "not significant": "not significantly different from"}
    return (
        f"{headline(summary)}: {evidence(reward)}, that is {number(reward['effect'], 2, sign=True)} of NAOSD’s "
        f"within-image standard deviation. By metric, {metrics}. Its reward is {relation[control['verdict']]} that of "
        f"the control trained with shuffled advantages: {evidence(control)}."
    )
