"""The last evaluation of a benchmark, from reports/evaluate/<benchmark>/summary.json, as text:
`gdpo-sr summary` (tasks/tools/summary.py). Both systems follow in one table where RealSR-R1 was
evaluated too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdpo.config.evaluation import SAMPLE
from tasks import paths
from tasks.files.results import read_summary
from tasks.params import load
from tasks.report import systems
from tasks.report.by_metric import changed, scores_table
from tasks.report.tables import Table, differences_table, models_table, to_text
from tasks.report.verdict import explanations, headline, verdict_sentence
from tasks.systems import SYSTEMS

REPORT = Path(paths.INDEX)


def read(root: Path, benchmark: str | None = None, system: str = "gdpo") -> Mapping[str, Any]:
    """The summary.json of a benchmark under `root`; None: the first benchmark in root/params.yaml.

    system: a key of `SYSTEMS`.

    Errors: ValueError naming a missing or damaged file.
    """
    params = root / "params.yaml"
    first = (
        load(params).evaluate.benchmarks[0] if benchmark is None and params.is_file() else SAMPLE
    )
    return read_summary(Path(SYSTEMS[system].evaluations, benchmark or first), root)


def text(summary: Mapping[str, Any], root: Path, *, bold: bool = False) -> str:
    """The summary as plain text; also the last output of `make demo`.

    bold: mark the best of a column for a terminal, otherwise by a star.
    """
    parts = [
        headline(summary),
        *explanations(summary),
        *_texts(models_table(summary), bold=bold),
        *_texts(differences_table(summary), bold=bold),
        *_both(summary["benchmark"], root, bold=bold),
    ]
    return "\n\n".join(["", *parts, f"Report: {root / REPORT}"])


def _texts(table: Table, *, bold: bool) -> list[str]:
    """A table and its caption."""
    return [
        to_text(table, bold=bold),
        table.caption if bold else table.caption.replace("Bold: ", "Star: "),
    ]


def _both(benchmark: str, root: Path, *, bold: bool) -> list[str]:
    """GDPO-SR and RealSR-R1 side by side, if both were evaluated on the benchmark."""
    if not systems.are_there(root, benchmark):
        return []
    try:
        joint = systems.joint(root, benchmark)
    except ValueError as error:
        return [f"GDPO-SR and RealSR-R1 cannot stand in one table: {error}"]
    page = root / paths.SYSTEMS / "index.html"
    return [
        "GDPO-SR and RealSR-R1 side by side",
        *_texts(systems.scores_table(joint), bold=bold),
        *_texts(systems.paired_table(joint), bold=bold),
        *([f"Both, with pictures: {page}"] if page.is_file() else []),
    ]


def artifact(summary: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """The content of a Prefect table artifact: {heading: text} per model, and the verdict as its
    description.
    """
    table = scores_table(summary)
    rows = [dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows]
    # With one sample the reward, which the verdict is about, has no unit.
    return rows, verdict_sentence(summary) if summary["noises"] > 1 else " ".join(changed(summary))
