"""FID (Heusel et al. 2017) of two sets of images with clean-fid's resizing, as in published tables.

    x   = each channel resized to 299x299 by PIL's bicubic on floats, clipped to 0..255, then
          (x - 128) / 128
    f   = the 2048 pooled features of the Inception of 2015-12-05
    FID = |mu_1 - mu_2|^2 + tr(C_1) + tr(C_2) - 2 tr((C_1 C_2)^(1/2))

pyiqa computes the matrix root of C_1 C_2. For fewer than 2048 images that product is singular, so
the root takes minutes and its last digits depend on the machine. With C_i = A_i^T A_i, where A_i
are the centred features / sqrt(n_i - 1), the trace of the root equals the sum of the singular
values of A_1 A_2^T, a matrix no larger than the sets.

    distance = frechet_distance(features(images), features(references))
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from PIL import Image

from gdpo.metrics.score import network

SIDE = 299
BATCH = 8
Features = NDArray[np.float64]


def features(images: Iterable[NDArray[np.uint8]], device: torch.device | str = "cpu") -> Features:
    """Inception features (n, 2048) of images (uint8 HWC RGB, any sizes), read one batch at a time.

    Errors: ValueError naming missing weights, or if there is no image.
    """
    inception = network("fid", device)
    rows = []
    resized = map(_resized, images)
    while batch := list(islice(resized, BATCH)):
        with torch.no_grad():
            pooled = inception((torch.stack(batch).to(device) - 128) / 128)
        rows.append(pooled.double().cpu().numpy())
    if not rows:
        raise ValueError("images must not be empty: FID is a distance of two sets")
    return np.concatenate(rows)


def frechet_distance(one: Features, other: Features) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features, (n, D) and (m, D).

    Errors: ValueError if a set has fewer than two rows.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(
            f"FID needs at least two images in each set, got {len(one)} and {len(other)}"
        )
    roots = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (one, other)]
    # The triangular factor of a QR decomposition has the same C_i, and its size does not grow with
    # the number of images.
    small = [scipy.linalg.qr(root, mode="r")[0][: root.shape[1]] for root in roots]
    # R1 and R2 with C_i = R_i^T R_i: tr (C_1 C_2)^(1/2) is the nuclear norm of R1 R2^T.
    overlap = scipy.linalg.svdvals(small[0] @ small[1].T).sum()
    difference = one.mean(0) - other.mean(0)
    return float(difference @ difference + sum((root**2).sum() for root in roots) - 2 * overlap)


def _resized(image: NDArray[np.uint8]) -> torch.Tensor:
    """Resize as clean-fid does: float CHW in 0..255."""
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
    small = [
        np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels
    ]
    return torch.from_numpy(np.stack(small).clip(0, 255))
