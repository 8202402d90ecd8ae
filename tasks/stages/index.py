"""Stage `index`: reads every photograph once -> data/photos/<part>.parquet and
reports/photographs/report.json.

    evaluation.parquet     the held-out photographs
    00.parquet, ...        the training photographs, assigned to a part (`degrade.parts`) by a hash
                           of the name

Each list has the name, location, content hash and size of the usable photographs. The report has
the skipped ones with the reason. `degrade` reads only its part's list, so its parts can run on
different machines at the same time.
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
)  # photographs in memory at once; threads suffice: decoding and hashing release the GIL
AHEAD = 64  # photographs between two checks of should_stop


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the lists and the report.

    Errors: ValueError naming the photograph or key on bad input; nothing is written then.
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
    """Examine every photograph of a split. Errors: ValueError if none is usable.

    held_out: the evaluation scan, whose photographs the training split must not contain.
    """
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
    """The findings in the order of the photographs; `READERS` photographs are read concurrently."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(photos), AHEAD):
            if hooks.should_stop():
                raise Stopped(start)
            batch = photos[start : start + AHEAD]
            yield from pool.map(examine, batch, [min_side] * len(batch))
            hooks.log(start + len(batch), {"photographs": float(start + len(batch))})


def _described(found: Scan, sources: Sequence[Photographs], root: Path) -> dict[str, object]:
    """One split of the report. Paths are relative to `root`, so the output does not depend on where
    it is.
    """
    skipped = [
        {**row, "detail": row["detail"].replace(f"{root}{os.sep}", "")} for row in found.skipped
    ]
    of_source = {
        source.path: sum(f.photo.source == source.path for f in found.used) for source in sources
    }
    return {"photographs": found.counts(), "sources": of_source, "skipped": skipped}
