"""How much of an image is detail: the attribute map behind the adaptive reward (paper section 3.3; released code).

    gray = uint8(255 x)                     # truncated; cut into cells of 10x10 pixels, less at the right and bottom
    g    = |Sobel(resize(cell, 64x64))|     # bilinear, 3x3, replicated border
    H    = entropy in bits of the histogram of g: 512 bins over [-5.5, 5.5]
    detail where H * (pixels of the cell) > 50;  share = detail pixels / pixels

Resize and Sobel are linear and separable, so each gradient of a cell P is one product A P B^T with matrices of 64
rows. In 8-bit grey levels its entries are multiples of 2^-14 below 2^10: exact in float32. What is rounded after that
matters only to cells within `RECHECK` bits of the threshold, and those are counted again in float64. Two bounds spare
most cells the full count: a flat cell has all its gradients in the first bin, and a quarter of the 64x64 points often
proves that no bin holds as many as one must in a cell below the threshold.

    share_B = detail_share(image_BCHW)          # python benchmarks/complexity.py times it against the per-cell loop

Shapes: B batch, C channels, H W pixels; in the private functions N cells of h x w pixels.
"""

from functools import cache
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gdpo.checks import check_image

Grayscale = Literal["bt601", "released"]
# The release applies OpenCV's BGR weights to an RGB array: red and blue swap places (0.114 R + 0.587 G + 0.299 B).
_CONVERSIONS = {"bt601": cv2.COLOR_RGB2GRAY, "released": cv2.COLOR_BGR2GRAY}
CELL = 10
SIDE = 64
BINS = 256  # the upper half of 512: a magnitude is never negative
BINS_PER_LEVEL = 512 / 11 / 255
THRESHOLD = 50.0
RECHECK = 0.02
CHUNK = 32  # cells at a time: their 64x64 points stay in the processor's cache


def detail_share(image: torch.Tensor, grayscale: Grayscale = "bt601") -> torch.Tensor:
    """Share of detail pixels rho_d of each image, unrounded (the release rounds it to 2 decimals).

    image: BCHW, RGB in [0, 1]; grayscale: correct luma weights ("bt601") or the release's swapped ones ("released").
    Returns share_B in [0, 1], float64, on the image's device; the share of smooth pixels rho_s is 1 - share_B.
    Raises ValueError naming the argument.
    """
    return detail_map(image, grayscale).double().mean((1, 2))


def detail_map(image: torch.Tensor, grayscale: Grayscale = "bt601") -> torch.Tensor:
    """Which pixels are detail: boolean BHW on the image's device. Arguments and errors as in `detail_share`."""
    check_image("image", image)
    if grayscale not in _CONVERSIONS:
        raise ValueError(f"grayscale must be one of {', '.join(_CONVERSIONS)}, got {grayscale!r}")
    pixels = image.detach().to("cpu", torch.promote_types(image.dtype, torch.float32)) * 255
    rgb = pixels.byte().permute(0, 2, 3, 1).contiguous().numpy()
    maps = [_detail_map(cv2.cvtColor(one, _CONVERSIONS[grayscale])) for one in rgb]
    return torch.from_numpy(np.stack(maps)).to(image.device)


