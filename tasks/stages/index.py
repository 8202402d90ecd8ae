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

from gdpo.config import Config, Degrade, Photographs
from gdpo.config.fields import EVALUATION
from gdpo.data.scan import Finding, Scan, examine, scan
from gdpo.data.sources import Photo, Split, lowest, part_of, patch_id, sliding_windows
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from tasks import paths
from tasks.files.photographs import listed, write_list

# Photographs in memory at once. Threads suffice: decoding and hashing release the GIL.
READERS = min(4, os.cpu_count() or 1)
AHEAD = 64  # photographs between two checks of should_stop


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the lists and the report.

    Errors: ValueError naming the photograph or key on bad input; nothing is written then.
    """
    # First, since a training photograph that repeats one of these is refused.
    held_out = _scan(config, "evaluation", root, hooks)
    trained = _scan(config, "train", root, hooks, held_out.used)
    parts: dict[str, list[Finding]] = {name: [] for name in config.degrade.parts}
    for photograph in trained.used:
        parts[part_of(photograph.photo.name, config.degrade.parts)].append(photograph)
    # Over all parts at once: which windows are cut must not depend on how many parts there are.
    below = _limit(config.degrade, trained.used)
    with written_aside(root / paths.PHOTOS) as folder:
        folder.mkdir()
        for part, findings in [*parts.items(), (EVALUATION, held_out.used)]:
            limit = None if part == EVALUATION else below
            write_list(folder / Path(paths.photo_list(part)).name, findings, root, limit)
    report = {
        "evaluation": _described(held_out, config.degrade.evaluation, root),
        "train": {
            **_described(trained, config.degrade.train, root),
            "parts": {name: len(findings) for name, findings in parts.items()},
        },
    }
    with written_aside(root / paths.PHOTOGRAPHS) as folder:
        folder.mkdir()
        (folder / paths.STAGE_REPORT).write_text(json.dumps(report, indent=1) + "\n")


def _limit(cut: Degrade, photographs: Sequence[Finding]) -> str | None:
    """The greatest id of a window that is cut, so that there are `degrade.pairs`; None: all are."""
    if cut.pairs is None:
        return None
    ids = (
        patch_id(one.photo.name, box)
        for one in photographs
        for box in sliding_windows(one.height, one.width, cut.crop, cut.stride)
    )
    return lowest(ids, cut.pairs)


def _scan(
    config: Config, split: Split, root: Path, hooks: Hooks, held_out: Sequence[Finding] = ()
) -> Scan:
    """Examine every photograph of a split. Errors: ValueError if none is usable.

    held_out: the evaluation photographs, which the training split must not contain.
    """
    sources, side = config.degrade.train, config.degrade.crop
    if split == "evaluation":
        sources, side = config.degrade.evaluation, config.degrade.evaluation_crop
    photos = listed(sources, split, root)
    findings = _examined(photos, side, config.degrade.degradation.scale, hooks)
    result = scan(findings, len(photos), config.degrade.max_failures, held_out)
    if photos and not result.used:
        raise ValueError(
            f"degrade.{split}: none of {len(photos)} photographs can be used; "
            f"{result.skipped[0]['detail']}"
        )
    return result


def _examined(
    photos: Sequence[Photo], min_side: int, scale: int, hooks: Hooks
) -> Iterator[Finding]:
    """The findings in the order of the photographs; `READERS` photographs are read concurrently."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(photos), AHEAD):
            if hooks.should_stop():
                raise Stopped(start)
            batch = photos[start : start + AHEAD]
            yield from pool.map(examine, batch, [min_side] * len(batch), [scale] * len(batch))
            hooks.log(start + len(batch), {"photographs": float(start + len(batch))})


def _described(result: Scan, sources: Sequence[Photographs], root: Path) -> dict[str, object]:
    """One split of the report. Paths are relative to `root`, so the output does not depend on where
    it is.
    """
    skipped = [
        {**photo, "detail": photo["detail"].replace(f"{root}{os.sep}", "")}
        for photo in result.skipped
    ]
    of_source = {
        source.path: sum(f.photo.source == source.path for f in result.used) for source in sources
    }
    return {"photographs": result.counts(), "sources": of_source, "skipped": skipped}
