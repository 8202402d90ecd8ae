"""The report's figures: small SVG files with one panel each, so that a phone can stack them,
readable in light and dark mode.

Equal inputs give equal bytes (no date, salted ids). Ink and grid are drawn in marker colours, which
`_save` replaces by CSS variables: the browser resolves them for the reader's colour scheme, also
inside <img>.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#010203", "#040506"
COLORS = {"baseline": "#2f9e76", "reward": "#4a86e8", "control": "#d9822b"}  # by role
OTHERS = ("#a76bd1", "#c9587a", "#6f8796")  # for lines without a colour of their own, in turn
STYLE = (
    ":root{--ink:#3a4049;--grid:#e3e6ea}@media(prefers-color-scheme:dark){:root{--ink:#b9c0ca;--grid:#333a44}}"
    "text{font-family:system-ui,sans-serif!important}"
)
# {label: (steps, values)}
Series = Mapping[str, tuple[Sequence[float], Sequence[float] | np.ndarray]]
Roles = Mapping[str, str]  # label -> role of the model (gdpo.model.card)

SETTINGS: Any = {  # Any: matplotlib types the keys of rc_context as literals
    "svg.fonttype": "none",
    "svg.hashsalt": "gdpo-sr",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "font.sans-serif": ["DejaVu Sans"],
}


def _axes(title: str, xlabel: str, width: float = 4.2, height: float = 2.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    # parse_math off: names of metrics and photographs may contain dollar signs.
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(xlabel, parse_math=False)
    return figure, axes


def _colors(labels: Sequence[str], roles: Roles) -> dict[str, str]:
    """A colour for each label: its role's for the first of a role, then those of `OTHERS`."""
    first = {roles[label]: label for label in reversed(labels) if label in roles}
    others = [label for label in labels if label not in first.values()]
    return {label: COLORS[role] for role, label in first.items()} | {
        label: OTHERS[index % len(OTHERS)] for index, label in enumerate(others)
    }


def _save(figure: Figure, path: Path) -> None:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    path.write_text(
        svg.replace('<style type="text/css">', f'<style type="text/css">{STYLE}', 1),
        encoding="utf-8",
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the values; the window shrinks at the ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def curves(path: Path, title: str, series: Series, roles: Roles | None = None) -> None:
    """One logged value over training steps: raw values faint, their running mean strong."""
    colors = _colors(list(series), roles or {})
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes(title, "step")
        for label, (steps, values) in series.items():
            color = colors[label]
            axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(
                steps,
                _smooth(np.asarray(values, dtype=np.float64)),
                color=color,
                linewidth=1.6,
                label=label,
            )
        if len(series) > 1:
            axes.legend()
        _save(figure, path)


def histogram(path: Path, title: str, xlabel: str, values: np.ndarray) -> None:
    """The distribution of a quantity, with a line at its median."""
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes(f"{title}, median {float(np.median(values)):.3g}", xlabel)
        axes.hist(
            values, bins=min(30, max(5, len(values) // 4)), color=COLORS["reward"], alpha=0.75
        )
        axes.axvline(float(np.median(values)), color=INK, linewidth=1, linestyle="--")
        _save(figure, path)


def ranks(path: Path, title: str, ranked_BG: np.ndarray) -> None:
    """A metric of the candidates by rank of their reward (1 = best), relative to the group's mean.

    ranked_BG: (groups, candidates in order of rank). The line is the mean over groups, the band the
    interquartile range.
    """
    x = np.arange(1, ranked_BG.shape[1] + 1)
    low, high = np.percentile(ranked_BG, [25, 75], axis=0)
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes(f"{title} by rank in the group", "rank by reward, 1 = best")
        axes.fill_between(x, low, high, color=COLORS["reward"], alpha=0.22, linewidth=0)
        axes.plot(
            x, ranked_BG.mean(axis=0), "o-", color=COLORS["reward"], linewidth=1.6, markersize=4
        )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(x)
        _save(figure, path)


def forest(
    path: Path,
    rows: Sequence[tuple[str, str, float, float, float]],
    baseline: str,
    roles: Roles,
) -> None:
    """Effects with intervals, a line per (metric label, model label, mean, low, high); right of 0
    is better. baseline: the label of the model whose deviations are the unit.
    """
    labels = list(dict.fromkeys(effect[0] for effect in rows))
    models = list(dict.fromkeys(effect[1] for effect in rows))
    colors = _colors(models, roles)
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes(
            "",
            f"better →  ({baseline}’s within-image standard deviations)",
            4.8,
            0.9 + 0.5 * len(labels),
        )
        for name, model, mean, low, high in rows:
            place = (len(models) - 1) / 2 - models.index(model)
            y = -labels.index(name) + 0.28 * place * 2 / max(len(models), 2)
            color = colors[model]
            axes.plot(
                [low, high], [y, y], color=color, linewidth=2.4, solid_capstyle="round", alpha=0.6
            )
            axes.plot([mean], [y], "o", color=color, markersize=6)
        for model in models:
            axes.plot([], [], "o-", color=colors[model], label=model)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks([-i for i in range(len(labels))], labels, parse_math=False)
        axes.set_ylim(-len(labels) + 0.5, 0.5)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.32 / len(labels)), ncols=2)
        _save(figure, path)
