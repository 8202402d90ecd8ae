"""The share of detail in an image: the attribute map of the reward (paper Sec. 3.3; released code).

    gray = uint8(255 x)                     # truncated; split into cells of 10x10 pixels, smaller
                                            # at the right and bottom
    g    = |Sobel(resize(cell, 64x64))|     # bilinear, 3x3, replicated border
    H    = entropy in bits of the histogram of g: 512 bins over [-5.5, 5.5]
    detail where H * (pixels of the cell) > 50;  share = detail pixels / pixels

Resizing and the Sobel filter are linear and separable, so each gradient of a cell P is one product
A P B^T with matrices of 64 rows. For 8-bit grey levels its entries are multiples of 2^-14 below
2^10, hence exact in float32.

Only the comparison with the threshold matters, not the entropy itself. A cell therefore goes
through up to four tests. Each test costs more than the one before, and gets the cells that the
previous tests left undecided:

    flat       The steps between neighbouring pixels reach so few bins that the entropy cannot
               exceed the threshold.
    split      A cell below the threshold has one bin with almost all points. If enough points lie
               below some bin edge and enough above it, no bin can hold that many. Only the points
               whose Sobel window lies between the same four pixels are counted.
    coarse     The counts of the first three bins, and one count for all others, bound the entropy
               on both sides.
    exact      The histogram in float64, also for cells within `RECHECK` bits of the threshold,
               where rounding in the coarse test could matter.

    share_B = detail_share(image_BCHW)     # benchmarks/complexity.py compares it with a cell loop

Shapes: B batch, C channels, H W pixels; in the private functions N cells of h x w pixels.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gdpo.checks import check_image

Grayscale = Literal["bt601", "released"]
# The released code applies OpenCV's BGR weights to an RGB array, which swaps red and blue:
# 0.114 R + 0.587 G + 0.299 B.
# What every part of the pipeline uses: shards, rollouts, evaluation and report.
PIPELINE_GRAYSCALE: Grayscale = "released"
_CONVERSIONS = {"bt601": cv2.COLOR_RGB2GRAY, "released": cv2.COLOR_BGR2GRAY}
CELL = 10
SIDE = 64
POINTS = SIDE * SIDE
BINS = 256  # the upper half of the 512: a magnitude is never negative
BINS_PER_LEVEL = 512 / 11 / 255
THRESHOLD = 50.0
RECHECK = 0.02
# Bins that the coarse test counts one by one. Cells below the threshold have nearly all points in
# the first bin.
COARSE = 3
CHUNKS = {"split": 512, "coarse": 64, "exact": 16}  # cells per chunk of each test
Cells = NDArray[np.uint8]


def detail_share(image_BCHW: torch.Tensor, grayscale: Grayscale = "bt601") -> torch.Tensor:
    """Share of detail pixels rho_d of each image, not rounded (released code: to 2 decimals).

    image_BCHW: RGB in [0, 1]. grayscale: correct luma weights ("bt601") or the swapped ones of the
    released code ("released"). Returns share_B in [0, 1], float64, on the image's device; the share
    of smooth pixels rho_s is 1 - share_B.
    Errors: ValueError naming the argument.
    """
    return detail_map(image_BCHW, grayscale).double().mean((1, 2))


def detail_map(image_BCHW: torch.Tensor, grayscale: Grayscale = "bt601") -> torch.Tensor:
    """Mask of detail pixels, boolean BHW on the image's device.

    Arguments and errors as in `detail_share`.
    """
    check_image("image_BCHW", image_BCHW)
    if grayscale not in _CONVERSIONS:
        raise ValueError(f"grayscale must be one of {', '.join(_CONVERSIONS)}, got {grayscale!r}")
    pixels = (
        image_BCHW.detach().to("cpu", torch.promote_types(image_BCHW.dtype, torch.float32)) * 255
    )
    # Truncated and not rounded, as in the release; at a threshold of entropy a level matters.
    rgb = pixels.byte().permute(0, 2, 3, 1).contiguous().numpy()
    maps = [_detail_map(cv2.cvtColor(one, _CONVERSIONS[grayscale])) for one in rgb]
    return torch.from_numpy(np.stack(maps)).to(image_BCHW.device)


def _detail_map(gray: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask of one uint8 image HW: full cells, strips at right and bottom, corner."""
    out = np.empty(gray.shape, bool)
    for rows, h in _bands(gray.shape[0]):
        for columns, w in _bands(gray.shape[1]):
            block = gray[rows, columns]
            cells = block.reshape(block.shape[0] // h, h, block.shape[1] // w, w).swapaxes(1, 2)
            detail = _is_detail(cells.reshape(-1, h, w)).reshape(cells.shape[:2])
            out[rows, columns] = detail.repeat(h, 0).repeat(w, 1)
    return out


def _bands(length: int) -> list[tuple[slice, int]]:
    """The parts of one axis as (slice, cell side): cells of 10, then the smaller rest, if any."""
    full = length // CELL * CELL
    parts = [(slice(0, full), CELL), (slice(full, length), length - full)]
    return [(part, side) for part, side in parts if part.stop > part.start]


def _is_detail(cells: Cells) -> NDArray[np.bool_]:
    """Whether entropy * area exceeds the threshold, for cells N h w, by the four tests above."""
    bits = THRESHOLD / (cells.shape[1] * cells.shape[2])
    detail = ~_surely_flat(cells, bits)
    left = np.flatnonzero(detail)
    left = left[~_in_chunks(lambda some: _surely_detail(some, bits), cells[left], CHUNKS["split"])]
    low, high = _in_chunks(_entropy_bounds, cells[left], CHUNKS["coarse"]).T
    detail[left] = low > bits
    left = left[(low <= bits + RECHECK) & (high >= bits - RECHECK)]
    detail[left] = _in_chunks(_entropy, cells[left], CHUNKS["exact"]) > bits
    return detail


def _in_chunks(test: Callable[[Cells], NDArray[Any]], cells: Cells, size: int) -> NDArray[Any]:
    """Apply `test` to chunks of `size` cells, so that intermediate results fit the CPU cache.

    There may be no cells at all.
    """
    return np.concatenate([test(cells[i : i + size]) for i in range(0, max(len(cells), 1), size)])


def _surely_flat(cells: Cells, bits: float) -> NDArray[np.bool_]:
    """Cells whose gradients reach too few bins for an entropy above `bits`: the flat test.

    After the enlargement of a 10-pixel cell, |g_x| <= 1.25 max|dx|.
    """
    levels = cells.transpose(1, 2, 0).astype(np.int16)
    reach = np.zeros(len(cells))
    for axis in (0, 1):
        step = np.abs(np.diff(levels, axis=axis)).max((0, 1), initial=0)
        reach += (step * (8 * levels.shape[axis] / SIDE * BINS_PER_LEVEL)) ** 2
    bins = np.minimum(np.floor(np.sqrt(reach) * 1.001) + 1, BINS)
    return np.asarray(np.log2(bins) <= bits)


def _surely_detail(cells: Cells, bits: float) -> NDArray[np.bool_]:
    """Cells whose entropy must exceed `bits`: the split test.

    It uses the points whose Sobel window lies between the same four pixels. There x2 and y2, the
    squared derivatives in bins, depend on three indices instead of four: g_x is equal for all
    columns of points between two pixels, g_y for all rows. The test tries two bin edges: that of
    the first bin and the one nearest the mean. If at least `need` points lie below an edge and as
    many above it, every bin misses at least `need` points.
    """
    need = _points_missed(bits)
    if need > POINTS // 2 or not len(cells):
        return np.zeros(len(cells), bool)
    (smooth_y, bands_y, slope_y), (smooth_x, bands_x, slope_x) = (
        _between_pixels(side) for side in cells.shape[1:]
    )
    levels = np.ascontiguousarray(cells.transpose(1, 2, 0)).astype(np.float32)
    h, w, number = levels.shape
    across = smooth_y @ (np.diff(levels, axis=1) * slope_x).reshape(h, (w - 1) * number)
    # Axes of x2: row of points, pair of pixel columns, cell.
    # Axes of y2: pair of pixel rows, column of points, cell.
    x2 = np.square(across).reshape(-1, w - 1, number)
    y2 = np.square(smooth_x @ (np.diff(levels, axis=0) * slope_y))
    middle_y, middle_x = (
        [(band.start + band.stop) // 2 for band in bands] for bands in (bands_y, bands_x)
    )
    mean = np.sqrt(x2[middle_y] + y2[:, middle_x]).mean((0, 1))
    # Just below the mean, which has about half of the points on either side; that is where the test
    # succeeds most often.
    edge = np.square(np.maximum(np.rint(0.95 * mean), 1))
    below = np.zeros((2, number), np.int64)
    wide = [band.stop - band.start for band in bands_x]
    for row, band_y in enumerate(bands_y):
        squares = x2[band_y].repeat(wide, axis=1)  # row and column of points, cell
        squares += y2[row]
        squares = squares.reshape(-1, number)
        below[0] += _count(squares < 1)
        below[1] += _count(squares < edge)
    known = len(smooth_y) * len(smooth_x)
    return np.asarray((np.minimum(below, known - below) >= need).any(0), bool)


def _points_missed(bits: float) -> int:
    """The least number n such that the entropy exceeds `bits` if every bin misses n points.

    If the fullest bin misses a share s <= 1/2 of the points, the entropy is at least
    -s log2 s - (1 - s) log2(1 - s).
    """
    share = np.arange(1, POINTS // 2 + 1) / POINTS
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share + 1e-12)
    return 1 + int(np.count_nonzero(entropy <= bits + RECHECK))


def _count(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Number of true entries per column, for at most 255 rows; byte arithmetic makes it fast."""
    return np.asarray(np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8))


def _entropy_bounds(cells: Cells) -> NDArray[np.float64]:
    """Bounds N x (low, high) of the entropy in bits: the coarse test.

    All points beyond the first bins count as one bin (low) or as spread evenly over all other bins
    (high).
    """
    gradient_x, gradient_y = _gradients(cells, np.float32)
    # Squares are compared with squared bin edges: no root for 4096 points per cell.
    squares = np.square(gradient_x, out=gradient_x)
    squares += np.square(gradient_y, out=gradient_y)
    edges = [np.float32((edge / BINS_PER_LEVEL) ** 2) for edge in range(1, COARSE + 1)]
    below = [_count(squares < edge).reshape(-1, SIDE).sum(1, dtype=np.int64) for edge in edges]
    share = np.diff(np.stack(below, 1), axis=1, prepend=0, append=POINTS) / POINTS
    low = -(share * np.log2(share + 1e-10)).sum(1)
    return np.stack([low, low + share[:, -1] * np.log2(BINS - COARSE)], 1)


def _entropy(cells: Cells) -> NDArray[np.float64]:
    """Entropy in bits of each cell's gradient histogram, with the epsilons of the released code."""
    number = len(cells)
    bins = (
        cv2.magnitude(*_gradients(cells, np.float64)) * BINS_PER_LEVEL
        if number
        else np.empty((SIDE, 0))
    )
    index = bins.astype(np.int64).reshape(SIDE, number, SIDE) + (BINS * np.arange(number))[:, None]
    share = np.bincount(index.ravel(), minlength=BINS * number).reshape(number, BINS) / (
        POINTS + 1e-5
    )
    return np.asarray(-(share * np.log2(share + 1e-10)).sum(1))


def _gradients(
    cells: Cells, dtype: type[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """g_x and g_y in grey levels at all points of the enlarged cells: (64 rows, N * 64 columns)."""
    number, h, w = cells.shape
    (derive_y, smooth_y), (derive_x, smooth_x) = (_gradient_matrices(side) for side in (h, w))
    rows = cells.transpose(1, 0, 2).reshape(h * number, w).astype(dtype)
    across = (rows @ derive_x.T.astype(dtype)).reshape(h, number * SIDE)
    along = (rows @ smooth_x.T.astype(dtype)).reshape(h, number * SIDE)
    return smooth_y.astype(dtype) @ across, derive_y.astype(dtype) @ along


def _places(length: int) -> NDArray[np.float64]:
    """Positions of the 64 enlarged points on the axis of `length` pixels, in [0, length - 1]."""
    return np.asarray(np.clip((np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, length - 1))


@cache
def _gradient_matrices(length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(derivative, smoothing): matrices 64 x `length` of enlargement, then Sobel filter."""
    enlarge = np.maximum(0, 1 - np.abs(_places(length)[:, None] - np.arange(length)))
    # The border of Sobel's filter is replicated after the enlargement, inside each cell: cells do
    # not see their neighbours.
    padded = np.concatenate([enlarge[:1], enlarge, enlarge[-1:]])
    return padded[2:] - padded[:-2], padded[2:] + 2 * padded[1:-1] + padded[:-2]


@cache
def _between_pixels(length: int) -> tuple[NDArray[np.float32], list[slice], np.float32]:
    """(rows, slices, slope) of the points whose Sobel window lies between two neighbouring pixels.

    rows: their rows of the smoothing matrix, in the order of the pairs of pixels. slices: the rows
    of each of the length - 1 pairs. slope: factor from the step between two pixels to the
    derivative between them, in bins.
    """
    place = _places(length)
    pairs = [
        [i for i in range(1, SIDE - 1) if pair < place[i - 1] and place[i + 1] < pair + 1]
        for pair in range(length - 1)
    ]
    ends = np.cumsum([0, *map(len, pairs)])
    smooth = _gradient_matrices(length)[1][np.concatenate(pairs)]
    slope = 8 * length / SIDE * BINS_PER_LEVEL / 4  # smoothing across multiplies by 4
    return smooth.astype(np.float32), [slice(a, b) for a, b in pairwise(ends)], np.float32(slope)
