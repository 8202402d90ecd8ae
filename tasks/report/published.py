"""The paper's tables with our figures beside the paper's, from evaluated benchmarks and measured
results.

    tables(runs, sweeps, inference)     Tables 1-4, 8, 10, 12 and Fig. 7, with all our figures that
                                        were measured

A cell without a measurement of ours is empty, and a note below the table says why. Nothing is
estimated. Tables 1, 2, 3 and 12 have one noise per image, as in the paper: ours is noise 0. Table 8
has the mean over noises.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.report import paper
from tasks.report.tables import Cell, Table, label, number

DECIMALS = {"PSNR": 2, "FID": 2, "MUSIQ": 2, "AFINE": 2}
EMPTY = Cell("–")
PAPER, OURS = "paper", "ours"
Values = Mapping[str, Sequence[float]]  # metric -> its mean over the images, for each noise
Sweep = Mapping[str, Mapping[str, Values]]  # model -> "t_add,t_diff" -> values
Row = list[Cell]


@dataclass(frozen=True)
class Run:
    """An evaluated benchmark. models: by model or peer, the mean over its images of every metric,
    for each noise.
    """

    benchmark: str
    noises: int
    models: Mapping[str, Values]


def tables(
    runs: Sequence[Run], sweeps: Mapping[str, Sweep], inference: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """All tables, in the paper's order. sweeps: by benchmark. inference: the measurements of
    benchmarks/inference.py.
    """
    return [
        _results(1, runs, first_noise, "noise 0 of each image, the same for both models"),
        _results(2, runs, first_noise, "noise 0 of each image"),
        _results(3, runs, first_noise, "noise 0 of each image"),
        _complexity(inference),
        figure_7(sweeps),
        _results(
            8,
            runs,
            mean,
            "mean over "
            + (", ".join(f"{r.noises} noises on {r.benchmark}" for r in runs) or "noises"),
        ),
        table_10(sweeps),
        _results(12, runs, first_noise, "noise 0 of each image"),
    ]


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


def _results(
    number_: int, runs: Sequence[Run], of_noises: Callable[[Sequence[float]], float], what: str
) -> Table:
    """A table of results: the paper's datasets, then benchmarks of ours that have at least two of
    its methods.
    """
    published = paper.TABLES[number_]
    notes = [f"Ours: {what}; mean over images. {_ours(published.columns)}"]
    by_name = {run.benchmark: run for run in runs}
    blocks = [
        (dataset, paper.BENCHMARKS[dataset], methods)
        for dataset, methods in published.results.items()
    ]
    methods = list(next(iter(published.results.values())))
    others = [
        run
        for run in runs
        if run.benchmark not in paper.BENCHMARKS.values() and _fits(run, methods)
    ]
    rows: list[Row] = []
    for dataset, benchmark, values in blocks:
        run = by_name.get(benchmark)
        notes += (
            []
            if run
            else [f"{dataset}: nothing of ours, the benchmark {benchmark} was not evaluated."]
        )
        rows += _block(dataset, values, published.columns, run, of_noises)
    for run in others:
        rows += _block(
            run.benchmark, {method: {} for method in methods}, published.columns, run, of_noises
        )
        notes.append(f"{run.benchmark}: a benchmark of ours, no figures in the paper.")
    shown = [by_name[name] for _, name, _ in blocks if name in by_name] + others
    notes += [text for run in shown for text in _absent(run, methods, published.columns)]
    header = ["Dataset", "Method", "From", *map(_heading, published.columns)]
    return Table(
        _caption(f"Table {number_}", published.subject), header, rows, f"table-{number_}", notes
    )


def _fits(run: Run, methods: Sequence[str]) -> bool:
    """Whether a benchmark that is not the paper's has at least two of the methods to compare."""
    return sum(_model(run, method) is not None for method in methods) > 1


def _model(run: Run, method: str) -> str | None:
    """The model or peer of a run that corresponds to a method of the paper."""
    name = paper.MODELS.get(method, method)
    return next((model for model in run.models if same(model, name)), None)


