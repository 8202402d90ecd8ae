"""Stage `degrade`: photographs -> LR-HR pairs in data/shards/{train,evaluation}, and reports/degrade/report.json.

    evaluation   centred tiles without overlap; enlarged by bicubic
    train        sliding windows; enlarged by the drawn mode; no photograph that evaluation has

Every patch draws from its own generator (seed, "degrade", patch id), so the order of the work changes no byte.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from gdpo.config import Config, Degrade
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.data.sources import Census, Photo, Split, centred_tiles, photographs, sliding_windows, usable
from gdpo.rewards.complexity import detail_share
from gdpo.training import Hooks, Stopped, numpy_generator, written_aside

BATCH = 32  # patches whose detail share is computed at once
Patch = tuple[str, str, Box, np.ndarray]  # id, source, box, uint8 (H, W, 3)


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write the pairs of both splits and the report. ValueError naming the photograph or key on bad input."""
    held_out, trained = Census(), Census()
    report = {
        "evaluation": _split(config, root, hooks, "evaluation", held_out, Census()),
        "train": _split(config, root, hooks, "train", trained, held_out),
    }
    with written_aside(root / "reports/degrade") as part:
        part.mkdir()
        (part / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _split(config: Config, root: Path, hooks: Hooks, split: Split, census: Census, held_out: Census) -> dict[str, object]:
    """Write one split's shards; returns its part of the report."""
    spec = config.degrade.evaluation if split == "evaluation" else config.degrade.train
    patches = _patches(config.degrade, photographs(spec, split, root), split, census, held_out)
    pairs = write_shards(root / "data/shards" / split, _pairs(config, patches, split, hooks), config.degrade.shard_mb)
    return {"pairs": pairs, "photographs": census.counts(), "skipped": census.skipped}


def _patches(cut: Degrade, photos: list[Photo], split: Split, census: Census, held_out: Census) -> Iterator[Patch]:
    """Cut every usable photograph."""
    side = cut.crop if split == "train" else cut.evaluation_crop
    for photo, pixels in usable(photos, side, cut.max_failures, census, held_out.used):
        height, width = pixels.shape[:2]
        if split == "train":
            named = [(_patch_id(photo.name, box), box) for box in sliding_windows(height, width, side, cut.stride)]
        else:
            named = [(f"{photo.name}-{label}", box) for label, box in centred_tiles(height, width, side)]
        for name, box in named:
            yield name, photo.name, box, pixels[box.top : box.top + side, box.left : box.left + side]


def _patch_id(source: str, box: Box) -> str:
    """A short hash of where a patch comes from; it does not change when photographs are added."""
    return hashlib.sha256(json.dumps([source, *box]).encode()).hexdigest()[:20]


def _pairs(config: Config, patches: Iterator[Patch], split: Split, hooks: Hooks) -> Iterator[Pair]:
    """Degrade the patches, a batch at a time."""
    done = 0
    while batch := list(islice(patches, BATCH)):
        if hooks.should_stop():
            raise Stopped(done)
        hr_BHWC = np.stack([patch for *_, patch in batch])
        shares = detail_share(torch.from_numpy(hr_BHWC).movedim(-1, 1).float() / 255, "released").tolist()
        for (name, source, box, hr), share in zip(batch, shares, strict=True):
            drawn = draw(config.degrade.degradation, numpy_generator(config.seed, "degrade", name))
            if split == "evaluation":
                drawn["enlarge"] = "bicubic"
            lr = low_resolution(hr.astype(np.float32) / 255, drawn)
            yield Pair(name, source, box, hr, lr, drawn, share)
        done += len(batch)
        hooks.log(done, {"pairs": float(done)})