def _detail_map(gray: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The map of one uint8 image HW: full cells, the strips that are left at the right and bottom, and the corner."""
    out = np.empty(gray.shape, bool)
    for rows, h in _bands(gray.shape[0]):
        for columns, w in _bands(gray.shape[1]):
            block = gray[rows, columns]
            cells = block.reshape(block.shape[0] // h, h, block.shape[1] // w, w).swapaxes(1, 2)
            found = _is_detail(cells.reshape(-1, h, w)).reshape(cells.shape[:2])
            out[rows, columns] = found.repeat(h, 0).repeat(w, 1)
    return out


def _bands(length: int) -> list[tuple[slice, int]]:
    """The parts of one axis as (slice, cell side): cells of 10 and one smaller rest, empty parts left out."""
    full = length // CELL * CELL
    parts = [(slice(0, full), CELL), (slice(full, length), length - full)]
    return [(part, side) for part, side in parts if part.stop > part.start]


def _is_detail(cells: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether entropy * area exceeds the threshold, for cells N h w."""
    area = cells.shape[1] * cells.shape[2]
    bits = THRESHOLD / area
    if bits >= np.log2(BINS):
        return np.zeros(len(cells), bool)
    detail = ~_surely_one_bin(cells)
    left = np.flatnonzero(detail)
    left = left[~_surely_detail(cells[left], bits)]
    entropy = _entropy(cells[left], np.float32)
    near = np.abs(entropy - bits) < RECHECK
    entropy[near] = _entropy(cells[left[near]], np.float64)
    detail[left] = entropy * area > THRESHOLD
    return detail


def _surely_one_bin(cells: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cells so flat that every gradient falls into the first bin: |g_x| <= 1.25 max|dx| after the enlargement."""
    levels = cells.astype(np.int16)
    steps = [np.abs(np.diff(levels, axis=axis)).max((1, 2), initial=0).astype(np.float64) for axis in (1, 2)]
    slope = [8 * side / SIDE for side in cells.shape[1:]]
    bound: NDArray[np.float64] = np.hypot(steps[0] * slope[0], steps[1] * slope[1]) * BINS_PER_LEVEL
    return bound < 0.999


def _surely_detail(cells: NDArray[np.uint8], bits: float) -> NDArray[np.bool_]:
    """Cells whose entropy must exceed `bits`, from every second row and column of the 64x64 points.

    If at most the share m of all points lies in one bin, the entropy is at least -m log2 m - (1 - m) log2(1 - m) for
    m >= 1/2. The points not looked at may all lie in the fullest bin: m = (count + 3/4 of all) / all.
    """
    points = (SIDE // 2) ** 2
    share = 0.75 + 0.25 * np.arange(1, points) / points
    enough = -share * np.log2(share) - (1 - share) * np.log2(1 - share) > bits + RECHECK
    fullest = _in_chunks(cells, np.float32, 2).max(1)
    return np.asarray(np.append(enough, False)[fullest - 1], bool)


def _entropy(cells: NDArray[np.uint8], dtype: type[np.floating]) -> NDArray[np.float64]:
    """Entropy in bits of each cell's gradient histogram, with the release's epsilons."""
    share = _in_chunks(cells, dtype, 1) / (SIDE * SIDE + 1e-5)
    return np.asarray(-(share * np.log2(share + 1e-10)).sum(1), np.float64)


def _in_chunks(cells: NDArray[np.uint8], dtype: type[np.floating], step: int) -> NDArray[np.int64]:
    """`_counts` of any number of cells, also none."""
    out = np.empty((len(cells), BINS), np.int64)
    for i in range(0, len(cells), CHUNK):
        out[i : i + CHUNK] = _counts(cells[i : i + CHUNK], dtype, step)
    return out


def _counts(cells: NDArray[np.uint8], dtype: type[np.floating], step: int) -> NDArray[np.int64]:
    """Histogram N x 256 of the gradient magnitude at every `step`-th row and column of the enlarged cells."""
    number, h, w = cells.shape
    derive_y, smooth_y = (matrix[::step].astype(dtype) for matrix in _gradient_matrices(h))
    derive_x, smooth_x = (matrix[::step].astype(dtype) for matrix in _gradient_matrices(w))
    points = len(derive_y)
    rows = cells.transpose(1, 0, 2).reshape(h * number, w).astype(dtype)
    gradient_x = smooth_y @ (rows @ derive_x.T).reshape(h, number * points)
    gradient_y = derive_y @ (rows @ smooth_x.T).reshape(h, number * points)
    bins = cv2.magnitude(gradient_x, gradient_y) * dtype(BINS_PER_LEVEL)
    index = bins.astype(np.int64).reshape(points, number, points)
    index += (BINS * np.arange(number))[:, None]
    return np.bincount(index.ravel(), minlength=BINS * number).reshape(number, BINS)


@cache
def _gradient_matrices(length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Derivative and smoothing part of the Sobel filter after a bilinear enlargement of `length` points to 64."""
    centre = np.clip((np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, length - 1)
    enlarge = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(length)))
    padded = np.concatenate([enlarge[:1], enlarge, enlarge[-1:]])
    return padded[2:] - padded[:-2], padded[2:] + 2 * padded[1:-1] + padded[:-2]
