"""The paper's tables with our figures beside the paper's, from evaluated benchmarks and measured
results.

    tables(runs, sweeps, inference)     Tables 1-4, 8, 10, 12 and Fig. 7, with all our figures that
                                        were measured

A cell without a measurement of ours is empty, and a note below the table says why. Nothing is
estimated. Tables 1, 2, 3 and 12 have one noise per image, as in the paper: ours is noise 0. Table 8
has the mean over noises.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.report import paper
from tasks.report.blocks import (
    EMPTY,
    Cells,
    Run,
    absent,
    block,
    caption,
    first_noise,
    heading,
    mean,
    model_of,
    ours_named,
)
from tasks.report.sweeps import Sweep, figure_7, table_10
from tasks.report.tables import Cell, Table, number


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


def _results(
    number_: int, runs: Sequence[Run], of_noises: Callable[[Sequence[float]], float], what: str
) -> Table:
    """A table of results: the paper's datasets, then benchmarks of ours that have at least two of
    its methods.
    """
    published = paper.TABLES[number_]
    notes = [f"Ours: {what}; mean over images. {ours_named(published.columns)}"]
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
    rows: list[Cells] = []
    for dataset, benchmark, values in blocks:
        run = by_name.get(benchmark)
        notes += (
            []
            if run
            else [f"{dataset}: nothing of ours, the benchmark {benchmark} was not evaluated."]
        )
        rows += block(dataset, values, published.columns, run, of_noises)
    for run in others:
        rows += block(
            run.benchmark, {method: {} for method in methods}, published.columns, run, of_noises
        )
        notes.append(f"{run.benchmark}: a benchmark of ours, no figures in the paper.")
    shown = [by_name[name] for _, name, _ in blocks if name in by_name] + others
    notes += [text for run in shown for text in absent(run, methods, published.columns)]
    header = ["Dataset", "Method", "From", *map(heading, published.columns)]
    return Table(
        caption(f"Table {number_}", published.subject), header, rows, f"table-{number_}", notes
    )


def _fits(run: Run, methods: Sequence[str]) -> bool:
    """Whether a benchmark that is not the paper's has at least two of the methods to compare."""
    return sum(model_of(run, method) is not None for method in methods) > 1


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
    for entry in inference:
        header.append(f"{paper.OURS} (ours, {entry['model']})")
        values = [entry["parameters"] / 1e9, entry["seconds"], entry["macs"] / 1e12]
        columns.append(
            [EMPTY if value is None else Cell(f"{value:.3g}", value) for value in values]
        )
        notes.append(f"{entry['model']}: {entry['note']}")
    if not inference:
        notes.append("Nothing of ours yet: `python -m benchmarks.inference` measures it.")
    rows = [
        [Cell(name), *(column[i] for column in columns)] for i, name in enumerate(paper.TABLE_4)
    ]
    return Table(
        caption("Table 4", "size, time and cost of a model"), header, rows, "table-4", notes
    )
