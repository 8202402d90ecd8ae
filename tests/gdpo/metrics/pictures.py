"""Generated pictures, and what pyiqa says about them (pictures.csv).

    python -m tests.gdpo.metrics.pictures        writes pictures.csv again, after an update of pyiqa

PSNR and SSIM of pyiqa share no code with ours; the other columns hold pyiqa's version and what our
call passes to it.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

HEIGHT, WIDTH = 180, 203
VALUES = Path(__file__).with_suffix(".csv")
# Our name -> pyiqa's name and options.
PYIQA = {
    "psnr_y": ("psnr", {"test_y_channel": True, "color_space": "ycbcr"}),
    "ssim_y": ("ssim", {"test_y_channel": True, "color_space": "ycbcr"}),
    "ms_ssim": ("ms_ssim", {}),
    "gmsd": ("gmsd", {}),
    "vif": ("vif", {}),
    "piqe": ("piqe", {}),
    "entropy": ("entropy", {}),
}


def reference(index: int) -> np.ndarray:
    """HWC uint8: in each channel a plane wave, an edge, and texture whose strength varies over the
    picture.
    """
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    texture = ndimage.gaussian_filter(rng.normal(0, 1, (HEIGHT, WIDTH)), 0.7 + 0.2 * index) * x
    channels = []
    for _ in range(3):
        wave = np.sin(2 * np.pi * (rng.uniform(0, 9) * x + rng.uniform(0, 9) * y + rng.random()))
        edge = np.sign(x + rng.uniform(-1, 1) * y - rng.uniform(0.2, 0.8))
        channels.append(0.45 + 0.15 * wave + 0.15 * edge + 0.1 * texture)
    return (np.stack(channels, axis=-1).clip(0, 1) * 255).round().astype(np.uint8)


def _noisy(picture: np.ndarray) -> np.ndarray:
    return picture + np.random.default_rng(9).normal(0, 8, picture.shape)


def _blurred(picture: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (1.5, 1.5, 0))


def _blocky(picture: np.ndarray) -> np.ndarray:
    """Half of what differs from the mean of its 8 x 8 block is lost."""
    high, wide = (-(-side // 8) * 8 for side in picture.shape[:2])
    padded = np.pad(
        picture, ((0, high - picture.shape[0]), (0, wide - picture.shape[1]), (0, 0)), "edge"
    )
    means = padded.reshape(high // 8, 8, wide // 8, 8, 3).mean((1, 3))
    enlarged = means.repeat(8, 0).repeat(8, 1)[: picture.shape[0], : picture.shape[1]]
    return (picture + enlarged) / 2


def _pale(picture: np.ndarray) -> np.ndarray:
    return picture * 0.8 + 30


def _shifted(picture: np.ndarray) -> np.ndarray:
    return np.roll(picture, 1, axis=1)


DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noisy": _noisy,
    "blurred": _blurred,
    "blocky": _blocky,
    "pale": _pale,
    "shifted": _shifted,
}
NAMES = list(DAMAGES)


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(damaged, reference) of a name, HWC uint8."""
    picture = reference(NAMES.index(name))
    damaged = DAMAGES[name](picture.astype(float))
    return damaged.clip(0, 255).round().astype(np.uint8), picture


def tensor(picture: np.ndarray) -> torch.Tensor:
    """1CHW in [0, 1]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255


def values() -> dict[str, dict[str, float]]:
    """The committed values: {name: {metric: value}}."""
    return {
        row.pop("picture"): {metric: float(value) for metric, value in row.items()}
        for row in csv.DictReader(VALUES.read_text().splitlines())
    }


def main() -> None:
    import pyiqa

    networks = {
        ours: pyiqa.create_metric(name, device="cpu", **options)
        for ours, (name, options) in PYIQA.items()
    }
    with VALUES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["picture", *networks])
        for name in NAMES:
            row = []
            for ours, network in networks.items():
                kind = torch.float32 if ours == "vif" else torch.float64
                image, original = (tensor(part).to(kind) for part in pair(name))
                alone = ours in ("piqe", "entropy")
                row.append(network(image) if alone else network(image, original))
            writer.writerow([name, *(f"{float(value):.6f}" for value in row)])


if __name__ == "__main__":
    main()
