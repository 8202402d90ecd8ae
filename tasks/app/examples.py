"""The page's examples: photographs that ship, degraded as the pairs of training are."""

from pathlib import Path

import numpy as np

from gdpo.config import Degradation
from gdpo.data.degrade import degrade, patch_generator
from gdpo.files import shipped
from gdpo.pictures.read import Picture, read_picture
from gdpo.pictures.write import write_picture

PHOTOS = ("kodim07", "kodim19", "kodim21", "kodim23")


def write_examples(folder: Path) -> list[Path]:
    """Write an LR picture of each of `PHOTOS` into `folder`; always the same bytes."""
    files = []
    for name in PHOTOS:
        photo = read_picture(shipped(f"assets/photos/kodak/{name}.webp")).rgb
        hr_CHW = photo.transpose(2, 0, 1).astype(np.float32) / 255
        lr_CHW = degrade(hr_CHW, Degradation(), patch_generator(0, f"app/{name}"))
        files.append(folder / f"{name}.png")
        pixels = np.round(lr_CHW.transpose(1, 2, 0) * 255).astype(np.uint8)
        write_picture(files[-1], Picture(pixels))
    return files
