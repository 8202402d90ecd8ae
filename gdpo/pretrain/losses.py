"""The image losses of pretraining (paper Eq. 5): pixel and perceptual.

    L = lambda_pixel * pixel + lambda_perceptual * perceptual + lambda_vsd * VSD

As pixel loss the released code computes MSE where the paper prints L1; its perceptual loss is
LPIPS-VGG with weight 2. `structure_loss` is a perceptual loss without downloaded weights: 1 - SSIM
over three scales, plus the L1 distance of image gradients.
"""

import functools
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gdpo.metrics import lpips
from gdpo.model.sources import LPIPS_VGG


def pixel_loss(
    image: torch.Tensor, target: torch.Tensor, kind: Literal["mse", "l1"]
) -> torch.Tensor:
    """MSE (released code) or L1 (paper) of two BCHW images in [-1, 1], mean over all elements."""
    return F.mse_loss(image, target) if kind == "mse" else F.l1_loss(image, target)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of two BCHW images in [0, 1], 7x7 uniform windows, valid area; differentiable."""

    def pool(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, 1)

    mu_a, mu_b = pool(a), pool(b)
    var_a, var_b, cov = pool(a * a) - mu_a**2, pool(b * b) - mu_b**2, pool(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    return (
        ((2 * mu_a * mu_b + c1) * (2 * cov + c2))
        / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    ).mean()


def gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 distance of the horizontal and vertical differences of two BCHW images."""
    # The difference of gradients is the gradient of the difference.
    d = a - b
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def structure_loss(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Perceptual loss without downloaded weights.

    The mean of (1 - SSIM)/2 over scales 1, 1/2, 1/4, plus `gradient_loss`. image, target: BCHW in
    [-1, 1], sides >= 28.
    """
    a, b = image * 0.5 + 0.5, target * 0.5 + 0.5
    total = gradient_loss(a, b)
    for _ in range(3):
        # (1 - SSIM) / 2, averaged over three scales.
        total = total + (1 - ssim(a, b)) / 6
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def check_perceptual(kind: Literal["lpips-vgg", "structure"]) -> None:
    """Check that the weights of `perceptual_loss` exist.

    Errors: ValueError naming the first missing file and its folder.
    """
    for name in LPIPS_VGG if kind == "lpips-vgg" else ():
        path = Path(torch.hub.get_dir()) / name
        if not path.is_file():
            raise ValueError(
                f"pretrain.perceptual is lpips-vgg and {path.name} is missing; put it into "
                f"{path.parent}"
            )


@functools.cache
def _lpips(device: torch.device) -> nn.Module:
    """LPIPS-VGG; its weights are read without pickle and without a download."""
    return lpips.build("vgg", device)


def perceptual_loss(
    image: torch.Tensor, target: torch.Tensor, kind: Literal["lpips-vgg", "structure"]
) -> torch.Tensor:
    """LPIPS-VGG v0.1 (released code; needs its weights) or `structure_loss`, a scalar.

    image, target: BCHW in [-1, 1].
    """
    if kind == "structure":
        return structure_loss(image, target)
    distance: torch.Tensor = _lpips(image.device)(image * 0.5 + 0.5, target * 0.5 + 0.5)
    return distance.mean()
