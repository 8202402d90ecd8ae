"""Stage `index`: reads every photograph once -> data/photos/<part>.parquet, and
reports/photographs/report.json.

    evaluation.parquet     the held-out photographs
    00.parquet, ...        the training photographs, each in the part that its name's hash says
                           (`degrade.parts`)

A list has name, place, content hash and size of the photographs that can be used; the report has
the others with the reason. `degrade` works on one list, so its parts can run anywhere at once.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gdpo.config import Config, Photographs
from gdpo.data.scan import Finding, Scan, examine, scan
from gdpo.data.sources import Photo, Split, part_of
from gdpo.files import written_aside
from gdpo.train.loop import Hooks, Stopped
from tasks.files.photographs import listed, write_list

READERS = min(
    4, os.cpu_count() or 1
)  # photographs in memory at once; decoding and hashing leave Python's lock alone
AHEAD = 64


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the lists and the report. ValueError naming the photograph or key on bad input; then
    nothing is written.
    """
    held_out = _scan(config, "evaluation", root, hooks, None)
    trained = _scan(config, "train", root, hooks, held_out)
    parts: dict[str, list[Finding]] = {name: [] for name in config.degrade.parts}
    for found in trained.used:
        parts[part_of(found.photo.name, config.degrade.parts)].append(found)
    with written_aside(root / "data/photos") as folder:
        folder.mkdir()
        for name, findings in [*parts.items(), ("evaluation", held_out.used)]:
            write_list(folder / f"{name}.parquet", findings)
    report = {
        "evaluation": _described(held_out, config.degrade.evaluation, root),
        "train": {
            **_described(trained, config.degrade.train, root),
            "parts": {name: len(findings) for name, findings in parts.items()},
        },
    }
    with written_aside(root / "reports/photographs") as folder:
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _scan(config: Config, split: Split, root: Path, hooks: Hooks, held_out: Scan | None) -> Scan:
    sources, side = config.degrade.train, config.degrade.crop
    if split == "evaluation":
        sources, side = config.degrade.evaluation, config.degrade.evaluation_crop
    photos = listed(sources, split, root)
    findings = _examined(photos, side, hooks)
    found = scan(
        findings, len(photos), config.degrade.max_failures, held_out.hashes() if held_out else None
    )
    if not found.used:
        raise ValueError(
            f"degrade.{split}: none of {len(photos)} photographs can be used; "
            f"{found.skipped[0]['detail']}"
        )
    return found


def _examined(photos: Sequence[Photo], min_side: int, hooks: Hooks) -> Iterator[Finding]:
    """The findings in the order of the photographs, a few being read at once."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(photos), AHEAD):
            if hooks.should_stop():
                raise Stopped(start)
            batch = photos[start : start + AHEAD]
            yield from pool.map(examine, batch, [min_side] * len(batch))
            hooks.log(start + len(batch), {"photographs": float(start + len(batch))})


def _described(found: Scan, sources: Sequence[Photographs], root: Path) -> dict[str, object]:
    """One split of the report: the same wherever the repository lies, as every output must be."""
    skipped = [
        {**row, "detail": row["detail"].replace(f"{root}{os.sep}", "")} for row in found.skipped
    ]
    of_source = {
        source.path: sum(f.photo.source == source.path for f in found.used) for source in sources
    }
    return {"photographs": found.counts(), "sources": of_source, "skipped": skipped}
