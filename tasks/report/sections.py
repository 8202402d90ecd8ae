"""The sections of the report that come from the files of one stage. Each function returns the
content of its section.

    photographs   index: used and skipped photographs, by reason
    parts         degrade: the counts of each part
    reasons       select, index: counts by reason, as bars
    since         evaluate and promoted/: the changes since the promoted run
    origins       evaluate: the provenance of the scores, from the metadata of per_image.parquet
    data_docs     the pages of Great Expectations

Pictures are in tasks/report/gallery.py, training figures in tasks/report/curves.py. Addresses are
relative to reports/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from tasks.report.gallery import read_text
from tasks.report.verdict import Changes, changes

LONGEST_LIST = 12  # longer collections are shown as their length
MOST_SKIPPED = 100  # skipped photographs listed with their reason


def since(
    root: Path, benchmark: str, summary: Mapping[str, Any]
) -> tuple[Changes, list[tuple[str, str, str]]] | None:
    """GDPO-SR in this run against the promoted run, and (name, then, now) of every origin entry
    that differs.

    None if no run of the benchmark is promoted.
    """
    before = root / "promoted" / benchmark / "per_image.parquet"
    if not before.is_file():
        return None
    higher = {
        metric: bool(properties["higher_is_better"])
        for metric, properties in summary["metrics"].items()
    }
    now = root / "reports/evaluate" / benchmark / "per_image.parquet"
    found = changes(_image_means(now, list(higher)), _image_means(before, list(higher)), higher)
    a, b = dict(origins(before)), dict(origins(now))
    names = [name for name in dict.fromkeys([*b, *a]) if a.get(name) != b.get(name)]
    return found, [(name, a.get(name, "–"), b.get(name, "–")) for name in names]


def _image_means(path: Path, metrics: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """{model: {image: {metric: mean over noises}}}; metrics that the file lacks are left out."""
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no Parquet file ({str(error).splitlines()[0]})") from error
    present = [metric for metric in metrics if metric in table.column_names]
    means = table.group_by(["model", "image"], use_threads=False).aggregate(
        [(metric, "mean") for metric in present]
    )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in means.to_pylist():
        values = {m: row[f"{m}_mean"] for m in present if row[f"{m}_mean"] is not None}
        found.setdefault(row["model"], {})[row["image"]] = values
    return found


def origins(path: Path) -> list[tuple[str, str]]:
    """The metadata of a Parquet file as (name, text) lines: commit, hashes of weights, metric
    versions.
    """
    metadata = pq.read_schema(path).metadata or {}
    texts = {
        key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"
    }
    return flat({key: _parsed(text) for key, text in sorted(texts.items())})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def reasons(found: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """(reason, count, percent of all), most frequent first."""
    total = sum(found.values()) or 1
    return [
        (name, count, 100 * count / total)
        for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]


def photographs(root: Path) -> list[dict[str, Any]]:
    """For the training and the held-out photographs: the number used, the number skipped by reason,
    and the skipped ones.
    """
    found = json.loads(read_text(root, "reports/photographs/report.json"))
    return [
        {
            "title": {"train": "Training", "evaluation": "Held out"}[split],
            "counts": reasons(found[split]["photographs"]),
            "skipped": found[split]["skipped"][:MOST_SKIPPED],
            "of": len(found[split]["skipped"]),
        }
        for split in ("train", "evaluation")
    ]


def parts(root: Path, names: list[str]) -> list[tuple[str, int, int]]:
    """(part, photographs, pairs) of each part of degrade."""
    found = [
        (name, json.loads(read_text(root, f"reports/degrade/{name}/report.json"))) for name in names
    ]
    return [(name, made["photographs"], made["pairs"]) for name, made in found]


def data_docs(root: Path, names: list[str]) -> list[tuple[str, str]]:
    """(name, address) of the Great Expectations sites that exist under reports/data-docs."""
    there = [name for name in names if (root / "reports/data-docs" / name / "index.html").is_file()]
    return [(name, quote(f"data-docs/{name}/index.html")) for name in there]


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
