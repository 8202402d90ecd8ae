"""Are there the GPUs, the disk and the bucket that the parameters ask for? Part of `doctor`."""

import configparser
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gdpo.config import Config
from gdpo.data.sources import Photo, Split, sliding_windows
from tasks import paths
from tasks.commands import STAGES, gpus_of
from tasks.files.photographs import listed
from tasks.tools.artefact import MISSING, Artefact

# A pair of lossless WebP images, per pixel of the HR patch (benchmarks/results/shards.json:
# 353,517 bytes at 512 x 512).
BYTES_PER_PIXEL = 353_517 / 512**2
SAMPLE = 200  # photographs whose size is read; the others are assumed to have the mean size


def problems(
    config: Config, root: Path, machine: dict[str, Any], artefacts: list[Artefact]
) -> list[str]:
    """One line for each resource that the parameters ask for and this machine lacks."""
    return [
        *_gpus(config, len(machine["gpus"])),
        *_emulated(config, len(machine["gpus"])),
        *_disk(config, root, machine["disk_free"], artefacts),
        *_bucket(root),
    ]


def _gpus(config: Config, present: int) -> Iterator[str]:
    if config.allow_cpu:
        return
    for name, stage in STAGES.items():
        wanted = gpus_of(config, name)
        if stage.needs_gpu and present < wanted:
            key = f"{stage.trains}.gpus asks for" if stage.shares_steps else f"{name} needs"
            yield f"{key} {wanted} GPU{'s' * (wanted > 1)}, here: {present or 'none'}"


def _emulated(config: Config, gpus: int) -> Iterator[str]:
    """The keys whose precision this processor emulates."""
    if not config.allow_cpu or gpus or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for name, section in config:
        if getattr(section, "precision", None) == "bf16":
            yield (
                f"{name}.precision: bf16, which this processor lacks instructions for: many "
                "times slower than fp32"
            )


def _disk(config: Config, root: Path, free: int, artefacts: list[Artefact]) -> Iterator[str]:
    fetched = sum(artefact.size for artefact in artefacts if artefact.state == MISSING)
    shards = shard_bytes(config, root)
    if fetched + shards > free:
        yield (
            f"these parameters take about {(fetched + shards) / 1e9:.4g} GB of disk (shards "
            f"{shards / 1e9:.4g}, files to fetch {fetched / 1e9:.4g}), here: {free / 1e9:.4g} GB "
            "free"
        )


def shard_bytes(config: Config, root: Path) -> int:
    """About how many bytes `degrade` will write for the local photographs for training.

    0 once there are shards: they are on the disk already.
    """
    if (root / paths.TRAIN).is_dir():
        return 0
    split: Split = "train"
    photos: list[Photo] = []
    for source in config.degrade.train:
        if not source.path.startswith("s3://"):
            try:
                photos += listed([source], split, root)
            except (ValueError, OSError):
                continue  # the list of artefacts names it
    sample = photos[:: max(1, len(photos) // SAMPLE)]
    patches = float(sum(_patches(config, photo) for photo in sample))
    share = len(photos) / len(sample) if sample else 0.0
    patches = min(patches * share, config.degrade.pairs or float("inf"))
    return round(patches * config.degrade.crop**2 * BYTES_PER_PIXEL)


def _patches(config: Config, photo: Photo) -> int:
    """The patches of one photograph, from the size in its header; 0 if it is unreadable."""
    try:
        with Image.open(photo.path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    if photo.resize is not None:
        factor = photo.resize / min(height, width)
        height, width = round(height * factor), round(width * factor)
    return len(sliding_windows(height, width, config.degrade.crop, config.degrade.stride))


def _bucket(root: Path) -> Iterator[str]:
    """The bucket of DVC's remote, where this machine is part of a fleet."""
    if not os.environ.get("PREFECT_API_URL"):
        return
    settings = configparser.ConfigParser()
    settings.read([root / ".dvc/config", root / ".dvc/config.local"])
    urls = [section["url"] for section in settings.values() if "url" in section]
    for url in urls:
        if url.startswith("s3://"):
            from tasks.store.s3 import Store

            try:
                next(Store.at(url).keys(), None)
            except (ValueError, OSError) as error:
                yield str(error)
