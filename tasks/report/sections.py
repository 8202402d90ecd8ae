"""The parts of the report that are made from files of one stage each; a function returns what its
block shows.

    photographs   index: used, and skipped by reason;  parts: what each part of degrade made
    reasons       select, index: counts by reason, as bars
    since         evaluate and promoted/: what changed since the promoted run
    origins       evaluate: where the scores come from, out of the metadata of per_image.parquet
    data_docs     the pages of Great Expectations

Pictures are in tasks/report/gallery.py, figures of training in tasks/report/curves.py. Addresses
are relative to reports/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from tasks.report.gallery import read_text
from tasks.report.verdict import Changes, changes

LONGEST_LIST = 12  # entries of a report.json that are listed one by one
MOST_SKIPPED = 100  # photographs that are named with the reason


def since(
    root: Path, benchmark: str, summary: Mapping[str, Any]
) -> tuple[Changes, list[tuple[str, str, str]]] | None:
    """GDPO-SR in this run against the promoted run, and (name, then, now) of what else differs
    between the two.

    None where nothing is promoted for the benchmark.
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
    """The metadata of a Parquet file as (name, text) lines: commit, hashes of weights, versions of
    metrics.
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
    """Of the training and the held-out photographs: how many were used, or skipped for which
    reason, and which.
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
    """(part, photographs, pairs) of what each part of degrade made."""
    found = [
        (name, json.loads(read_text(root, f"reports/degrade/{name}/report.json"))) for name in names
    ]
    return [(name, made["photographs"], made["pairs"]) for name, made in found]


def data_docs(root: Path, names: list[str]) -> list[tuple[str, str]]:
    """(what was checked, address) of the sites of Great Expectations that are under
    reports/data-docs.
    """
    there = [name for name in names if (root / "reports/data-docs" / name / "index.html").is_file()]
    return [(name, quote(f"data-docs/{name}/index.html")) for name in there]


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings become `a / b`; what is long (a count per photograph, say) becomes its
    length.
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
