"""The results of an evaluation in words: GDPO-SR against NAOSD, the control and an earlier run, and
the project's claims.

    headline(summary)           one line
    gain(summary)               the difference to NAOSD with its interval; the metrics by verdict
    verdict_sentence(summary)   whether GDPO-SR beats NAOSD, on which metrics, by how much, and what
                                is not significant
    claims(summary)             the project's claims, each with its evidence and whether this run
                                supports it
    changes(now, before, ...)   a model's scores in two runs, paired by image
    change_sentence(found)      the same in words

The texts always mention the control (advantages shuffled inside each group): a gain that the
control shows too is not due to GDPO.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdpo.evaluate.statistics import paired_difference, verdict
from tasks.report.tables import (
    Cell,
    Summary,
    Table,
    interval_text,
    label,
    mean_text,
    metric_heading,
    no_published_niqe,
    number,
    p_text,
)

LEAST_GAIN = 0.3  # of NAOSD's within-image standard deviation of the reward
MOST_PSNR_LOSS = 0.05  # dB
SAME_INPUT = (
    1e-4  # relative: bicubic scores closer than this mean the same image and the same metric
)

ImageMeans = Mapping[
    str, Mapping[str, Mapping[str, float]]
]  # model -> image -> metric -> mean over noises
Row = Mapping[str, Any]  # mean, standard_error, low, high, p, verdict of a paired difference


@dataclass(frozen=True)
class Claim:
    """A claim, whether this run supports it, and the numbers."""

    text: str
    holds: bool
    evidence: str


@dataclass(frozen=True)
class Changes:
    """A model's paired differences, this run minus an earlier one: a row per metric, over `images`
    of this run's `of` images.
    """

    model: str
    images: int
    of: int
    rows: list[Row]


def evidence(row: Row, unit: str = "") -> str:
    """Difference, interval and p in one phrase."""
    if row["p"] is None:
        return f"{mean_text(row)}{unit} (one image: no interval)"
    p = p_text(row["p"])
    return (
        f"{mean_text(row)}{unit} (95 % interval {interval_text(row)}, p "
        f"{p if p.startswith('<') else '= ' + p})"
    )


def find(summary: Summary, pair: str, metric: str) -> Row | None:
    """The difference of a pair such as `gdpo-naosd`; None if the evaluation lacks the pair or
    metric.
    """
    return next(
        (row for row in summary["differences"] if (row["pair"], row["metric"]) == (pair, metric)),
        None,
    )


def claims(summary: Summary) -> list[Claim]:
    """The project's claims about GDPO-SR with this run's numbers: reward, no-reference metric,
    PSNR, control.
    """
    reward, control = find(summary, "gdpo-naosd", "reward"), find(summary, "gdpo-control", "reward")
    perception = [
        row
        for metric in summary["reward"]["perception"]
        if (row := find(summary, "gdpo-naosd", metric))
    ]
    won = [row for row in perception if row["verdict"] == "better"]
    found = []
    if reward:
        text = (
            f"The reward rises by at least {LEAST_GAIN} of NAOSD’s within-image standard deviation"
        )
        holds = reward["verdict"] == "better" and (reward["effect"] or 0) >= LEAST_GAIN
        effect = number(reward["effect"], 2, sign=True)
        found.append(Claim(text, holds, f"{effect} standard deviations; reward {evidence(reward)}"))
    if perception:
        numbers = "; ".join(f"{label(row['metric'])} {evidence(row)}" for row in won or perception)
        found.append(Claim("A no-reference metric improves, p < 0.01", bool(won), numbers))
    if control:
        text = (
            "The reward beats that of the control, trained with advantages shuffled inside "
            "each group"
        )
        found.append(Claim(text, control["verdict"] == "better", f"reward {evidence(control)}"))
    if psnr := find(summary, "gdpo-naosd", "psnr_y"):
        text = f"PSNR falls by no more than {MOST_PSNR_LOSS} dB"
        # Use the interval's lower end: a mean near 0 with a wide interval proves nothing.
        least = psnr["mean"] if psnr["low"] is None else psnr["low"]
        found.append(Claim(text, least >= -MOST_PSNR_LOSS, f"PSNR-Y {evidence(psnr, ' dB')}"))
    return found


def headline(summary: Summary) -> str:
    """The result in one line; it says so if GDPO-SR beats NAOSD's reward but not the control's."""
    reward, control = find(summary, "gdpo-naosd", "reward"), find(summary, "gdpo-control", "reward")
    if reward is None:
        return "GDPO-SR and NAOSD are not compared"
    if reward["verdict"] == "better":
        caveat = (
            ""
            if control and control["verdict"] == "better"
            else ", but not its control"
            if control
            else ""
        )
        return f"GDPO-SR beats NAOSD on the reward{caveat}"
    if reward["verdict"] == "worse":
        return "GDPO-SR is worse than NAOSD on the reward"
    return "GDPO-SR and NAOSD do not differ significantly on the reward"


def by_verdict(rows: list[Row]) -> str:
    """The metrics of some differences, sorted into better, worse and not significant."""
    words = {
        w: [label(r["metric"]) for r in rows if r["verdict"] == w]
        for w in ("better", "worse", "not significant")
    }
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in words.items() if names)


def gain(summary: Summary) -> str:
    """GDPO-SR against NAOSD: the difference of the reward with its interval, then the metrics by
    verdict.
    """
    reward = find(summary, "gdpo-naosd", "reward")
    if reward is None:
        return "not measured"
    rows = [
        row
        for row in summary["differences"]
        if row["pair"] == "gdpo-naosd" and row["metric"] != "reward"
    ]
    return (
        f"{evidence(reward)}, that is {number(reward['effect'], 2, sign=True)} of NAOSD’s "
        "within-image standard deviation. "
        f"By metric, {by_verdict(rows)}."
    )


def verdict_sentence(summary: Summary) -> str:
    """The result in three sentences: the reward, each metric, the control."""
    control = find(summary, "gdpo-control", "reward")
    text = f"{headline(summary)}: {gain(summary)}"
    if control is None:
        return text
    relation = {
        "better": "better than",
        "worse": "worse than",
        "not significant": "not significantly different from",
    }
    return (
        f"{text} Its reward is {relation[control['verdict']]} that of the control trained with "
        "shuffled advantages: "
        f"{evidence(control)}."
    )


def changes(
    now: ImageMeans, before: ImageMeans, higher_is_better: Mapping[str, bool], model: str = "gdpo"
) -> Changes:
    """`model` in this run minus `model` in an earlier run, paired by image.

    Compares only images that have the same name and the same bicubic scores in both runs. So a
    different photograph, degradation or metric version cannot pass for a change of the model.
    Leaves out metrics that only one run has, and the reward, whose unit is each run's own NAOSD.
    """
    metrics = [
        metric
        for metric in higher_is_better
        if metric != "reward" and _everywhere(metric, now, before, model)
    ]
    images = [
        image for image in now.get(model, {}) if _same_input(image, now, before, model, metrics)
    ]
    rows: list[Row] = []
    for metric in metrics if images else []:
        a_IN, b_IN = (
            np.array([[run[model][image][metric]] for image in images]) for run in (now, before)
        )
        difference = paired_difference(a_IN, b_IN)
        numbers = {
            key: value if np.isfinite(value) else None for key, value in vars(difference).items()
        }
        rows.append(
            {"metric": metric, **numbers, "verdict": verdict(difference, higher_is_better[metric])}
        )
    return Changes(model, len(images), len(now.get(model, {})), rows)


def _everywhere(metric: str, now: ImageMeans, before: ImageMeans, model: str) -> bool:
    """Whether every image of both runs has the metric."""
    runs = (now.get(model, {}), before.get(model, {}))
    return all(run and all(metric in values for values in run.values()) for run in runs)


def _same_input(
    image: str, now: ImageMeans, before: ImageMeans, model: str, metrics: list[str]
) -> bool:
    """Whether both runs have the image, with equal bicubic scores up to `SAME_INPUT`."""
    if image not in before.get(model, {}):
        return False
    a, b = (run.get("bicubic", {}).get(image, {}) for run in (now, before))
    shared = [metric for metric in metrics if metric in a and metric in b]
    return bool(a) == bool(b) and all(
        abs(a[m] - b[m]) <= SAME_INPUT * max(1.0, abs(a[m])) for m in shared
    )


def change_sentence(found: Changes) -> str:
    """The changes since the earlier run, with an interval for every metric that changed."""
    if not found.rows:
        return (
            "No image of this run can be compared with that run: names, inputs or metrics differ."
        )
    moved = [row for row in found.rows if row["verdict"] != "not significant"]
    numbers = "; ".join(
        f"{label(row['metric'])} {row['verdict']}, {evidence(row)}" for row in moved
    )
    still = ", ".join(
        label(row["metric"]) for row in found.rows if row["verdict"] == "not significant"
    )
    scope = f"over {found.images} images" + (
        "" if found.images == found.of else f" (of {found.of}; the others cannot be compared)"
    )
    parts = [f"{label(found.model)} {scope}: {numbers or 'no metric differs significantly'}"]
    return (
        "; ".join([*parts, *([f"no significant change in {still}"] if moved and still else [])])
        + "."
    )


def changes_table(summary: Summary, found: Changes) -> Table:
    """The same as a table, with a row per metric."""
    caption = (
        f"{label(found.model)} in this run minus the promoted run, paired by image over "
        f"{found.images} of {found.of} "
        "images: the ones whose bicubic enlargement scores the same in both. A verdict needs p < "
        "0.01."
    ) + no_published_niqe(row["metric"] for row in found.rows)
    rows = [
        [
            Cell(metric_heading(summary, row["metric"])),
            Cell(mean_text(row), row["mean"]),
            Cell(interval_text(row), row["low"]),
            Cell(p_text(row["p"]), row["p"]),
            Cell(row["verdict"], best=row["verdict"] == "better"),
        ]
        for row in found.rows
    ]
    return Table(caption, ["Metric", "Change", "95 % interval", "p", "Verdict"], rows)
