"""The sections of the report that come from the files of one stage. Each function returns the
content of its section.

    photographs   index: used and skipped photographs, by reason
    parts         degrade: the counts of each part
    reasons       select, index: counts by reason, as bars
    since         evaluate and promoted/: the changes since the promoted run
    origins       evaluate: the provenance of the scores
    evidence      benchmarks/results: the claims over several training seeds
    data_docs     the pages of Great Expectations

Pictures are in tasks/report/gallery.py, training figures in tasks/report/curves.py. Addresses are
relative to reports/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks import paths
from tasks.files.scores import SCORES, read_scores
from tasks.report.changes import Changes, changes
from tasks.report.gallery import read_text
from tasks.report.tables import evaluated

LONGEST_LIST = 12  # longer collections are shown as their length
MOST_SKIPPED = 100  # skipped photographs listed with their reason


def since(
    root: Path, benchmark: str, summary: Mapping[str, Any]
) -> tuple[Changes, list[tuple[str, str, str]]] | None:
    """Our model in this run against the promoted run, and (name, then, now) of every origin entry
    that differs.

    None if no run of the benchmark is promoted.
    """
    promoted = root / paths.PROMOTED / benchmark / SCORES
    if not promoted.is_file():
        return None
    higher = {
        metric: bool(properties["higher_is_better"])
        for metric, properties in summary["metrics"].items()
    }
    now, before = read_scores(root / paths.EVALUATED / benchmark / SCORES), read_scores(promoted)
    a, b = dict(origins(before.origin)), dict(origins(now.origin))
    names = [name for name in dict.fromkeys([*b, *a]) if a.get(name) != b.get(name)]
    return (
        changes(
            now.image_means(higher),
            before.image_means(higher),
            higher,
            evaluated(summary).ours,
            now.photographs,
        ),
        [(name, a.get(name, "–"), b.get(name, "–")) for name in names],
    )


def origins(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The provenance of an evaluation as (name, text) lines: hashes, metric versions."""
    return flat(dict(sorted(origin.items())))


def reasons(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """(reason, count, percent of all), most frequent first."""
    total = sum(counts.values()) or 1
    return [
        (name, count, 100 * count / total)
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def photographs(root: Path) -> list[dict[str, Any]]:
    """For the training and the held-out photographs: the number used, the number skipped by reason,
    and the skipped ones.
    """
    content = json.loads(read_text(root, f"{paths.PHOTOGRAPHS}/{paths.STAGE_REPORT}"))
    return [
        {
            "title": {"train": "Training", "evaluation": "Held out"}[split],
            "counts": reasons(content[split]["photographs"]),
            "skipped": content[split]["skipped"][:MOST_SKIPPED],
            "of": len(content[split]["skipped"]),
        }
        for split in ("train", "evaluation")
    ]


def parts(root: Path, names: list[str]) -> list[tuple[str, int, int]]:
    """(part, photographs, pairs) of each part of degrade."""
    reports = [
        (name, json.loads(read_text(root, f"{paths.DEGRADED}/{name}/{paths.STAGE_REPORT}")))
        for name in names
    ]
    return [(name, report["photographs"], report["pairs"]) for name, report in reports]


def evidence(root: Path) -> dict[str, Any] | None:
    """The page of the evidence over several training seeds (benchmarks/evidence.py), if there is
    any.
    """
    path = root / "benchmarks/results/evidence.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    return {
        "template": "evidence",
        "title": "Evidence",
        "seeds": len(results["seeds"]),
        "claims": results["claims"],
        "text": text,
    }


def data_docs(root: Path, names: list[str]) -> list[tuple[str, str]]:
    """(name, address) of the Great Expectations sites that exist under reports/data-docs."""
    existing = [name for name in names if (root / paths.DATA_DOCS / name / "index.html").is_file()]
    return [(name, quote(f"data-docs/{name}/index.html")) for name in existing]


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(name, text) lines: nested mappings become `a / b`; a long collection (a count per
    photograph, for example) becomes its length.
    """
    if prefix and isinstance(content, dict | list) and len(content) > LONGEST_LIST:
        return [(prefix, _length(content))]
    if isinstance(content, dict) and content:
        return [
            line
            for key, value in content.items()
            for line in flat(value, f"{prefix} / {key}" if prefix else key)
        ]
    if isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        return [(prefix, _length(content))]
    if isinstance(content, list):
        return [(prefix, ", ".join(map(str, content)) or "none")]
    if content in ("", None, {}):
        return [(prefix, "none")]
    return [(prefix, f"{content:.4g}" if isinstance(content, float) else str(content))]


def _length(content: dict[str, Any] | list[Any]) -> str:
    return "1 entry" if len(content) == 1 else f"{len(content)} entries"
