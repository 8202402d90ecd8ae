"""The operations of the degradation, each a pure function of image and parameters.

Images are float32 (H, W, 3) RGB in 8-bit levels: 0 is black, 255 is white. Blur and resize may
overshoot this range; noise and JPEG clip to it. The implementations are fast on one core (OpenCV
filters, libjpeg-turbo, lookup tables). They compute the same as Real-ESRGAN and the GDPO release,
except for real JPEG in place of a differentiable approximation (docs/fidelity.md).
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
# How an LR image is enlarged where no mode is drawn: at inference, and so in held-out pairs.
INFERENCE_MODE = "bicubic"
# OpenCV's bicubic has a = -0.75, as torch's.
_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_LUMA = np.array([[0.2989, 0.587, 0.114]], dtype=np.float32)
# Largest kernel that OpenCV filters directly; larger ones use Fourier transforms, which take four
# times as long.
_DIRECT = 11
# Share of a kernel's weights that may be left out: less than the float32 rounding error of the sum.
_NEGLIGIBLE = 1e-6
_STEPS = 4096  # equal steps of probability in the tables of Poisson noise


def to_levels(image: np.ndarray) -> np.ndarray:
    """Floating-point levels -> uint8, rounded and clipped."""
    levels: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return levels


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter (H, W, 3) with an odd square kernel; borders mirror without repeating the edge pixel.

    A kernel of low rank is applied as a sum of separable filters (an isotropic Gaussian has rank
    1).
    """
    kernel = _cropped(kernel.astype(np.float64))
    columns, rows = _products(kernel)
    # Up to this rank, separable filters are faster than filter2D; the limit is higher where
    # filter2D uses Fourier transforms.
    if len(rows) > (2 if len(kernel) <= _DIRECT else 7):
        return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)
    blurred = np.zeros_like(image)
    for column, kernel_row in zip(columns, rows, strict=True):
        blurred += cv2.sepFilter2D(image, -1, kernel_row, column, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _cropped(kernel: np.ndarray) -> np.ndarray:
    """The kernel without the outer rings whose weights are negligible."""
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
    """Columns (r, k) and rows (r, k) whose r outer products sum to the kernel (k, k).

    r is the least number that leaves a negligible rest.
    """
    # Filtering with a rank-r kernel costs 2 r k operations a pixel instead of k^2.
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
    """Resize (H, W, 3) to floor(H scale) x floor(W scale), at least one pixel.

    Only `area` antialiases. As in the release, the sampling positions follow `scale` itself, not
    the ratio of the rounded sizes.
    """
    height, width = (max(1, int(side * scale)) for side in image.shape[:2])
    if mode == "area" or scale == 1:
        return resize_to(image, (height, width), mode)
    # cv2.resize with fx, fy fails for a size below 1.
    if min(image.shape[:2]) * scale < 1:
        return resize_to(image, (height, width), mode)
    with _one_thread():
        resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=_INTERPOLATION[mode])
    # OpenCV may round the size up where the release rounds down; the common pixels are the same.
    return resized[:height, :width]


