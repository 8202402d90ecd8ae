"""The validation pairs of a fine-tuning: the centre of each photograph in a folder, degraded as the
held-out photographs are.

Made when a training starts: the photographs are few, and read by this stage alone.
"""

from pathlib import Path

import torch

from gdpo.config import Config
from gdpo.data.degrade import degrade_patch, patch_generator
from gdpo.data.shards import Pair
from gdpo.data.sources import centred_tiles, named
from gdpo.images import read_photo
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_share
from gdpo.walk import walk

KEY = "finetune.validation.photographs"


def validation_pairs(config: Config, root: Path) -> list[Pair]:
    """One pair for each photograph of `finetune.validation`; none if it has no folder.

    Errors: ValueError naming the folder or the photograph that cannot be used.
    """
    settings = config.finetune.validation
    if settings.photographs is None:
        return []
    folder = root / settings.photographs
    if not folder.is_dir():
        raise ValueError(f"{KEY}: {settings.photographs}: no such folder")
    files = [path.relative_to(folder).as_posix() for path in walk(folder).files]
    photographs = named(files, f"{KEY}: {settings.photographs}")
    return [_pair(name, folder / file, settings.crop, config) for name, file in photographs]


def _pair(name: str, path: Path, side: int, config: Config) -> Pair:
    pixels = read_photo(path)
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        raise ValueError(
            f"{path}: {width}x{height} pixels, smaller than finetune.validation.crop {side}"
        )
    tiles = centred_tiles(height, width, side)
    _, box = tiles[len(tiles) // 2]
    hr = pixels[box.top : box.top + side, box.left : box.left + side]
    generator = patch_generator(config.degrade.version, f"validation/{name}")
    lr, drawn = degrade_patch(hr, config.degrade.degradation, generator, held_out=True)
    share = detail_share(
        torch.from_numpy(hr).movedim(-1, 0)[None].float() / 255, PIPELINE_GRAYSCALE
    )
    return Pair(f"validation-{name}", name, box, hr, lr, drawn, float(share))
