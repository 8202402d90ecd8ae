"""Tables of an evaluation, rendered as Markdown, CSV, HTML or plain text.

    models_table(summary)        rows models, columns metrics: mean ± standard error over
                                 photographs, the best in bold
    differences_table(summary)   rows comparison × metric: difference, interval, p, effect, verdict

`summary` is the content of summary.json (tasks/files/evaluation.py).
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev
from typing import Any

from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import LEVEL
from gdpo.metrics.table import METRICS

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the number to sort by (None: sort by text), and whether it is the best of
    its column.
    """

    text: str
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, column headings and rows of cells; the first column names the row.

    name: file name without suffix, if the table is written to a file. notes: sentences below the
    table.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    name: str = ""
    notes: Sequence[str] = ()


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with a fixed count of decimals and a typographic minus sign; a dash for None; never
    "-0.00".
    """
    if value is None:
        return "–"
    value = round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def _decimals(standard_error: float | None) -> int:
    """Decimals that show two significant digits of the standard error, between 2 and 5."""
    if (
        not standard_error or standard_error < 1e-9
    ):  # the reference's own reward is 0 up to rounding
        return 3
    return min(max(1 - math.floor(math.log10(standard_error)), 2), 5)


def p_text(p: float | None) -> str:
    """A p value as printed: three decimals, `< 0.001` below that."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_text(difference: Mapping[str, Any]) -> str:
    """The mean of a difference, signed."""
    return number(difference["mean"], _decimals(difference["standard_error"]), sign=True)


def label(metric: str) -> str:
    """The printed name of a metric or the reward; other names are returned unchanged."""
    if metric == REWARD:
        return "Reward"
    return METRICS[metric].label if metric in METRICS else metric


def evaluated(summary: Summary) -> EvaluatedModels:
    """Which of the evaluated models is which. Errors: ValueError if an earlier version wrote it."""
    name = f"the evaluation of {summary['benchmark']}"
    return EvaluatedModels.of_origin(summary.get("origin", {}), name)


def metric_heading(summary: Summary, metric: str) -> str:
    """Label with an arrow that says which direction is better."""
    return f"{label(metric)} {'↑' if summary['metrics'][metric]['higher_is_better'] else '↓'}"


def sample(summary: Summary) -> str:
    """The sample behind an interval: the number of photographs, and of tiles if they were cut."""
    return photographs_text(summary.get("photographs", summary["images"]), summary["images"])


def photographs_text(photographs: int, images: int) -> str:
    """The number of photographs, and of the images cut from them if there are more."""
    text = f"{photographs} photograph{'' if photographs == 1 else 's'}"
    return text if images == photographs else f"{text} ({images} tiles)"


def no_published_niqe(metrics: Iterable[str]) -> str:
    """A caption's warning if `niqe` is shown: its values look like published NIQE values."""
    if "niqe" not in metrics:
        return ""
    return (
        f" {label('niqe')}: NIQE with pristine parameters of our own, so no published NIQE "
        "compares."
    )


def models_table(summary: Summary) -> Table:
    """Every model's mean and standard error for every metric. Bold marks the best mean of a column,
    without any claim of significance.
    """
    metrics, models, cards = list(summary["metrics"]), summary["models"], evaluated(summary)
    sign = {
        metric: 1 if summary["metrics"][metric]["higher_is_better"] else -1 for metric in metrics
    }
    best = {
        metric: max(sign[metric] * values[metric]["mean"] for values in models.values())
        for metric in metrics
    }
    # One count of decimals per column, from the reference's standard error.
    reference = models[cards.baseline]
    decimals = {metric: _decimals(reference[metric]["standard_error"]) for metric in metrics}

    def cell(model: str, metric: str) -> Cell:
        value, error = models[model][metric]["mean"], models[model][metric]["standard_error"]
        text = f"{number(value, decimals[metric])} ± {number(error, decimals[metric])}"
        return Cell(text, value, sign[metric] * value == best[metric])

    caption = (
        f"Mean ± standard error over {sample(summary)}, of the mean over "
        f"{summary['noises']} noises. Bold: "
        "the best mean of the column. The reward is in "
        f"{cards.label(cards.baseline)}'s within-image standard deviations."
    )
    caption += no_published_niqe(metrics)
    sets = summary.get("sets", {})
    if sets:
        caption += (
            f" {', '.join(map(label, sets))}: of all images together, mean ± standard "
            "error over the noises."
        )
    rows = [
        [
            Cell(cards.label(model)),
            *(cell(model, metric) for metric in metrics),
            *(_set_cell(sets[name], model) for name in sets),
        ]
        for model in models
    ]
    header = [
        "Model",
        *(metric_heading(summary, metric) for metric in metrics),
        *(f"{label(name)} ↓" for name in sets),
    ]
    return Table(caption, header, rows)


