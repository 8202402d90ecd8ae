"""The paper's tables with our figures beside the paper's, for the report and for `gdpo-sr tables`
(tasks/tools/tables.py).

Our figures come from reports/evaluate/*/ (every evaluated benchmark), benchmarks/results/sweep.json
(Table 10, Fig. 7; benchmarks/sweep.py) and benchmarks/results/inference.json (Table 4;
benchmarks/inference.py). Missing files are skipped.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdpo.evaluate.models import EvaluatedModels
from gdpo.files import written_aside
from gdpo.metrics.table import METRICS
from tasks import paths
from tasks.files.results import SUMMARY, read_summary
from tasks.files.scores import SCORES, ImageScores, read_scores
from tasks.report.blocks import Run, Values
from tasks.report.published import tables
from tasks.report.tables import Table, to_csv, to_html, to_markdown

RESULTS = Path("benchmarks/results")
SWEPT = ("table-10", "figure-7")  # tables from sweep.json
FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "html": to_html}


def write(all_tables: list[Table], folder: Path) -> None:
    """Write each table to folder/<name>.md, .csv and .html; replaces the folder."""
    with written_aside(folder) as part:
        part.mkdir()
        for table in all_tables:
            for suffix, text in FORMATS.items():
                (part / f"{table.name}.{suffix}").write_text(text(table), encoding="utf-8")


def paper_tables(root: Path) -> list[Table]:
    """Tables 1-4, Fig. 7, Tables 8, 10 and 12, from the files under `root`.

    A cell without a measurement is empty, and the notes say why. Errors: ValueError naming a
    damaged file.
    """
    runs, weights = [], {}
    for folder in sorted(path.parent for path in (root / paths.EVALUATED).glob(f"*/{SUMMARY}")):
        scores = read_scores(folder / SCORES)
        models = EvaluatedModels.of_origin(scores.origin, str(folder / SCORES))
        runs.append(_run(folder, scores, models))
        roles = {"ours": models.ours, "baseline": models.baseline}
        weights[folder.name] = {
            role: scores.origin.get("weights", {}).get(name) for role, name in roles.items()
        }
    sweep, inference = _read(root, "sweep.json", {}), _read(root, "inference.json", [])
    all_tables = tables(runs, sweep["results"], inference["results"])
    others = [
        name
        for name, origin in sweep.get("origin", {}).items()
        if weights.get(name, origin["weights"]) != origin["weights"]
    ]
    notes = [
        f"{name}: measured with other weights than those evaluated; `python benchmarks/sweep.py` "
        "again."
        for name in others
    ]
    return [
        replace(table, notes=[*table.notes, *notes]) if table.name in SWEPT else table
        for table in all_tables
    ]


def _read(root: Path, name: str, absent: Any) -> dict[str, Any]:
    """A file of `RESULTS`; {"results": absent} if it is missing."""
    path = root / RESULTS / name
    if not path.is_file():
        return {"results": absent}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "results": content["results"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{RESULTS / name}: damaged ({error}); measure again, or take it from git"
        ) from error


def _run(folder: Path, scores: ImageScores, models: EvaluatedModels) -> Run:
    """Means over images for each noise, from the evaluate stage's files in `folder`."""
    means: dict[str, dict[str, Any]] = {
        **scores.noise_means(m for m in scores.metrics if m in METRICS)
    }
    sets = read_summary(folder).get("sets", {})
    for metric, values in sets.items():
        for model, by_noise in values.items():
            means[model][metric] = by_noise
    by_label: dict[str, Values] = {}
    # Ours first: of two models with one label, it has the paper's row.
    for name in sorted(means, key=lambda name: name != models.ours):
        card = models.identities.get(name)
        by_label.setdefault(card.label if card else name, means[name])
    return Run(folder.name, 1 + max(scores.table["noise"].to_pylist()), by_label)
