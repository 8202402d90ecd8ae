"""Table 10 and Fig. 7: models at timesteps that they were not trained for (benchmarks/sweep.py)."""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.report import paper
from tasks.report.blocks import (
    EMPTY,
    OURS,
    Cells,
    Run,
    Values,
    absent,
    block,
    caption,
    first_noise,
    heading,
    mean,
    ours_named,
)
from tasks.report.tables import Cell, Table, label, number

Sweep = Mapping[str, Mapping[str, Values]]  # "ours" or "baseline" -> "t_add,t_diff" -> values


def table_10(sweeps: Mapping[str, Sweep]) -> Table:
    """Table 10: GDPO-SR without retraining, t_add varied at inference, the same noise for all."""
    published = paper.TABLES[10]
    notes = [ours_named(published.columns)]
    if "realsr" not in sweeps:
        notes.append(
            "RealSR: nothing of ours; `python benchmarks/sweep.py --benchmark realsr` measures it."
        )
    rows: list[Cells] = []
    for dataset, methods in published.results.items():
        rows += block(
            dataset,
            {_t_add(t): values for t, values in methods.items()},
            published.columns,
            None,
            first_noise,
        )
    for benchmark, sweep in sweeps.items():
        models = {_t_add(t): sweep["ours"][f"{t},{paper.T_DIFF}"] for t in paper.T_ADD_TABLE_10}
        run = Run(benchmark, 1, dict(models))
        dataset = next(
            (name for name, known in paper.BENCHMARKS.items() if known == benchmark), benchmark
        )
        rows += block(dataset, {name: {} for name in models}, published.columns, run, first_noise)
        notes += [
            f"{benchmark}: ours for noise 0 of each image.",
            *absent(run, list(models), published.columns),
        ]
    header = ["Dataset", "Method", "From", *map(heading, published.columns)]
    return Table(caption("Table 10", published.subject), header, rows, "table-10", notes)


def _t_add(t: str | int) -> str:
    return f"{paper.OURS} (t_add={t})"


def figure_7(sweeps: Mapping[str, Sweep]) -> Table:
    """Fig. 7: for each setting (t_add, t_diff) of NAOSD, the range over noises of the mean over
    images, and the mean.
    """
    measured = {
        metric
        for sweep in sweeps.values()
        for values in sweep["baseline"].values()
        for metric in values
    }
    metrics = [
        *(paper.METRICS[column] for column in ("PSNR", "MUSIQ")),
        *sorted(measured - {"psnr_y", "musiq"}),
    ]
    rows: list[Cells] = []
    for benchmark, sweep in sweeps.items() or [("–", {})]:
        for t_add, t_diff in paper.FIGURE_7:
            values = sweep.get("baseline", {}).get(f"{t_add},{t_diff}", {})
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
        caption("Fig. 7", "noise in NAOSD's outputs by timestep"), header, rows, "figure-7", notes
    )


def _range(values: Sequence[float] | None) -> list[Cell]:
    """The range and the mean of a metric over noises."""
    if not values:
        return [EMPTY, EMPTY]
    numbers = float(np.ptp(values)), mean(values)
    return [Cell(number(value, 4), value) for value in numbers]
