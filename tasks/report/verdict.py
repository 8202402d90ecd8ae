"""The results of an evaluation in words: our model against the baseline and the control, and the
project's claims. Which model is which: gdpo/evaluate/models.py.

    headline(summary)           one line: better or not, by how much, how sure
    explanations(summary)       sentences: the control's part, each metric, bicubic's PSNR
    verdict_sentence(summary)   both, as one text
    claims(summary)             the project's claims, each with its evidence and whether this run
                                supports it, against the baseline and against the control

A gain that the control shows too (advantages shuffled inside each group) is not due to GDPO.
Therefore a result counts only if it holds against the baseline and against the control. The only
unit of a gain is the reward's (gdpo/evaluate/benchmark.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gdpo.config.evaluation import BICUBIC
from gdpo.evaluate.benchmark import REWARD
from tasks.report.tables import Summary, evaluated, interval_text, label, mean_text, p_text

LEAST_GAIN = 0.3  # of reward
MOST_PSNR_LOSS = 0.05  # dB

# Mean, standard_error, low, high, p and verdict of a paired difference.
DifferenceRow = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim, whether this run supports it, and the numbers."""

    text: str
    holds: bool
    evidence: str


def evidence(difference: DifferenceRow, unit: str = "") -> str:
    """Difference, interval and p in one phrase."""
    if difference["p"] is None:
        return f"{mean_text(difference)}{unit} (one image: no interval)"
    p = p_text(difference["p"])
    return (
        f"{mean_text(difference)}{unit} (95 % interval {interval_text(difference)}, p "
        f"{p if p.startswith('<') else '= ' + p})"
    )


def find(summary: Summary, a: str, b: str | None, metric: str) -> DifferenceRow | None:
    """The difference of model `a` minus model `b`; None if the evaluation lacks them or the
    metric.
    """
    return next(
        (
            difference
            for difference in summary["differences"]
            if (difference["a"], difference["b"], difference["metric"]) == (a, b, metric)
        ),
        None,
    )


def both(summary: Summary, metric: str) -> list[DifferenceRow]:
    """Our model's differences to the baseline and to the control; those that the evaluation has."""
    models = evaluated(summary)
    others = (models.baseline, models.control)
    return [
        difference for other in others if (difference := find(summary, models.ours, other, metric))
    ]


def _compared(summary: Summary) -> list[str]:
    """The metrics for which our model is compared with the baseline or the control."""
    metrics = dict.fromkeys(difference["metric"] for difference in summary["differences"])
    return [metric for metric in metrics if both(summary, metric)]


def agreed(summary: Summary, metric: str) -> str:
    """`better` or `worse` if our model is so against baseline and control, `shared` if against the
    baseline alone, otherwise `not significant`.
    """
    verdicts = [difference["verdict"] for difference in both(summary, metric)]
    if not verdicts or verdicts[0] == "not significant":
        return "not significant"
    return str(verdicts[0]) if len(set(verdicts)) == 1 else "shared"


def _against(summary: Summary, metric: str, unit: str = "") -> str:
    """The numbers of `both`, in words."""
    models = evaluated(summary)
    return "; ".join(
        "against "
        f"{'the control' if difference['b'] == models.control else models.label(difference['b'])} "
        f"{evidence(difference, unit)}"
        for difference in both(summary, metric)
    )


