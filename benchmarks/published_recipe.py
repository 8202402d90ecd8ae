"""The published degradation, written out plainly in NumPy, SciPy and torch: what ours is timed and
tested against.

    drawn = draw(RELEASED, rng)      or REAL_ESRGAN, the full-strength values; drawn has the form of
                                     gdpo.data.degrade.draw
    lr = degraded(hr, drawn)         float (H / 4, W / 4, 3) in [0, 1], before it is rounded
    up = enlarged(lr, size, drawn["enlarge"])

Independent of gdpo/: its own draws, kernels and operations, one after the other as the released
code has them: kernels padded to 21x21 in a grouped convolution, F.interpolate, Poisson noise at a
peak found by counting unique values, and JPEG in floats without an entropy coder. Gray noise alone
is computed where gray noise is drawn (the release computes both).

Source: Real-ESRGAN and BasicSR, and the parameter file of the GDPO release.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import j1

Drawn = dict[str, Any]
Values = dict[str, Any]

RELEASED: Values = {
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.3, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 15],
    "poisson_scale_range": [0.05, 2.0],
    "gray_noise_prob": 0.4,
    "jpeg_range": [60, 95],
    "second_blur_prob": 0.5,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.6, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 12],
    "poisson_scale_range2": [0.05, 1.0],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [60, 100],
    "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1,
    "sinc_prob2": 0.1,
    "final_sinc_prob": 0.8,
    "blur_sigma": [0.2, 3.0],
    "blur_sigma2": [0.2, 1.5],
    "betag_range": [0.5, 4.0],
    "betap_range": [1.0, 2.0],
}
REAL_ESRGAN: Values = {
    **RELEASED,
    "resize_range": [0.15, 1.5],
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3.0],
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_range2": [0.3, 1.2],
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "jpeg_range2": [30, 95],
}
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
MODES = ("area", "bilinear", "bicubic")
LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMA = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
TO_RGB = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def draw(values: Values, rng: np.random.Generator) -> Drawn:
    """Everything random about one degradation, from the published probabilities and ranges."""

    def stage(blur_prob: float, end: str) -> Drawn:
        gaussian = rng.random() < values[f"gaussian_noise_prob{end}"]
        strength = values[f"noise_range{end}" if gaussian else f"poisson_scale_range{end}"]
        low, high = values[f"resize_range{end}"]
        way = rng.choice(3, p=values[f"resize_prob{end}"])
        return {
            "blur": _drawn_kernel(values, end, rng) if rng.random() < blur_prob else None,
            "resize": {
                "scale": (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[way],
                "mode": str(rng.choice(MODES)),
            },
            "noise": {
                "kind": "gaussian" if gaussian else "poisson",
                "strength": rng.uniform(*strength),
                "gray": rng.random() < values[f"gray_noise_prob{end}"],
                "seed": int(rng.integers(2**62)),
            },
        }

    sinc = {
        "kind": "sinc",
        "size": 2 * int(rng.integers(3, 11)) + 1,
        "cutoff": rng.uniform(np.pi / 3, np.pi),
    }
    return {
        "scale": 4,
        "first": {**stage(1.0, ""), "jpeg": rng.uniform(*values["jpeg_range"])},
        "second": stage(values["second_blur_prob"], "2"),
        "final": {
            "jpeg_last": rng.random() < 0.5,
            "mode": str(rng.choice(MODES)),
            "sinc": sinc if rng.random() < values["final_sinc_prob"] else None,
            "jpeg": rng.uniform(*values["jpeg_range2"]),
        },
        "enlarge": str(rng.choice(MODES)),
    }


def _drawn_kernel(values: Values, end: str, rng: np.random.Generator) -> Drawn:
    size = 2 * int(rng.integers(3, 11)) + 1
    if rng.random() < values[f"sinc_prob{end}"]:
        return {
            "kind": "sinc",
            "size": size,
            "cutoff": rng.uniform(np.pi / (3 if size < 13 else 5), np.pi),
        }
    kind = str(rng.choice(KINDS, p=values["kernel_prob"]))
    low, high = values[f"blur_sigma{end}"]
    sigma = rng.uniform(low, high, 2) if "aniso" in kind else rng.uniform(low, high, 1).repeat(2)
    drawn: Drawn = {"kind": kind, "size": size, "sigma": sigma, "theta": 0.0}
    if "aniso" in kind:
        drawn["theta"] = rng.uniform(-np.pi, np.pi)
    if kind not in ("iso", "aniso"):
        low, high = values["betap_range" if kind.startswith("plateau") else "betag_range"]
        drawn["beta"] = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return drawn


def kernel21(drawn: Drawn | None) -> torch.Tensor:
    """The kernel of drawn parameters, normalised and padded to 21x21; None is a unit pulse."""
    padded = torch.zeros(21, 21)
    half = drawn["size"] // 2 if drawn else 0
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    if not drawn:
        values = np.ones((1, 1))
    elif drawn["kind"] == "sinc":
        r, cutoff = np.hypot(x, y), drawn["cutoff"]
        r[half, half] = 1
        values = cutoff * j1(cutoff * r) / (2 * np.pi * r)
        values[half, half] = cutoff**2 / (4 * np.pi)
    else:
        c, s = np.cos(drawn["theta"]), np.sin(drawn["theta"])
        turn = np.array([[c, -s], [s, c]])
        inverse = np.linalg.inv(turn @ np.diag(np.square(drawn["sigma"])) @ turn.T)
        points = np.stack([x, y], -1)
        q = np.sum((points @ inverse) * points, -1) ** drawn.get("beta", 1.0)
        values = 1 / (1 + q) if drawn["kind"].startswith("plateau") else np.exp(-q / 2)
    padded[10 - half : 11 + half, 10 - half : 11 + half] = torch.from_numpy(values / values.sum())
    return padded


def blurred(x: torch.Tensor, drawn: Drawn | None) -> torch.Tensor:
    """Reflect-padded grouped convolution with the kernel padded to 21x21."""
    return F.conv2d(
        F.pad(x, [10] * 4, mode="reflect"), kernel21(drawn).expand(3, 1, 21, 21), groups=3
    )


def noisy(x: torch.Tensor, noise: Drawn) -> torch.Tensor:
    """Gaussian noise, or Poisson noise at 2^ceil(log2(unique values)); gray noise from the luma."""
    generator = torch.Generator().manual_seed(noise["seed"])
    if noise["kind"] == "gaussian":
        grain = torch.randn(1, 1 if noise["gray"] else 3, *x.shape[2:], generator=generator) / 255
        return torch.clamp(x + grain * noise["strength"], 0, 1)
    clean = (
        (x * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if noise["gray"]
        else x
    )
    clean = (clean * 255).round().clamp(0, 255) / 255
    peak = 2 ** np.ceil(np.log2(len(torch.unique(clean))))
    grain = torch.poisson(clean * peak, generator=generator) / peak - clean
    return torch.clamp(x + grain * noise["strength"], 0, 1)


def through_jpeg(x: torch.Tensor, quality: float) -> torch.Tensor:
    """JPEG in floats: 4:2:0 by means, 8x8 DCT, quantisation, and back with repeated chroma.

    The last blocks are filled with black beyond the edge, which rings into the last pixels.
    """
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
def degraded(hr: np.ndarray, drawn: Drawn) -> np.ndarray:
    """The published recipe on float32 (H, W, 3) in [0, 1], one operation after the other; H and W
    at least 84.
    """
    first, second, final = drawn["first"], drawn["second"], drawn["final"]
    x = torch.from_numpy(hr).permute(2, 0, 1)[None].contiguous()
    height, width = hr.shape[0] // 4, hr.shape[1] // 4
    x = blurred(x, first["blur"]) if first["blur"] else x
    x = F.interpolate(x, scale_factor=first["resize"]["scale"], mode=first["resize"]["mode"])
    x = through_jpeg(noisy(x, first["noise"]), first["jpeg"])
    x = blurred(x, second["blur"]) if second["blur"] else x
    size = (int(height * second["resize"]["scale"]), int(width * second["resize"]["scale"]))
    x = noisy(F.interpolate(x, size=size, mode=second["resize"]["mode"]), second["noise"])
    x = x if final["jpeg_last"] else through_jpeg(x, final["jpeg"])
    x = blurred(F.interpolate(x, size=(height, width), mode=final["mode"]), final["sinc"])
    x = through_jpeg(x, final["jpeg"]) if final["jpeg_last"] else x
    return x[0].permute(1, 2, 0).clamp(0, 1).numpy()


def enlarged(lr: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """float (h, w, 3) -> (*size, 3) in [0, 1], as the release does before it rounds to 8 bits."""
    x = F.interpolate(torch.from_numpy(lr).permute(2, 0, 1)[None], size=size, mode=mode)
    return x[0].permute(1, 2, 0).clamp(0, 1).numpy()
