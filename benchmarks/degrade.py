"""Times the degradation against a plain torch rendering of the published recipe, on one core and the same draws.

    python benchmarks/degrade.py [--patches 20] [--side 512]

The rendering works as the released code does: kernels padded to 21x21 in a grouped convolution, F.interpolate, Poisson
noise at a peak found by counting unique values, and a JPEG imitation in floats. Both get the same drawn parameters, so
the second table compares what they make of the same patches: deciles of PSNR (against the area-averaged patch), of
gradient energy, of high-frequency noise and of blockiness.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from gdpo.config import Degradation
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.kernels import Draw, kernel
from gdpo.data.sources import photographs
from gdpo.training import numpy_generator, torch_generator

LUMA = [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]  # fmt: skip
CHROMA = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
TO_RGB = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def plain_blur(x: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """Reflect-padded grouped convolution with the kernel padded to 21x21."""
    small = torch.from_numpy(kernel(drawn))
    k = F.pad(small, [(21 - small.shape[0]) // 2] * 4)
    return F.conv2d(F.pad(x, [10] * 4, mode="reflect"), k.expand(3, 1, 21, 21), groups=3)


def plain_noise(x: torch.Tensor, noise: Draw) -> torch.Tensor:
    """Gaussian noise, or Poisson noise at 2^ceil(log2(unique values)); gray noise from the luma."""
    generator = torch_generator(noise["seed"])
    if noise["kind"] == "gaussian":
        channels = 1 if noise["gray"] else 3
        grain = torch.randn(1, channels, *x.shape[2:], generator=generator) / 255
        return torch.clamp(x + grain * noise["strength"], 0, 1)
    clean = (x * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True) if noise["gray"] else x
    clean = (clean * 255).round().clamp(0, 255) / 255
    peak = 2 ** np.ceil(np.log2(len(torch.unique(clean))))
    grain = torch.poisson(clean * peak, generator=generator) / peak - clean
    return torch.clamp(x + grain * noise["strength"], 0, 1)


def plain_jpeg(x: torch.Tensor, quality: int) -> torch.Tensor:
    """JPEG in floats: 4:2:0 by means, 8x8 DCT, quantisation, and back with repeated chroma; zeros beyond the edge."""
    factor = max(50 / quality if quality < 50 else 2 - quality / 50, 1e-6)
    height, width = x.shape[2:]
    padded = F.pad(x.clamp(0, 1) * 255, [0, -width % 16, 0, -height % 16])
    ycc = torch.einsum("ij,bjhw->bihw", TO_YCC, padded)
    chroma_table = torch.full((8, 8), 99.0)
    chroma_table[:4, :4] = torch.tensor(CHROMA, dtype=torch.float32)
    luma = quantised(ycc[:, :1] - 128, torch.tensor(LUMA) * factor) + 128
    chroma = quantised(F.avg_pool2d(ycc[:, 1:], 2), chroma_table * factor)
    whole = torch.cat([luma, chroma.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    return torch.einsum("ij,bjhw->bihw", TO_RGB, whole)[..., :height, :width].clamp(0, 255) / 255


def quantised(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Through the 8x8 DCT, rounding by `table`, and back."""
    n = torch.arange(8.0)
    basis = torch.cos((2 * n + 1) * n[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    b, c, h, w = x.shape
    blocks = x.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    coefficients = torch.round(basis @ blocks @ basis.T / table) * table
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(b, c, h, w)


@torch.no_grad()
def plain(hr: np.ndarray, drawn: Draw) -> np.ndarray:
    """The published recipe on float32 (H, W, 3), one operation after the other."""
    first, second, final = drawn["first"], drawn["second"], drawn["final"]
    x = torch.from_numpy(hr).permute(2, 0, 1)[None].contiguous()
    height, width = hr.shape[0] // 4, hr.shape[1] // 4
    x = plain_blur(x, first["blur"]) if first["blur"] else x
    x = F.interpolate(x, scale_factor=first["resize"]["scale"], mode=first["resize"]["mode"])
    x = plain_jpeg(plain_noise(x, first["noise"]), first["jpeg"])
    x = plain_blur(x, second["blur"]) if second["blur"] else x
    size = (int(height * second["resize"]["scale"]), int(width * second["resize"]["scale"]))
    x = plain_noise(F.interpolate(x, size=size, mode=second["resize"]["mode"]), second["noise"])
    x = x if final["jpeg_last"] else plain_jpeg(x, final["jpeg"])
    x = F.interpolate(x, size=(height, width), mode=final["mode"])
    # The release filters with a unit pulse where no sinc is drawn.
    x = plain_blur(x, final["sinc"] or {"kind": "iso", "size": 1, "sigma": [1.0, 1.0], "theta": 0.0})
    x = plain_jpeg(x, final["jpeg"]) if final["jpeg_last"] else x
    return (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def figures(lr: np.ndarray, hr: np.ndarray) -> list[float]:
    """PSNR, gradient energy, median absolute Laplacian, and steps across 8-pixel borders over steps elsewhere."""
    small = cv2.resize(hr, lr.shape[1::-1], interpolation=cv2.INTER_AREA) * 255
    gray = lr.astype(np.float64) @ [0.299, 0.587, 0.114]
    steps = np.abs(np.diff(gray, axis=1))
    border = np.arange(steps.shape[1]) % 8 == 7
    return [
        10 * np.log10(255**2 / np.mean((lr - small) ** 2)),
        float(np.mean(np.diff(gray, axis=0) ** 2) + np.mean(steps**2)),
        float(np.median(np.abs(cv2.Laplacian(gray, cv2.CV_64F)))),
        float(steps[:, border].mean() / steps[:, ~border].mean()),
    ]


def main() -> None:
    """CPU seconds of both per patch, their ratio, and the deciles of what they made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=20)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    photos = [photo.load() for photo in photographs("scikit-image", "train")]
    draws = [draw(Degradation(), numpy_generator("benchmark", i)) for i in range(args.patches)]
    patches = []
    for i in range(args.patches):
        photo, rng = photos[i % len(photos)], numpy_generator("crop", i)
        top, left = (int(rng.integers(max(1, length - args.side + 1))) for length in photo.shape[:2])
        patches.append(photo[top : top + args.side, left : left + args.side].astype(np.float32) / 255)
    means: dict[str, Callable[[np.ndarray, Draw], np.ndarray]] = {"plain": plain, "ours": low_resolution}
    seconds = dict.fromkeys(means, 0.0)
    made: dict[str, list[list[float]]] = {name: [] for name in means}
    for run in means.values():
        run(patches[0], draws[0])  # warm
    for patch, drawn in zip(patches, draws, strict=True):
        for name, run in means.items():
            start = time.process_time()
            lr = run(patch, drawn)
            seconds[name] += time.process_time() - start
            made[name].append(figures(lr, patch))
    per = {name: 1e3 * total / args.patches for name, total in seconds.items()}
    print(f"plain {per['plain']:.1f} ms, ours {per['ours']:.1f} ms per {args.side}px patch, one core")
    print(f"ratio {per['plain'] / per['ours']:.2f}")
    for column, label in enumerate(("PSNR dB", "gradient energy", "noise", "blockiness")):
        for name in means:
            values = np.percentile([row[column] for row in made[name]], [10, 30, 50, 70, 90])
            print(f"{label:16s} {name:6s} deciles 1 3 5 7 9: " + " ".join(f"{v:8.3f}" for v in values))


if __name__ == "__main__":
    main()
