"""MANIQA (Yang et al. 2022) over 20 crops of a fixed grid, for batches of images.

    crops   224x224 at the first 20 positions of a 5x5 grid with steps (H - 224) // 4 and
            (W - 224) // 4, so the last row is never used
    q, w    quality and weight per patch of each crop:
            ViT blocks 6..9 -> token attention -> Swin -> token attention -> Swin
    score   = sum(w q) / (sum(w) + 1e-8) over all patches of all crops of the image

pyiqa's `forward` computes the same score with all crops of a batch in one pass. It also runs ViT
blocks 10 and 11 and a head whose outputs are unused, and it stores every block's output in a list,
so it is not re-entrant. Here crops are processed in chunks of `CHUNK`, the ViT stops after block 9,
and the CPU never waits for the device. Up to version 0.1.10 pyiqa sampled its crops at random, so
values published at that time scatter around ours.

    score_B = maniqa(build("maniqa", device), image_BCHW)

Shapes: B images, N crops, P patches, C channels, H W pixels.
"""

from typing import Any

import torch
from torch.nn import functional

SIDE, CROPS, GRID = 224, 20, 5
CHUNK = 20
_BLOCKS = [6, 7, 8, 9]


def maniqa(network: Any, image: torch.Tensor) -> torch.Tensor:
    """The score of each image, score_B: about 0..1, higher is better.

    network: pyiqa's MANIQA as `networks.build` makes it; image: float BCHW, RGB in [0, 1], on the
    network's device.
    """
    mean, std = network.default_mean.to(image), network.default_std.to(image)
    crops = uniform_crops((image - mean) / std)
    quality, weight = zip(*(_patches(network, part) for part in crops.split(CHUNK)), strict=True)
    quality_BP, weight_BP = (torch.cat(part).reshape(len(image), -1) for part in (quality, weight))
    # The network says which patches matter; all patches of all crops share one weighted mean.
    return (weight_BP * quality_BP).sum(1) / (weight_BP.sum(1) + 1e-8)


def uniform_crops(image: torch.Tensor) -> torch.Tensor:
    """The crops (B * 20, C, 224, 224) of BCHW, image by image.

    Images with a side up to 224 pixels are enlarged first (pyiqa's rule).
    """
    if min(image.shape[2:]) <= SIDE:
        image = functional.interpolate(
            image, scale_factor=(SIDE + 1) / min(image.shape[2:]), mode="bilinear"
        )
    # pyiqa takes the first 20 of a 5 x 5 grid: the lowest row of crops is never scored.
    down, right = ((side - SIDE) // (GRID - 1) for side in image.shape[2:])
    places = [(i * down, j * right) for i in range(GRID) for j in range(GRID)][:CROPS]
    return torch.stack([image[:, :, y : y + SIDE, x : x + SIDE] for y, x in places], 1).flatten(
        0, 1
    )


def _patches(network: Any, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quality and weight, each (N, P), of the patches of crops (N, C, 224, 224)."""
    side = network.input_size
    blocks = network.vit.forward_intermediates(
        crops, _BLOCKS, stop_early=True, output_fmt="NLC", intermediates_only=True
    )
    x = torch.cat(blocks, 2).transpose(1, 2)
    stages = (
        (network.tablock1, network.conv1, network.swintransformer1),
        (network.tablock2, network.conv2, network.swintransformer2),
    )
    for attention, convolution, swin in stages:
        for layer in attention:
            x = layer(x)
        x = swin(convolution(x.unflatten(2, (side, side))))
        x = x.flatten(2)
    x = x.transpose(1, 2)
    return network.fc_score(x).flatten(1), network.fc_weight(x).flatten(1)
