"""The single operations of the degradation, each a pure function of image and parameters.

Images are float32 (H, W, 3) RGB in 8-bit levels: 0 is black, 255 is white. Blur and resize may
overshoot, noise and JPEG clip. The means are fast on one core (OpenCV's filters, libjpeg-turbo,
tables); they compute what Real-ESRGAN and the GDPO release do, but for real JPEG in place of a
differentiable imitation of it (docs/fidelity.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.special import pdtr

from gdpo.images import decode_image
from gdpo.seeds import numpy_generator, torch_generator

MODES = ("area", "bilinear", "bicubic")
_INTERPOLATION = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}  # OpenCV's cubic has torch's a = -0.75
_LUMA = np.array([[0.2989, 0.587, 0.114]], dtype=np.float32)
_DIRECT = (
    11  # OpenCV filters with larger kernels through Fourier transforms, at four times the time
)
_NEGLIGIBLE = (
    1e-6  # share of a kernel's weights that may be left out: less than float32 loses in the sum
)
_STEPS = 4096  # how finely the tables of Poisson noise divide the probabilities


def to_levels(image: np.ndarray) -> np.ndarray:
    """Floating-point levels -> uint8, rounded and clipped."""
    levels: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return levels


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter (H, W, 3) with an odd square kernel; borders are mirrored without repeating the edge
    pixel.

    A kernel that is a sum of a few products of a column and a row (a round Gaussian is one) is
    applied as such.
    """
    kernel = _cropped(kernel.astype(np.float64))
    columns, rows = _products(kernel)
    if len(rows) > (2 if len(kernel) <= _DIRECT else 7):
        return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)
    blurred = np.zeros_like(image)
    for column, row in zip(columns, rows, strict=True):
        blurred += cv2.sepFilter2D(image, -1, row, column, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _cropped(kernel: np.ndarray) -> np.ndarray:
    """The kernel without the outer rings that hold next to nothing."""
    weights = np.abs(kernel)
    limit = _NEGLIGIBLE * weights.sum()
    ring = 0
    while (
        len(kernel) > 2 * ring + 2
        and weights.sum() - weights[ring + 1 : -ring - 1, ring + 1 : -ring - 1].sum() <= limit
    ):
        ring += 1
    return kernel[ring : len(kernel) - ring, ring : len(kernel) - ring]


def _products(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns (r, k) and rows (r, k) whose r outer products sum to the kernel but for next to
    nothing.
    """
    left, values, right = np.linalg.svd(kernel)
    root = np.sqrt(values)
    columns, rows = (left * root).T, right * root[:, None]
    rest = kernel.copy()
    for rank in range(len(kernel)):
        rest -= np.outer(columns[rank], rows[rank])
        if np.abs(rest).sum() <= _NEGLIGIBLE * np.abs(kernel).sum():
            break
    return columns[: rank + 1].astype(np.float32), rows[: rank + 1].astype(np.float32)


def resize_by(image: np.ndarray, scale: float, mode: str) -> np.ndarray:
    """Resize (H, W, 3) to floor(H scale) x floor(W scale), at least one pixel; no antialiasing
    except in `area`.

    As in the release, the sampling positions follow `scale` itself, not the ratio of the rounded
    sizes.
    """
    height, width = (max(1, int(side * scale)) for side in image.shape[:2])
    if mode == "area" or scale == 1:
        return resize_to(image, (height, width), mode)
    # OpenCV rounds the size up where we round down; the pixels both have are the same. It needs a
    # size of at least 1.
    if min(image.shape[:2]) * scale < 1:
        return resize_to(image, (height, width), mode)
    with _one_thread():
        resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=_INTERPOLATION[mode])
    return resized[:height, :width]


def resize_to(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize (H, W, 3) to `size` (H', W'). `area` averages all pixels a target pixel touches, with
    equal weights.
    """
    height, width = size
    if (height, width) == image.shape[:2]:
        return image
    if mode == "area":
        return cv2.transpose(_area_rows(cv2.transpose(_area_rows(image, height)), width))
    with _one_thread():
        return cv2.resize(image, (width, height), interpolation=_INTERPOLATION[mode])


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV's bicubic depends in the last bit on how many threads share it (the other filters do
    not).
    """
    threads = cv2.getNumThreads()
    if threads == 1:
        yield
        return
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _area_rows(image: np.ndarray, height: int) -> np.ndarray:
    """Resize the rows of (H, W, 3) by area: row i is the mean of the rows floor(i H / H') to
    ceil((i + 1) H / H').
    """
    place = np.arange(height)
    first, end = place * len(image) // height, -(-(place + 1) * len(image) // height)
    counts = end - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    touched = np.arange(starts[-1]) - np.repeat(starts[:-1] - first, counts)
    weights = np.repeat((1 / counts).astype(np.float32), counts)
    means = csr_array((weights, touched, starts), shape=(height, len(image)))
    rows: np.ndarray = means @ image.reshape(len(image), -1)
    return rows.reshape(height, *image.shape[1:])


def gaussian_noise(image: np.ndarray, sigma: float, gray: bool, seed: int) -> np.ndarray:
    """Add Gaussian noise of `sigma` levels, the same in all channels if `gray`; clipped to [0,
    255].
    """
    noise = torch.randn(
        *image.shape[:2], 1 if gray else 3, generator=torch_generator(seed, "noise")
    ).numpy()
    return _added(image, noise, sigma)


def poisson_noise(image: np.ndarray, scale: float, gray: bool, seed: int) -> np.ndarray:
    """Add `scale` times the Poisson noise of an image whose brightest value counts `poisson_peak`
    photons.

    If `gray`, the noise is that of the image's luma, the same in all channels. Clipped to [0, 255].
    """
    clean = cv2.transform(image, _LUMA).reshape(*image.shape[:2], 1) if gray else image
    return _added(image, _poisson(to_levels(clean), numpy_generator(seed, "noise")), scale)


def _added(image: np.ndarray, noise: np.ndarray, strength: float) -> np.ndarray:
    """image + strength * noise, clipped; noise (H, W, 1 or 3) is used up."""
    noise *= np.float32(strength)
    noise = cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB) if noise.shape[2] == 1 else noise
    noise += image
    return np.clip(noise, 0, 255, out=noise)


def poisson_peak(levels: np.ndarray) -> int:
    """The number of different values in a uint8 image, raised to a power of two."""
    histogram = cv2.calcHist([levels.reshape(len(levels), -1)], [0], None, [256], [0, 256])
    return 1 << (int(np.count_nonzero(histogram)) - 1).bit_length()


def _poisson(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """255 / peak times the deviation of Poisson counts from their means, levels * peak / 255;
    float32, like `levels`.

    Counts are quantiles of random numbers. The first 12 bits of 16 find nearly all of them in a
    table of the steps that lie within one count; for the rest, 53 more bits are drawn and searched
    for in the distribution itself.
    """
    peak = poisson_peak(levels)
    table, distribution = _poisson_tables(peak)
    flat = levels.reshape(-1)
    drawn = rng.bit_generator.random_raw(flat.size // 4 + 1).view(np.uint16)[: flat.size]
    place = flat.astype(np.int32)
    place *= _STEPS
    place += drawn // (65536 // _STEPS)
    deviation = table.index_select(0, torch.from_numpy(place)).numpy()
    split = np.flatnonzero(np.isnan(deviation))
    level = flat[split]
    exact = level + (drawn[split] + rng.random(len(split))) / 65536
    longest = distribution.size // 256
    count = np.searchsorted(distribution, exact, side="right") - longest * level.astype(np.int64)
    deviation[split] = np.minimum(count, longest - 1) * (255 / peak) - level
    return deviation.reshape(levels.shape)


@cache
def _poisson_tables(peak: int) -> tuple[torch.Tensor, np.ndarray]:
    """The table and the distribution of `_poisson` for one peak.

    table (256 * _STEPS): the deviation for a level and a step of probability, NaN where a step
    holds several counts.
    distribution: for each level, level + P(count <= 0, 1, 2, ...) up to where nothing is missing;
    increasing.
    """
    longest = int(peak + 9 * np.sqrt(peak) + 30)
    probability = pdtr(np.arange(longest), np.arange(256)[:, None] * peak / 255)
    edges = np.zeros((256, _STEPS + 1), np.int64)
    np.add.at(edges, (np.arange(256)[:, None], (probability * _STEPS).astype(np.int64)), 1)
    edges = edges[:, :_STEPS]
    count = np.cumsum(edges, axis=1) - edges
    deviation = count * (255 / peak) - np.arange(256)[:, None]
    table = np.where(edges > 0, np.nan, deviation).astype(np.float32)
    return torch.from_numpy(table.reshape(-1)), (np.arange(256)[:, None] + probability).reshape(-1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG and back: baseline, 4:2:0, libjpeg's quality scale 1..100.

    Beyond the right and lower edge the last blocks are black (released code), which rings into the
    image; libjpeg by itself would repeat the edge.
    """
    height, width = image.shape[:2]
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    bgr = cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR)
    if height % 16 or width % 16:
        bgr = cv2.copyMakeBorder(
            bgr, 0, -height % 16, 0, -width % 16, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])[1]
    return decode_image(data.tobytes())[:height, :width].astype(np.float32)
