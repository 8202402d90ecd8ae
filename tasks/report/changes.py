"""A model's scores in two runs, paired by photograph.

changes(now, before, ...)            the paired differences, a row per metric
change_sentence(changed, models)     the same in words
changes_table(summary, changed)      the same as a table
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gdpo.config.evaluation import BICUBIC
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import LEVEL, by_photograph, finite, paired_difference, verdict
from tasks.files.scores import ImageMeans
from tasks.report.tables import (
    Cell,
    Summary,
    Table,
    evaluated,
    interval_text,
    label,
    mean_text,
    metric_heading,
    no_published_niqe,
    p_text,
    photographs_text,
)
from tasks.report.verdict import DifferenceRow, evidence

# Relative difference of bicubic scores below which image and metric are the same in both runs.
SAME_INPUT = 1e-4


@dataclass(frozen=True)
class Changes:
    """A model's paired differences, this run minus an earlier one: a row per metric, over
    `photographs` with `images` of this run's `of` images.
    """

    model: str
    photographs: int
    images: int
    of: int
    rows: list[DifferenceRow]


def changes(
    now: ImageMeans,
    before: ImageMeans,
    higher_is_better: Mapping[str, bool],
    model: str,
    photographs: Mapping[str, str] | None = None,
) -> Changes:
    """`model` in this run minus `model` in an earlier run, paired by photograph.

    photographs: image -> its photograph; without it, every image is one.

    Compares only images that have the same name and the same bicubic scores in both runs. So a
    different photograph, degradation or metric version cannot pass for a change of the model.
    Leaves out metrics that only one run has, and the reward, whose unit is each run's own baseline.
    """
    metrics = [
        metric
        for metric in higher_is_better
        if metric != REWARD and _everywhere(metric, now, before, model)
    ]
    images = [
        image for image in now.get(model, {}) if _same_input(image, now, before, model, metrics)
    ]
    of_image = [(photographs or {}).get(image, image) for image in images]
    rows: list[DifferenceRow] = []
    for metric in metrics if images else []:
        a_PN, b_PN = (
            by_photograph(np.array([[run[model][image][metric]] for image in images]), of_image)
            for run in (now, before)
        )
        difference = paired_difference(a_PN, b_PN)
        numbers = {key: finite(value) for key, value in vars(difference).items()}
        rows.append(
            {"metric": metric, **numbers, "verdict": verdict(difference, higher_is_better[metric])}
        )
    return Changes(model, len(set(of_image)), len(images), len(now.get(model, {})), rows)


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
    a, b = (run.get(BICUBIC, {}).get(image, {}) for run in (now, before))
    # If neither run has bicubic scores, the name alone must do; if only one has, the image is not
    # compared.
    shared = [metric for metric in metrics if metric in a and metric in b]
    return bool(a) == bool(b) and all(
        abs(a[m] - b[m]) <= SAME_INPUT * max(1.0, abs(a[m])) for m in shared
    )


def change_sentence(changed: Changes, models: EvaluatedModels) -> str:
    """The changes since the earlier run, with an interval for every metric that changed.

    models: of this run, for the printed name.
    """
    if not changed.rows:
        return "No photograph can be compared with that run: names, inputs or metrics differ."
    moved = [
        difference for difference in changed.rows if difference["verdict"] != "not significant"
    ]
    numbers = "; ".join(
        f"{label(difference['metric'])} {difference['verdict']}, {evidence(difference)}"
        for difference in moved
    )
    still = ", ".join(
        label(difference["metric"])
        for difference in changed.rows
        if difference["verdict"] == "not significant"
    )
    scope = f"over {photographs_text(changed.photographs, changed.images)}" + (
        "" if changed.images == changed.of else f" (of {changed.of}; the others cannot be compared)"
    )
    parts = [
        f"{models.label(changed.model)} {scope}: {numbers or 'no metric differs significantly'}"
    ]
    return (
        "; ".join([*parts, *([f"no significant change in {still}"] if moved and still else [])])
        + "."
    )


def changes_table(summary: Summary, changed: Changes) -> Table:
    """The same as a table, with a row per metric."""
    name = evaluated(summary).label(changed.model)
    caption = (
        f"{name} in this run minus the promoted run, paired over "
        f"{photographs_text(changed.photographs, changed.images)}: those whose bicubic enlargement "
        f"scores the same in both. A verdict needs p < {LEVEL}."
    ) + no_published_niqe(difference["metric"] for difference in changed.rows)
    rows = [
        [
            Cell(metric_heading(summary, difference["metric"])),
            Cell(mean_text(difference), difference["mean"]),
            Cell(interval_text(difference), difference["low"]),
            Cell(p_text(difference["p"]), difference["p"]),
            Cell(difference["verdict"], best=difference["verdict"] == "better"),
        ]
        for difference in changed.rows
    ]
    return Table(caption, ["Metric", "Change", "95 % interval", "p", "Verdict"], rows)
