"""Rows and notes of a table that shows the paper's figures with ours below them.

    block(dataset, methods, columns, run, of_noises)    the rows of one dataset
    absent(run, methods, columns)                       why cells of ours are empty

A cell without a measurement of ours is empty. Nothing is estimated.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.report import paper
from tasks.report.tables import Cell, number

DECIMALS = {"PSNR": 2, "FID": 2, "MUSIQ": 2, "AFINE": 2}
EMPTY = Cell("–")
PAPER, OURS = "paper", "ours"
Values = Mapping[str, Sequence[float]]  # metric -> its mean over the images, for each noise
Cells = list[Cell]


@dataclass(frozen=True)
class Run:
    """An evaluated benchmark. models: by label of a model or name of another method, the mean over
    its images of every metric, for each noise.
    """

    benchmark: str
    noises: int
    models: Mapping[str, Values]


def first_noise(values: Sequence[float]) -> float:
    """One noise per image, as in most of the paper's tables."""
    return values[0]


def mean(values: Sequence[float]) -> float:
    """The mean over noises."""
    return float(np.mean(values))


def same(one: str, other: str) -> bool:
    """Whether two names of a method are equal up to case and punctuation: DP2O-SR, dp2osr."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in (one, other)]
    return plain[0] == plain[1]


def model_of(run: Run, method: str) -> str | None:
    """The model or other method of a run that has the name of a method of the paper."""
    return next((model for model in run.models if same(model, method)), None)


def block(
    dataset: str,
    methods: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    run: Run | None,
    of_noises: Callable[[Sequence[float]], float],
) -> list[Cells]:
    """A dataset's rows: each method's figures in the paper, and ours below them."""
    lines: list[tuple[str, str, dict[str, float]]] = []
    for method, values in methods.items():
        if values:
            lines.append((method, PAPER, dict(values)))
        model = model_of(run, method) if run else None
        if run and model:
            ours = {
                c: of_noises(run.models[model][m])
                for c, m in paper.METRICS.items()
                if m in run.models[model]
            }
            lines.append((method, OURS, ours))
        elif method in (paper.NAOSD, paper.OURS):
            lines.append((method, OURS, {}))
    return [
        [
            Cell(dataset),
            Cell(method),
            Cell(source),
            *(_cell(c, source, values, lines) for c in columns),
        ]
        for method, source, values in lines
    ]


def _cell(
    column: str,
    source: str,
    values: Mapping[str, float],
    block: Sequence[tuple[str, str, Mapping[str, float]]],
) -> Cell:
    """A figure; bold if it is the best of its dataset among the paper's, or among ours."""
    if column not in values:
        return EMPTY
    rivals = [other[column] for _, origin, other in block if origin == source and column in other]
    best = min(rivals) if column in paper.LOWER_IS_BETTER else max(rivals)
    value = values[column]
    # The paper prints 8.654 in a column of two decimals.
    printed = len(repr(value).partition(".")[2]) if source == PAPER else 0
    return Cell(
        number(value, max(DECIMALS.get(column, 4), printed)),
        value,
        len(rivals) > 1 and value == best,
    )


def absent(run: Run, methods: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    """Notes that say why cells of an evaluated benchmark are empty."""
    known = {metric for values in run.models.values() for metric in values}
    columns_ = [column for column in columns if paper.METRICS[column] not in known]
    if columns_:
        yield f"{run.benchmark}: {', '.join(columns_)} not computed (evaluate.metrics)."
    absent = [method for method in methods if model_of(run, method) is None]
    if absent:
        yield (
            f"{run.benchmark}: no outputs of {', '.join(absent)} were given "
            f"(evaluate.pairs.{run.benchmark}.baselines)."
        )


def heading(column: str) -> str:
    """A column's name with an arrow to its better side."""
    return f"{column} {'↓' if column in paper.LOWER_IS_BETTER else '↑'}"


def ours_named(columns: Sequence[str]) -> str:
    """The names of our metrics in the paper's columns; MANIQA, for example, has two variants."""
    return f"Our names of the columns: {', '.join(paper.METRICS[column] for column in columns)}."


def caption(name: str, subject: str) -> str:
    """The caption of a table of the paper."""
    return f"{name} of the paper: {subject}"
