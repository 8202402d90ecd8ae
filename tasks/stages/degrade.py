"""Stage `degrade`: turns the photographs of one part into LR-HR pairs in Parquet shards, and writes
reports/degrade/<part>/report.json.

    --part 00           data/shards/train/00: sliding windows; LR enlarged by the drawn mode
    --part evaluation   data/shards/evaluation: centred tiles without overlap; LR enlarged by
                        bicubic interpolation

The stage `index` assigns photographs to parts. Every patch draws its degradation from its own
generator, keyed by (data set version, patch id, epoch), so a pair has the same bytes for any number
of parts and any processing order. Pairs with a ready-made LR image take their part of it instead.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from gdpo.config import Config, Degrade
from gdpo.config.fields import EVALUATION
from gdpo.data.degrade import degrade_patch, patch_generator
from gdpo.data.operations import INFERENCE_MODE
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.data.sources import centred_tiles, patch_id, sliding_windows
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_share
from tasks import paths
from tasks.checks.tables import check_pairs
from tasks.files.photographs import ListedPhoto, limit_of, read_list
from tasks.files.tags import tagged

BATCH = 32  # patches per call of detail_share
# id, source, box, HR uint8 (H, W, 3), and the ready-made LR (h, w, 3)
Patch = tuple[str, str, Box, np.ndarray, np.ndarray | None]


def run(config: Config, root: Path, hooks: Hooks, part: str | None = None) -> None:
    """Write the pairs and the report of `part`, or of every part in turn if None.

    Errors: ValueError naming the key, list or photograph on bad input; `Stopped` between batches.
    """
    known = [*config.degrade.parts, EVALUATION]
    if part is not None and part not in known:
        raise ValueError(f"degrade.parts has no part {part!r}; there is {', '.join(known)}")
    for name in known if part is None else [part]:
        _part(config, root, hooks, name)


def _part(config: Config, root: Path, hooks: Hooks, part: str) -> None:
    path = root / paths.photo_list(part)
    entries = read_list(path, root)
    patches = _patches(config.degrade, entries, part, limit_of(path))
    pairs = _pairs(config, patches, part, hooks)
    held_out = part == EVALUATION
    if not held_out:  # held-out images are tagged when they are evaluated
        pairs = tagged(pairs, config.degrade.tags, config.model.tagger, root)
    target = root / paths.HELD_OUT if held_out else root / paths.TRAIN / part
    with written_aside(target) as aside:
        count = write_shards(
            aside,
            pairs,
            config.degrade.shard_mb,
            # A training part may be empty, and its shard then names its siblings. The held-out set
            # has no siblings, and may be empty only if no photograph is configured.
            None if held_out and entries else config.degrade.parts,
        )
        # Before the rename: shards that fail their checks never replace good ones.
        check_pairs(aside, part, root, config.degrade)
    with written_aside(root / paths.DEGRADED / part) as folder:
        folder.mkdir()
        (folder / paths.STAGE_REPORT).write_text(
            json.dumps({"photographs": len(entries), "pairs": count}, indent=1) + "\n"
        )


def _patches(
    cut: Degrade, entries: list[ListedPhoto], part: str, limit: str | None
) -> Iterator[Patch]:
    """Cut every photograph into patches: sliding windows for training, those whose ids are not
    above `limit`, centred tiles for evaluation.
    """
    scale = cut.degradation.scale
    side = cut.evaluation_crop if part == EVALUATION else cut.crop
    for entry in entries:
        photo, pixels, low = entry.photo.name, entry.pixels(), entry.low_resolution()
        height, width = pixels.shape[:2]
        if part == EVALUATION:
            named = [(f"{photo}-{label}", box) for label, box in centred_tiles(height, width, side)]
        else:
            named = [
                (id_, box)
                for box in sliding_windows(height, width, side, cut.stride)
                for id_ in [patch_id(photo, box)]
                # The first 16 digits are the hash that `lowest` compared (gdpo/data/sources.py).
                if limit is None or id_[:16] <= limit
            ]
        for name, box in named:
            yield name, photo, box, _cut(pixels, box), low if low is None else _cut(low, box, scale)


def _cut(pixels: np.ndarray, box: Box, scale: int = 1) -> np.ndarray:
    """The box, which is of an image `scale` times as large."""
    top, left, height, width = (value // scale for value in box)
    return pixels[top : top + height, left : left + width]


def _pairs(config: Config, patches: Iterator[Patch], part: str, hooks: Hooks) -> Iterator[Pair]:
    """Degrade the patches, `BATCH` at a time."""
    done = 0
    while batch := list(islice(patches, BATCH)):
        if hooks.should_stop():
            raise Stopped(done)
        hr_BHWC = np.stack([hr for *_, hr, _ in batch])
        shares = detail_share(
            torch.from_numpy(hr_BHWC).movedim(-1, 1).float() / 255, PIPELINE_GRAYSCALE
        ).tolist()
        for (name, source, box, hr, ready), share in zip(batch, shares, strict=True):
            if ready is not None:
                drawn = {"scale": config.degrade.degradation.scale, "enlarge": INFERENCE_MODE}
                yield Pair(name, source, box, hr, ready, drawn, share)
                continue
            lr, drawn = degrade_patch(
                hr,
                config.degrade.degradation,
                patch_generator(config.degrade.version, name, config.degrade.epoch),
                held_out=part == EVALUATION,
            )
            yield Pair(name, source, box, hr, lr, drawn, share)
        done += len(batch)
        hooks.log(done, {"pairs": float(done)})
