"""Compare an evaluation with an earlier one: `python -m tasks evaluate --against latest`, as the
nightly run does.

    latest    promoted/<benchmark>/per_image.parquet, the promoted model's run; of RealSR-R1
              promoted/vlcot/<benchmark>/per_image.parquet
    PATH      another per_image.parquet, or a folder with one

Compares our model (gdpo/evaluate/models.py) in this run with the model of that name in the earlier
run, paired by photograph, over the noises that both runs have. A metric regressed if its 95 %
interval lies entirely on the worse side of 0. Metrics are not adjusted for each other: of
twenty unchanged metrics, one regresses by chance. The regressed metrics come first on stderr and in
reports/against/<benchmark>.json, of RealSR-R1 reports/against/vlcot/<benchmark>.json (not a DVC
output: it depends on what is promoted). After a
regression the exit code is 4.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.evaluate.models import EvaluatedModels
from gdpo.files import written_aside
from gdpo.metrics.score import METRICS, higher_is_better
from tasks import paths
from tasks.files.scores import SCORES, ImageScores, read_scores
from tasks.report.changes import Changes, changes
from tasks.report.tables import interval_text, label, mean_text, photographs_text
from tasks.report.verdict import DifferenceRow
from tasks.run.exit_codes import REGRESSED
from tasks.systems import SYSTEMS

LATEST = "latest"
# Settings that comparable runs share, and the advice if they differ.
_SAME = {
    "benchmark": "name another run",
    "color_fix": "evaluate both alike",
    "precision": "evaluate both alike",
}


def check(
    config: Config, root: Path, benchmark: str | None, against: str, system: str = "gdpo"
) -> int:
    """Compare with an earlier run and report; returns 0, or 4 after a regression. Errors: those of
    `baseline_scores` and `compare`.

    system: whose evaluation, a key of `SYSTEMS`.
    """
    benchmark = benchmark or config.evaluate.benchmarks[0]
    before = baseline_scores(config, root, benchmark, against, system)
    now = root / SYSTEMS[system].evaluations / benchmark / SCORES
    scores = read_scores(now)
    models = EvaluatedModels.of_origin(scores.origin, str(now))
    changed, metadata = compare(scores, before, models.ours)
    worse, rest = _sorted(changed)
    content = {
        "benchmark": benchmark,
        "regressed": [difference["metric"] for difference in worse],
        "metrics": [*worse, *rest],
        **{name: value for name, value in asdict(changed).items() if name != "rows"},
        "against": {
            "file": before.relative_to(root).as_posix()
            if before.is_relative_to(root)
            else before.name,
            **metadata,
        },
    }
    with written_aside(root / comparison(benchmark, system)) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    verdict = f"{len(worse)} of {len(changed.rows)} metrics regressed" if worse else "no regression"
    name = f"{models.label(changed.model)} on {benchmark} against {content['against']['file']}"
    lines = [
        *(f"regressed: {_line(difference)}" for difference in worse),
        f"{name}: {verdict}, {photographs_text(changed.photographs, changed.images)}",
        *map(_line, rest),
    ]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return REGRESSED if worse else 0


def comparison(benchmark: str, system: str) -> str:
    """Where `check` writes, relative to the root."""
    own = [] if system == "gdpo" else [system]
    return "/".join([paths.AGAINST, *own, f"{benchmark}.json"])


def baseline_scores(
    config: Config, root: Path, benchmark: str | None, against: str, system: str = "gdpo"
) -> Path:
    """The file of the run to compare with. Errors: ValueError naming it if it is missing."""
    if against == LATEST:
        benchmark = benchmark or config.evaluate.benchmarks[0]
        path = root / SYSTEMS[system].promoted / benchmark / SCORES
        if not path.is_file():
            shown = path.relative_to(root)
            raise ValueError(
                f"{shown}: no promoted run of this benchmark yet; promote one, or give --against "
                "a file"
            )
        return path
    path = root / against
    path = path / SCORES if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{against}: no {SCORES} there (--against)")
    return path


def compare(scores: ImageScores, before: Path, model: str) -> tuple[Changes, dict[str, Any]]:
    """Paired differences of `model` (this run minus the earlier one), and the hashes of the
    earlier run's code and weights.

    Errors: ValueError naming the earlier file if its benchmark, settings, metric versions or images
    differ.
    """
    old_scores = read_scores(before)
    new, old = scores.origin, old_scores.origin
    for key, advice in _SAME.items():
        if new.get(key) != old.get(key):
            raise ValueError(
                f"{before}: {key} is {old.get(key)}, in this run {new.get(key)}; {advice}"
            )
    shared = [m for m in scores.metrics if m in METRICS and m in old_scores.metrics]
    for metric in shared:
        ours, theirs = (run.get("metrics", {}).get(metric) for run in (new, old))
        if ours != theirs:
            raise ValueError(
                f"{before}: {metric} is of version {theirs}, in this run {ours}; evaluate the "
                "earlier model again"
            )
    # Noise n depends on seed and pair alone, so the first noises of both runs are the same; only
    # these are compared. Of other seeds all are used, and noise is part of the difference.
    same_noises = new.get("seed") == old.get("seed")
    noises = min(new.get("noises", 0), old.get("noises", 0)) if same_noises else None
    a, b = (run.image_means(shared, noises) for run in (scores, old_scores))
    higher = {metric: higher_is_better(metric) for metric in shared}
    changed = changes(a, b, higher, model, scores.photographs)
    # Every image of both runs must take part: a comparison over the images that happen to be shared
    # could hide a regression on the others.
    if not changed.rows or changed.images < max(changed.of, len(b.get(model, {}))):
        raise ValueError(
            f"{before}: of other images, models or metrics than this run; evaluate the earlier "
            "model again"
        )
    return changed, {"code": old.get("code"), "weights": old.get("weights", {}).get(model)}


def _sorted(changed: Changes) -> tuple[list[DifferenceRow], list[DifferenceRow]]:
    """The regressed rows, sorted by distance from 0 in standard errors (largest first), and the
    other rows.
    """

    def regressed(difference: DifferenceRow) -> bool:
        end = difference["high"] if higher_is_better(difference["metric"]) else difference["low"]
        return end is not None and (end < 0 if higher_is_better(difference["metric"]) else end > 0)

    def distance(difference: DifferenceRow) -> float:
        return (
            abs(difference["mean"]) / difference["standard_error"]
            if difference["standard_error"]
            else float("inf")
        )

    worse = sorted(filter(regressed, changed.rows), key=distance, reverse=True)
    return worse, [difference for difference in changed.rows if not regressed(difference)]


def _line(difference: DifferenceRow) -> str:
    """One metric's difference and interval, as text."""
    interval = (
        "one image, no interval"
        if difference["low"] is None
        else f"95 % interval {interval_text(difference)}"
    )
    return f"{label(difference['metric'])} {mean_text(difference)} ({interval})"