def claims(summary: Summary) -> list[Claim]:
    """The project's claims about our model with this run's numbers. Each holds only if it does so
    against the baseline and, if it was evaluated, against the control.
    """
    all_claims = []
    if rows := both(summary, REWARD):
        holds = agreed(summary, REWARD) == "better" and rows[0]["mean"] >= LEAST_GAIN
        text = f"The reward rises by at least {LEAST_GAIN}, and by more than the control’s"
        all_claims.append(Claim(text, holds, _against(summary, REWARD)))
    perception = [m for m in summary["reward"]["perception"] if both(summary, m)]
    rewarded = {REWARD, *summary["reward"]["perception"], *summary["reward"].get("fidelity", [])}
    others = [m for m in _compared(summary) if m not in rewarded]
    for text, metrics in (
        ("A no-reference metric of the reward improves", perception),
        ("A metric outside the reward improves", others),
    ):
        won = [metric for metric in metrics if agreed(summary, metric) == "better"]
        numbers = ". ".join(f"{label(m)}: {_against(summary, m)}" for m in won or metrics)
        if metrics:
            all_claims.append(Claim(text, bool(won), numbers))
    if rows := both(summary, "psnr_y"):
        text = f"PSNR falls by no more than {MOST_PSNR_LOSS} dB"
        # Use the interval's lower end: a mean near 0 with a wide interval proves nothing.
        least = min(
            difference["mean"] if difference["low"] is None else difference["low"]
            for difference in rows
        )
        all_claims.append(Claim(text, least >= -MOST_PSNR_LOSS, _against(summary, "psnr_y", " dB")))
    return all_claims


def headline(summary: Summary) -> str:
    """The result in one line: whether ours is better than the baseline, by how much, how surely."""
    models = evaluated(summary)
    ours, baseline = models.label(models.ours), models.label(models.baseline)
    if models.ours == models.baseline:
        return f"{ours} is the first of evaluate.models, so there is nothing to compare it with"
    reward = find(summary, models.ours, models.baseline, REWARD)
    if reward is None:
        return f"{ours} and {baseline} are not compared"
    text = {
        "better": f"{ours} is better than {baseline}",
        "worse": f"{ours} is worse than {baseline}",
        "shared": f"{ours} gains on {baseline}, but not surely more than its control",
        "not significant": f"No sure difference between {ours} and {baseline}",
    }[agreed(summary, REWARD)]
    if reward["verdict"] == "worse":  # whatever the control does
        text = f"{ours} is worse than {baseline}"
    return f"{text}: reward {evidence(reward)}"


def explanations(summary: Summary) -> list[str]:
    """What the headline leaves out: the control, the other metrics, why bicubic leads in PSNR."""
    return [text for text in (_control(summary), _metrics(summary), _bicubic(summary)) if text]


def _control(summary: Summary) -> str:
    models = evaluated(summary)
    control = find(summary, models.ours, models.control, REWARD)
    if control is None:
        return ""
    reward = f"{models.label(models.ours)}’s reward is"
    relation = {
        "better": f"The preferences made the difference: {reward} higher than the",
        "worse": f"The preferences did harm: {reward} lower than the",
        "not significant": f"Whether the preferences matter is open: {reward} not surely different "
        "from the",
    }[control["verdict"]]
    return f"{relation} control’s, {evidence(control)}."


def _metrics(summary: Summary) -> str:
    """The metrics by what they say of our model against the baseline and the control."""
    words = {
        "better": "better",
        "worse": "worse",
        "shared": "changed, but not surely other than in the control",
        "not significant": "no sure difference",
    }
    metrics = [m for m in _compared(summary) if m != REWARD]
    of = {word: [m for m in metrics if agreed(summary, m) == word] for word in words}
    parts = [f"{words[w]}: {', '.join(map(label, names))}" for w, names in of.items() if names]
    return f"By metric, {'; '.join(parts)}." if parts else ""


def _bicubic(summary: Summary) -> str:
    """Why bicubic enlargement has the best PSNR, where it has."""
    psnr = {m: v["psnr_y"]["mean"] for m, v in summary["models"].items() if "psnr_y" in v}
    if BICUBIC not in psnr or psnr[BICUBIC] < max(psnr.values()):
        return ""
    return (
        "Bicubic has the highest PSNR because it adds nothing: PSNR punishes every detail that is "
        "not exactly in its place more than the lack of it, so a blurred picture scores well. The "
        "no-reference metrics judge what is seen."
    )


def verdict_sentence(summary: Summary) -> str:
    """The whole result as one text: `headline` and `explanations`."""
    return " ".join([f"{headline(summary)}.", *explanations(summary)])