def resize_to(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize (H, W, 3) to `size` (H', W').

    `area` averages all source pixels that a target pixel overlaps, with equal weights.
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
    """Run OpenCV with one thread.

    The last bit of OpenCV's bicubic depends on the number of threads; the other filters do not.
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
    """Resize (H, W, 3) to (H', W, 3) by area, H' = `height`.

    Row i is the mean of the source rows floor(i H / H') to ceil((i + 1) H / H'), the last excluded.
    """
    place = np.arange(height)
    first, end = place * len(image) // height, -(-(place + 1) * len(image) // height)
    counts = end - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    touched = np.arange(starts[-1]) - np.repeat(starts[:-1] - first, counts)
    weights = np.repeat((1 / counts).astype(np.float32), counts)
    # A sparse matrix of one row per target row: torch's area mode, which the release uses, averages
    # whole source rows, where OpenCV's weighs the parts of them.
    means = csr_array((weights, touched, starts), shape=(height, len(image)))
    rows: np.ndarray = means @ image.reshape(len(image), -1)
    return rows.reshape(height, *image.shape[1:])


def gaussian_noise(image: np.ndarray, sigma: float, gray: bool, seed: int) -> np.ndarray:
    """Add Gaussian noise with standard deviation `sigma` in levels; clipped to [0, 255].

    gray: the same noise in all channels.
    """
    # From torch's generator, keyed by the stored seed: the field itself is not stored with the
    # pair.
    noise = torch.randn(
        *image.shape[:2], 1 if gray else 3, generator=torch_generator(seed, "noise")
    ).numpy()
    return _added(image, noise, sigma)


def poisson_noise(image: np.ndarray, scale: float, gray: bool, seed: int) -> np.ndarray:
    """Add `scale` times the Poisson noise of an image; clipped to [0, 255].

    Level 255 stands for `poisson_peak` photons. gray: the noise of the image's luma, the same in
    all channels.
    """
    clean = cv2.transform(image, _LUMA).reshape(*image.shape[:2], 1) if gray else image
    return _added(image, _poisson(to_levels(clean), numpy_generator(seed, "noise")), scale)


def _added(image: np.ndarray, noise: np.ndarray, strength: float) -> np.ndarray:
    """image + strength * noise, clipped to [0, 255]; overwrites noise (H, W, 1 or 3)."""
    # In place: the noise of a 512-pixel patch is 3 MB.
    noise *= np.float32(strength)
    noise = cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB) if noise.shape[2] == 1 else noise
    noise += image
    return np.clip(noise, 0, 255, out=noise)


def poisson_peak(levels: np.ndarray) -> int:
    """The number of distinct values in a uint8 image, rounded up to a power of two."""
    # BasicSR's rule for images of unknown exposure: more grey levels, more photons, less noise.
    histogram = cv2.calcHist([levels.reshape(len(levels), -1)], [0], None, [256], [0, 256])
    return 1 << (int(np.count_nonzero(histogram)) - 1).bit_length()


def _poisson(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson noise in levels: 255 / peak * (count - mean), with mean = levels * peak / 255.

    Returns float32 of the shape of `levels`. A count is the quantile of a uniform random number.
    Most counts come from a table indexed by the first 12 of 16 random bits: a step of probability
    that lies within one count. The others draw 53 more bits and search the distribution function.
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
    # The first 16 bits of the uniform number stay; 53 more follow them, so the two paths together
    # draw one uniform number each.
    exact = level + (drawn[split] + rng.random(len(split))) / 65536
    longest = distribution.size // 256
    count = np.searchsorted(distribution, exact, side="right") - longest * level.astype(np.int64)
    deviation[split] = np.minimum(count, longest - 1) * (255 / peak) - level
    return deviation.reshape(levels.shape)


@cache
def _poisson_tables(peak: int) -> tuple[torch.Tensor, np.ndarray]:
    """The lookup table and the distribution functions of `_poisson` for one peak.

    table (256 * _STEPS): the noise for a level and a step of probability; NaN where a step contains
    several counts.
    distribution: for each level, level + P(count <= 0, 1, 2, ...) until the probability reaches 1
    in float64. Adding the level makes the whole array increasing, so that one search covers all
    levels.
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
    """Compress by JPEG and decode again: baseline, 4:2:0, libjpeg's quality scale 1..100.

    As in the released code, black fills the last blocks beyond the right and lower edge, which
    causes ringing inside the image. libjpeg itself would repeat the edge pixels.
    """
    height, width = image.shape[:2]
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    bgr = cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR)
    if height % 16 or width % 16:
        bgr = cv2.copyMakeBorder(
            bgr, 0, -height % 16, 0, -width % 16, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    # 4:2:0, as most cameras and web sites write: colour at half resolution, in blocks of 16 pixels.
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])[1]
    return decode_image(data.tobytes())[:height, :width].astype(np.float32)
