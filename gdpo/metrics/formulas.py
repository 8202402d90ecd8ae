"""Metrics that are formulas without weights: MS-SSIM, GMSD, entropy, PIQE.

    ms_ssim   prod over five scales of (mean contrast)^w, the last scale's with its brightness
              (Wang, Simoncelli, Bovik 2003)
    gmsd      standard deviation of (2 a b + 170) / (a^2 + b^2 + 170), a and b the Prewitt gradients
              of the halved pictures (Xue, Zhang, Mou, Bovik 2013)
    entropy   -sum p log2 p of the 256 levels
    piqe      mean distortion of the active 16-pixel blocks (Venkatanath et al. 2015)

This is our own code, because pyiqa's licence forbids commercial use. The values are pyiqa's
(tests/gdpo/metrics/test_score.py), whose conventions are therefore kept: Y of YIQ with weights in
single precision, its rounding, and PIQE's padding by the remainder.

Shapes: B batch, N blocks; images are BCHW, RGB in [0, 1]; luma is BHW in float64.
"""

import torch
from torch.nn import functional

from gdpo.metrics.fidelity import gaussian

_YIQ = torch.tensor([0.299, 0.587, 0.114]).double()
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_GMSD_C = 170.0
_BLOCK, _WINDOW = 16, 6
# A block is active, and an edge of it is flat, by these deviations of normalised luma.
_ACTIVE_VARIANCE, _FLAT_DEVIATION = 0.1, 0.1


def _luma(image: torch.Tensor) -> torch.Tensor:
    """Y of YIQ in [0, 1], float64 BHW."""
    return torch.einsum("bchw,c->bhw", image.detach().double(), _YIQ.to(image.device))


def _levels(image: torch.Tensor) -> torch.Tensor:
    """Y in whole levels 0..255, float64 BHW."""
    return (_luma(image) * 255).round()


def entropy(image: torch.Tensor) -> torch.Tensor:
    """Entropy of the grey levels in bits, float64 B."""
    counts = [torch.bincount(one.long().flatten(), minlength=256) for one in _levels(image)]
    share = torch.stack(counts).double()
    share = share / share.sum(1, keepdim=True)
    # 1e-8 as in pyiqa, so that its values are met; an empty bin gives 0 either way.
    return -(share * torch.log2(share + 1e-8)).sum(1)


def gmsd(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude similarity deviation, float64 B; 0 for equal images."""
    a, b = _gradient(_levels(image)), _gradient(_levels(reference))
    similar = (2 * a * b + _GMSD_C) / (a.square() + b.square() + _GMSD_C)
    return similar.flatten(1).std(1)


def _gradient(y: torch.Tensor) -> torch.Tensor:
    # Averaged over 2 x 2 pixels first, as in the authors' code.
    half = functional.avg_pool2d(y[:, None], 2)
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3).to(half) / 3
    kernels = torch.stack([across, across.T])[:, None]
    return (functional.conv2d(half, kernels, padding=1).square().sum(1) + 1e-12).sqrt()


def ms_ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity of Y, float64 B; sides must be at least 161 pixels."""
    x, y = _levels(image), _levels(reference)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for number, weight in enumerate(_SCALES, 1):
        mean_x, mean_y, xx, yy, xy = (
            gaussian(part, 11, 1.5) for part in (x, y, x * x, y * y, x * y)
        )
        covariance, variance = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
        # A negative mean to a broken power would be NaN.
        similar = ((2 * covariance + c2) / (variance + c2)).clamp(min=0)
        if number == len(_SCALES):
            similar = similar * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        # Weights in single precision, as in the values that this is held to.
        value = value * similar.mean((1, 2)) ** float(torch.tensor(weight))
        # Odd sides are padded before the halving, and the padding counts as zeros in the mean:
        # pyiqa's rule.
        odd = (x.shape[1] % 2, x.shape[2] % 2)
        x, y = (functional.avg_pool2d(one[:, None], 2, padding=odd)[:, 0] for one in (x, y))
    return value


def piqe(image: torch.Tensor) -> torch.Tensor:
    """PIQE, 0 (best) to 100, float64 B; sides must be at least 16 pixels.

    An image without active blocks, like a black one, has 100.
    """
    blocks = _blocks(_normalised(image))
    variance = blocks.var((2, 3))
    active = variance > _ACTIVE_VARIANCE
    artefact, noise = _has_flat_edge(blocks), _is_noise(blocks, variance)
    distortion = artefact * (1 - variance) + noise * variance
    return ((distortion * active).sum(1) + 1) / (active.sum(1) + 1) * 100


def _normalised(image: torch.Tensor) -> torch.Tensor:
    """Luma relative to its maximum, in whole levels, padded, minus its mean over its deviation."""
    y = _luma(image)
    # A black image has no maximum to divide by.
    brightest = y.flatten(1).amax(1).clamp(min=torch.finfo(y.dtype).tiny)
    # pyiqa scales each image to its own maximum first; PIQE therefore ignores exposure.
    y = (255 * (y / brightest[:, None, None])).round()
    rows, columns = (
        torch.cat([torch.arange(side), side - 1 - torch.arange(side % _BLOCK)])
        for side in y.shape[1:]
    )
    y = y[:, rows][:, :, columns]
    padded = functional.pad(y[:, None], (3, 3, 3, 3), mode="replicate")[:, 0]
    mean, square = gaussian(padded, 7, 7 / 6), gaussian(padded.square(), 7, 7 / 6)
    deviation = ((square - mean.square()).abs() + torch.finfo(torch.float64).eps).sqrt()
    return (y - mean) / (deviation + 1)


def _blocks(plane: torch.Tensor) -> torch.Tensor:
    """BHW -> BN16x16."""
    return plane.unfold(1, _BLOCK, _BLOCK).unfold(2, _BLOCK, _BLOCK).flatten(1, 2)


def _has_flat_edge(blocks: torch.Tensor) -> torch.Tensor:
    """Whether 6 neighbours on one of its four edges hardly vary, BN: an artefact of compression."""
    edges = torch.stack(
        [blocks[..., 0, :], blocks[..., -1, :], blocks[..., 0], blocks[..., -1]], dim=2
    )
    return (edges.unfold(-1, _WINDOW, 1).std(-1) < _FLAT_DEVIATION).flatten(2).any(2)


def _is_noise(blocks: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Whether its deviation exceeds twice its difference from the centre-surround ratio, BN.

    The centre is columns 7 and 8. The surround lacks columns 7 and 9: the published program removes
    one column after the other, and the second index then means another column.
    """
    surround = [column for column in range(_BLOCK) if column not in (7, 9)]
    ratio = blocks[..., 7:9].std((2, 3)) / blocks[..., surround].std((2, 3))
    ratio, deviation = ratio.nan_to_num(), variance.sqrt()
    return deviation > 2 * (deviation - ratio).abs() / torch.maximum(deviation, ratio)