def _block(
    dataset: str,
    methods: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    run: Run | None,
    of_noises: Callable[[Sequence[float]], float],
) -> list[Row]:
    """A dataset's rows: each method's figures in the paper, and ours below them."""
    found: list[tuple[str, str, dict[str, float]]] = []
    for method, values in methods.items():
        if values:
            found.append((method, PAPER, dict(values)))
        model = _model(run, method) if run else None
        if run and model:
            ours = {
                c: of_noises(run.models[model][m])
                for c, m in paper.METRICS.items()
                if m in run.models[model]
            }
            found.append((method, OURS, ours))
        elif method in paper.MODELS:
            found.append((method, OURS, {}))
    return [
        [
            Cell(dataset),
            Cell(method),
            Cell(source),
            *(_cell(c, source, values, found) for c in columns),
        ]
        for method, source, values in found
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
    printed = (
        len(repr(value).partition(".")[2]) if source == PAPER else 0
    )  # the paper prints 8.654 in a column of two decimals
    return Cell(
        number(value, max(DECIMALS.get(column, 4), printed)),
        value,
        len(rivals) > 1 and value == best,
    )


def _absent(run: Run, methods: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    """Notes that say why cells of an evaluated benchmark are empty."""
    known = {metric for values in run.models.values() for metric in values}
    columns_ = [column for column in columns if paper.METRICS[column] not in known]
    if columns_:
        yield f"{run.benchmark}: {', '.join(columns_)} not computed (evaluate.metrics)."
    absent = [method for method in methods if _model(run, method) is None]
    if absent:
        yield (
            f"{run.benchmark}: no outputs of {', '.join(absent)} were given "
            f"(evaluate.pairs.{run.benchmark}.peers)."
        )


def _heading(column: str) -> str:
    return f"{column} {'↓' if column in paper.LOWER_IS_BETTER else '↑'}"


def _ours(columns: Sequence[str]) -> str:
    """The names of our metrics in the paper's columns; MANIQA, for example, has two variants."""
    return f"Our names of the columns: {', '.join(paper.METRICS[column] for column in columns)}."


def _caption(name: str, subject: str) -> str:
    return f"{name} of the paper: {subject}"


def table_10(sweeps: Mapping[str, Sweep]) -> Table:
    """Table 10: GDPO-SR without retraining, t_add varied at inference, the same noise for all."""
    published = paper.TABLES[10]
    notes = [_ours(published.columns)]
    if "realsr" not in sweeps:
        notes.append(
            "RealSR: nothing of ours; `python benchmarks/sweep.py --benchmark realsr` measures it."
        )
    rows: list[Row] = []
    for dataset, methods in published.results.items():
        rows += _block(
            dataset,
            {_t_add(t): values for t, values in methods.items()},
            published.columns,
            None,
            first_noise,
        )
    for benchmark, sweep in sweeps.items():
        models = {_t_add(t): sweep["gdpo"][f"{t},{paper.T_DIFF}"] for t in paper.T_ADD_TABLE_10}
        run = Run(benchmark, 1, dict(models))
        dataset = next(
            (name for name, known in paper.BENCHMARKS.items() if known == benchmark), benchmark
        )
        rows += _block(dataset, {name: {} for name in models}, published.columns, run, first_noise)
        notes += [
            f"{benchmark}: ours for noise 0 of each image.",
            *_absent(run, list(models), published.columns),
        ]
    header = ["Dataset", "Method", "From", *map(_heading, published.columns)]
    return Table(_caption("Table 10", published.subject), header, rows, "table-10", notes)


def _t_add(t: str | int) -> str:
    return f"{paper.OURS} (t_add={t})"


def figure_7(sweeps: Mapping[str, Sweep]) -> Table:
    """Fig. 7: for each setting (t_add, t_diff) of NAOSD, the range over noises of the mean over
    images, and the mean.
    """
    measured = {
        metric
        for sweep in sweeps.values()
        for values in sweep["naosd"].values()
        for metric in values
    }
    metrics = [
        *(paper.METRICS[column] for column in ("PSNR", "MUSIQ")),
        *sorted(measured - {"psnr_y", "musiq"}),
    ]
    rows: list[Row] = []
    for benchmark, sweep in sweeps.items() or [("–", {})]:
        for t_add, t_diff in paper.FIGURE_7:
            values = sweep.get("naosd", {}).get(f"{t_add},{t_diff}", {})
            cells = [cell for metric in metrics for cell in _range(values.get(metric))]
            rows.append([Cell(benchmark), Cell(f"({t_add}, {t_diff})"), Cell(OURS), *cells])
    header = [
        "Dataset",
        "(t_add, t_diff)",
        "From",
        *(f"{label(m)} {part}" for m in metrics for part in ("range", "mean")),
    ]
    notes = [
        "Range: greatest minus least over the noises of the mean over images; the paper takes 50 "
        "noises on RealSR.",
        "The paper's values are drawn, not printed. Its text: both ranges grow from (100, 100) to "
        "(500, 500); (250, 100) keeps "
        "fidelity and generative capacity in balance.",
        "Ours: one NAOSD, trained at (250, 100), run at each setting. The paper does not say "
        "whether it trained four.",
    ]
    if not sweeps:
        notes.append("Nothing of ours yet: `python benchmarks/sweep.py` measures it.")
    elif "musiq" not in measured:
        notes.append("MUSIQ: not computed (evaluate.metrics).")
    return Table(
        _caption("Fig. 7", "noise in NAOSD's outputs by timestep"), header, rows, "figure-7", notes
    )


def _range(values: Sequence[float] | None) -> list[Cell]:
    """The range and the mean of a metric over noises."""
    if not values:
        return [EMPTY, EMPTY]
    numbers = float(np.ptp(values)), mean(values)
    return [Cell(number(value, 4), value) for value in numbers]


def _complexity(inference: Sequence[Mapping[str, Any]]) -> Table:
    """Table 4; each of our measured models is a further column."""
    columns = [
        [Cell(number(row[i], 2), row[i]) for row in paper.TABLE_4.values()]
        for i in range(len(paper.TABLE_4_METHODS))
    ]
    header = ["Methods", *paper.TABLE_4_METHODS]
    notes = [
        "FLOPs are multiply-accumulates of convolutions and linear layers (`gdpo-sr cost`). Time: "
        "one 512 x 512 image."
    ]
    for row in inference:
        header.append(f"{paper.OURS} (ours, {row['model']})")
        values = [row["parameters"] / 1e9, row["seconds"], row["macs"] / 1e12]
        columns.append(
            [EMPTY if value is None else Cell(f"{value:.3g}", value) for value in values]
        )
        notes.append(f"{row['model']}: {row['note']}")
    if not inference:
        notes.append("Nothing of ours yet: `python benchmarks/inference.py` measures it.")
    rows = [
        [Cell(name), *(column[i] for column in columns)] for i, name in enumerate(paper.TABLE_4)
    ]
    return Table(
        _caption("Table 4", "size, time and cost of a model"), header, rows, "table-4", notes
    )
