"""PSNR and SSIM on luma, with the settings of the tables of OSEDiff and GDPO.

    Y       = 16 + 65.481 R + 128.553 G + 24.966 B     # BT.601 video range, 0..255, no border crop
    psnr_y  = 10 log10(1 / (mean((Y - Y')^2) / 255^2 + 1e-8))     # Y not rounded
    ssim_y  = mean of SSIM over 11x11 Gaussian windows, sigma 1.5, valid area only. As in pyiqa, Y
              is rounded to integers and negative contrast-structure values are set to 0; without
              that, single images differ by 0.02.

This is our own code because pyiqa's is 15 times slower on one core and its licence forbids
commercial use. Both agree with pyiqa's values (tests/gdpo/metrics/test_score.py). All computations
are in float64, and the value of an image does not depend on the other images of the batch.

Shapes: B batch, H height, W width; images are BCHW, RGB in [0, 1].
"""

import torch

YCBCR = (65.481, 128.553, 24.966, 16.0)
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def luma(image: torch.Tensor) -> torch.Tensor:
    """Y of YCbCr (BT.601, video range) in 16..235 as float64, BHW."""
    red, green, blue = image.detach().double().unbind(1)
    return YCBCR[0] * red + YCBCR[1] * green + YCBCR[2] * blue + YCBCR[3]


def psnr_y(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of Y in dB, float64 B.

    Equal images give 80 dB, because of the 1e-8 inside the logarithm.
    """
    # Not rounded, other than in SSIM below: the two conventions of the published tables differ
    # here.
    error = ((luma(image) - luma(reference)) / 255).square().mean((1, 2))
    return -10 * torch.log10(error + 1e-8)


def ssim_y(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Y in [0, 1], float64 B; sides must be at least 11 pixels."""
    x, y = luma(image).round(), luma(reference).round()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y, xx, yy, xy = (
        gaussian(part, SSIM_WINDOW, SSIM_SIGMA) for part in (x, y, x * x, y * y, x * y)
    )
    # E x^2 - (E x)^2 cancels nearly all digits where the image is flat: hence float64.
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (
        xx - mean_x.square() + yy - mean_y.square() + c2
    )
    brightness = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (brightness * contrast.clamp(min=0)).mean((1, 2))


def gaussian(x: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """Gaussian filter of x (..., H, W) over its valid area; the window of odd `size` sums to 1."""
    place = torch.arange(size, dtype=x.dtype) - size // 2
    window = torch.exp(-place.square() / (2 * sigma**2))
    return separable(x, (window / window.sum()).tolist())


def separable(x: torch.Tensor, taps: list[float], stride: int = 1) -> torch.Tensor:
    """Correlate x (..., H, W) with `taps` along both axes, over the valid area, with `stride`."""
    # A sum of shifted copies has one order of additions. The algorithm of conv2d, and with it the
    # last digits, would depend on the size of the batch and on the machine.
    for axis in (-2, -1):
        points = (x.shape[axis] - len(taps)) // stride + 1
        index = [slice(None)] * x.ndim
        out = torch.zeros_like(x.narrow(axis, 0, points))
        for start, weight in enumerate(taps):
            index[axis] = slice(start, start + stride * (points - 1) + 1, stride)
            out.add_(x[tuple(index)], alpha=weight)
        x = out
    return x
