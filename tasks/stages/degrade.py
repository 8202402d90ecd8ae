"""Stage `degrade`: turns the photographs of one part into LR-HR pairs in Parquet shards, and writes
reports/degrade/<part>/report.json.

    --part 00           data/shards/train/00: sliding windows; LR enlarged by the drawn mode
    --part evaluation   data/shards/evaluation: centred tiles without overlap; LR enlarged by
                        bicubic interpolation

The stage `index` assigns photographs to parts. Every patch draws its degradation from its own
generator, keyed by (data set version, patch id, epoch), so a pair has the same bytes for any number
of parts and any processing order.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from gdpo.config import Config, Degrade
from gdpo.data.degrade import draw, low_resolution, patch_generator
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.data.sources import centred_tiles, sliding_windows
from gdpo.files import written_aside
from gdpo.rewards.detail import detail_share
from gdpo.train.loop import Hooks, Stopped
from tasks.checks.tables import check_pairs
from tasks.files.photographs import Entry, read_list
from tasks.files.tags import tagged

EVALUATION = "evaluation"
BATCH = 32  # patches per call of detail_share
Patch = tuple[str, str, Box, np.ndarray]  # id, source, box, uint8 (H, W, 3)


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
    entries = read_list(root / "data/photos" / f"{part}.parquet", root)
    pairs = _pairs(config, _patches(config.degrade, entries, part), part, hooks)
    held_out = part == EVALUATION
    if not held_out:  # held-out images are tagged when they are evaluated
        pairs = tagged(pairs, config.degrade.tags, config.model.tagger, root)
    target = root / "data/shards/evaluation" if held_out else root / "data/shards/train" / part
    with written_aside(target) as aside:
        count = write_shards(
            aside, pairs, config.degrade.shard_mb, None if held_out else config.degrade.parts
        )
        check_pairs(aside, part, root, config.degrade)
    with written_aside(root / "reports/degrade" / part) as folder:
        folder.mkdir()
        (folder / "report.json").write_text(
            json.dumps({"photographs": len(entries), "pairs": count}, indent=1) + "\n"
        )


def _patches(cut: Degrade, entries: list[Entry], part: str) -> Iterator[Patch]:
    """Cut every photograph into patches: sliding windows for training, centred tiles for
    evaluation.
    """
    side = cut.evaluation_crop if part == EVALUATION else cut.crop
    for entry in entries:
        photo, pixels = entry.photo.name, entry.pixels()
        height, width = pixels.shape[:2]
        if part == EVALUATION:
            named = [(f"{photo}-{label}", box) for label, box in centred_tiles(height, width, side)]
        else:
            named = [
                (_patch_id(photo, box), box)
                for box in sliding_windows(height, width, side, cut.stride)
            ]
        for name, box in named:
            yield name, photo, box, pixels[box.top : box.top + side, box.left : box.left + side]


def _patch_id(source: str, box: Box) -> str:
    """A short hash of the patch's photograph and box; adding photographs does not change it."""
    return hashlib.sha256(json.dumps([source, *box]).encode()).hexdigest()[:20]


def _pairs(config: Config, patches: Iterator[Patch], part: str, hooks: Hooks) -> Iterator[Pair]:
    """Degrade the patches, `BATCH` at a time."""
    done = 0
    while batch := list(islice(patches, BATCH)):
        if hooks.should_stop():
            raise Stopped(done)
        hr_BHWC = np.stack([patch for *_, patch in batch])
        shares = detail_share(
            torch.from_numpy(hr_BHWC).movedim(-1, 1).float() / 255, "released"
        ).tolist()
        for (name, source, box, hr), share in zip(batch, shares, strict=True):
            drawn = draw(
                config.degrade.degradation,
                patch_generator(config.degrade.version, name, config.degrade.epoch),
            )
            if part == EVALUATION:
                drawn["enlarge"] = "bicubic"
            lr = low_resolution(hr.astype(np.float32) / 255, drawn)
            yield Pair(name, source, box, hr, lr, drawn, share)
        done += len(batch)
        hooks.log(done, {"pairs": float(done)})