def _set_cell(values: Mapping[str, Sequence[float]], model: str) -> Cell:
    """A distance between sets of images (FID), one value per noise; the lowest mean is the best."""
    if model not in values:
        return Cell("–")
    means = {name: fmean(by_noise) for name, by_noise in values.items()}
    error = stdev(values[model]) / math.sqrt(len(values[model])) if len(values[model]) > 1 else None
    text = f"{number(means[model], 2)} ± {number(error, 2)}"
    return Cell(text, means[model], means[model] == min(means.values()))


def interval_text(difference: Mapping[str, Any]) -> str:
    """The 95 % interval of a difference."""
    decimals = _decimals(difference["standard_error"])
    low, high = (number(difference[end], decimals, sign=True) for end in ("low", "high"))
    return f"{low} to {high}"


def differences_table(summary: Summary) -> Table:
    """Every paired difference with its 95 % interval, p, size in the baseline's within-image
    standard deviations, and verdict.
    """
    models = evaluated(summary)

    def cells(difference: Mapping[str, Any]) -> list[Cell]:
        return [
            Cell(f"{models.label(difference['a'])} − {models.label(difference['b'])}"),
            Cell(metric_heading(summary, difference["metric"])),
            Cell(mean_text(difference), difference["mean"]),
            Cell(interval_text(difference), difference["low"]),
            Cell(p_text(difference["p"]), difference["p"]),
            Cell("–")
            if difference["metric"] == "reward"
            else Cell(number(difference["effect"], 2, sign=True), difference["effect"]),
            Cell(difference["verdict"], best=difference["verdict"] == "better"),
        ]

    caption = (
        f"Paired over {sample(summary)}, tiles and noises averaged first; Student's t interval "
        f"and two-sided p, not adjusted for the number of rows. A verdict needs p < {LEVEL}. "
        "Spread: within-image standard deviation over noises; the reward is in that unit already."
    ) + no_published_niqe(summary["metrics"])
    header = [
        "Comparison",
        "Metric",
        "Difference",
        "95 % interval",
        "p",
        f"In {models.label(models.baseline)}’s spread",
        "Verdict",
    ]
    return Table(caption, header, [cells(difference) for difference in summary["differences"]])


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table, followed by the caption and the notes."""
    lines = [
        "| " + " | ".join(row) + " |"
        for row in ([table.header, ["---"] + ["---:"] * (len(table.header) - 1)])
    ]
    for row in table.rows:
        texts = [cell.text.replace("|", "\\|") for cell in row]
        lines.append(
            "| "
            + " | ".join(f"**{t}**" if c.best else t for t, c in zip(texts, row, strict=True))
            + " |"
        )
    return "\n".join([*lines, "", table.caption, *(f"- {note}" for note in table.notes), ""])


def to_csv(table: Table) -> str:
    """Comma-separated values: the unrounded number of a cell that has one, else its text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([cell.text if cell.value is None else repr(cell.value) for cell in row])
    return buffer.getvalue()


def to_html(table: Table) -> str:
    """An HTML table with every text escaped; `data-value` has the number to sort by, `data-label`
    the heading of the column, for narrow screens.
    """

    def cell(of: Cell, tag: str) -> str:
        value = "" if of.value is None else f' data-value="{of.value!r}"'
        text = f"<strong>{escape(of.text)}</strong>" if of.best else escape(of.text)
        return f"<{tag}{value}>{text}</{tag.split()[0]}>"

    labels = [f'td data-label="{escape(name)}"' for name in table.header[1:]]

    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = [
        cell(row[0], 'th scope="row"') + "".join(map(cell, row[1:], labels)) for row in table.rows
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = f"<caption><span>{escape(table.caption)}</span></caption>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    below = f"<ul>{notes}</ul>" if notes else ""
    content = f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<table class="cells">{content}</table>{below}'


def to_text(table: Table, *, bold: bool = False) -> str:
    """Aligned plain text, without the caption. The best of a column has a star, or is bold (for a
    terminal).
    """
    star = "" if bold else "*"
    rows = [
        [Cell(name) for name in table.header],
        *(
            [Cell(cell.text + star * cell.best, best=cell.best and bold) for cell in row]
            for row in table.rows
        ),
    ]
    widths = [max(len(row[column].text) for row in rows) for column in range(len(table.header))]
    return "\n".join(
        "  ".join(
            _bold(cell.text.ljust(width)) if cell.best else cell.text.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m"
