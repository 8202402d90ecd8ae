"""What `gdpo-sr score` prints and writes: a table, JSON and CSV.

result(sr, hr, names, left_out, rows, failed, sets)     the content of --json
text(result)                                            the same as a table
write_csv(path, names, rows, failed)                    one row per image
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gdpo.evaluate.statistics import finite
from gdpo.metrics.table import METRICS

MetricValues = dict[str, float]


def result(
    sr: Path,
    hr: Path | None,
    names: Sequence[str],
    left_out: dict[str, str],
    rows: dict[str, MetricValues],
    failed: dict[str, str],
    sets: MetricValues,
) -> dict[str, Any]:
    """The content that --json writes. A missing or non-finite value is null."""
    from gdpo.metrics.folders import mean
    from gdpo.metrics.score import versions

    ran = [name for name in names if name not in left_out]
    computed = versions(ran)
    metrics = {
        name: {
            "mean": sets.get(name)
            if METRICS[name].per_set
            else None
            if name in left_out
            else mean(r[name] for r in rows.values()),
            "higher_is_better": METRICS[name].higher_is_better,
            "variant": METRICS[name].variant,
            "version": computed.get(name),
            "left_out": left_out.get(name),
        }
        for name in names
    }
    columns = [name for name in names if not METRICS[name].per_set]
    images = [
        {"name": name, **{c: finite(scores.get(c)) for c in columns}}
        for name, scores in rows.items()
    ]
    return {
        "sr": str(sr),
        "hr": None if hr is None else str(hr),
        "count": len(rows),
        "metrics": metrics,
        "images": images,
        "failed": failed,
    }


def text(result: dict[str, Any]) -> str:
    """The table: a row per image and the mean.

    Below it, a line per metric describes its variant or says why it is left out.
    """
    from gdpo.metrics.folders import shown

    metrics = result["metrics"]
    ran = [name for name, metric in metrics.items() if metric["left_out"] is None]
    lines = [["image", *ran]]
    lines += [
        [shown(image["name"]), *(_number(image.get(name)) for name in ran)]
        for image in result["images"]
    ]
    lines.append([f"mean of {result['count']}", *(_number(metrics[name]["mean"]) for name in ran)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    width = max(map(len, metrics))
    for name, metric in metrics.items():
        better = "higher" if metric["higher_is_better"] else "lower"
        what = (
            f"{metric['variant']}; {better} is better"
            if metric["left_out"] is None
            else f"left out: {metric['left_out']}"
        )
        table.append(f"{name:{width}}  {what}")
    return "\n".join(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def write_csv(
    path: Path, names: Sequence[str], rows: dict[str, MetricValues], failed: dict[str, str]
) -> None:
    """Write one row per image; the values of broken images are empty."""
    from gdpo.metrics.folders import shown

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names])
    writer.writerows([shown(name), *(scores[n] for n in names)] for name, scores in rows.items())
    writer.writerows([shown(name), *("" for _ in names)] for name in failed)
    write(path, text.getvalue())


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; names that are not UTF-8 are escaped."""
    from gdpo.files import written_aside

    with written_aside(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
