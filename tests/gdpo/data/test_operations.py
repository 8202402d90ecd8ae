"""gdpo.data.operations: each against an independent definition (SciPy, torch, PIL's libjpeg, a
closed form).
"""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import correlate

from gdpo.data import operations as ops
from gdpo.data.kernels import KINDS
from gdpo.data.kernels import kernel as built


@pytest.fixture
def image() -> np.ndarray:
    """A (33, 47, 3) float32 picture in 0..255 with edges and texture, not on whole levels."""
    rng = np.random.default_rng(0)
    coarse = rng.random((5, 7, 3), dtype=np.float32).repeat(7, 0).repeat(7, 1)[:33, :47]
    return (
        255 * np.clip(0.8 * coarse + 0.2 * rng.random((33, 47, 3), dtype=np.float32), 0, 1)
    ).astype(np.float32)


PIXEL = np.full((1, 1, 3), 64.0, np.float32)


def _correlated(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """SciPy's correlation in float64, the border mirrored without repeating the edge pixel."""
    return correlate(image.astype(np.float64), kernel[..., None].astype(np.float64), mode="mirror")


@pytest.mark.parametrize("size", [1, 7, 11, 13, 21])
def test_blur_is_scipys_correlation(image, size):
    """Mirrored borders, every channel alike, whatever the kernel; also where OpenCV goes through
    Fourier transforms.
    """
    kernel = np.random.default_rng(1).random((size, size), dtype=np.float32)
    kernel /= kernel.sum()
    np.testing.assert_allclose(ops.blur(image, kernel), _correlated(image, kernel), atol=2e-3)


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("kind", [*KINDS, "sinc"])
def test_blur_by_every_kind_of_kernel(image, kind, size):
    """Kernels that are cropped, or applied as products of columns and rows, blur as the whole ones
    do: to 1/500 level.
    """
    for sigma in (0.2, 0.7, 1.5, 3.0):
        shape = {
            "sigma": [sigma, 0.6 * sigma if kind.endswith("aniso") else sigma],
            "theta": 0.5,
            "beta": 0.7,
        }
        kernel = built({"kind": kind, "size": size, "cutoff": min(np.pi, 1.0 + sigma), **shape})
        np.testing.assert_allclose(ops.blur(image, kernel), _correlated(image, kernel), atol=2e-3)


def test_blur_of_few_pixels(image):
    """One pixel has nothing to mix with; fewer pixels than the kernel has are mirrored again and
    again.
    """
    kernel = np.full((21, 21), 1 / 441, np.float32)
    np.testing.assert_allclose(ops.blur(PIXEL, kernel), PIXEL, atol=1e-4)
    np.testing.assert_allclose(
        ops.blur(image[:3, :5], kernel), _correlated(image[:3, :5], kernel), atol=2e-3
    )


@pytest.mark.parametrize("scale", [0.15, 0.3, 0.77, 1.0, 1.31, 1.5])
@pytest.mark.parametrize("mode", ops.MODES)
def test_resize_by_is_the_releases_interpolation(image, scale, mode):
    """F.interpolate(scale_factor=...): the size is rounded down, positions follow the scale
    itself.
    """
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, scale_factor=scale, mode=mode)[0].permute(
        1, 2, 0
    )
    resized = ops.resize_by(image, scale, mode)
    assert resized.shape == expected.shape
    np.testing.assert_allclose(resized, expected, atol=5e-3)


@pytest.mark.parametrize("size", [(12, 17), (33, 60), (1, 1), (8, 12), (132, 188)])
@pytest.mark.parametrize("mode", ops.MODES)
def test_resize_to_is_torchs_interpolation(image, size, mode):
    """F.interpolate(size=...) without antialiasing."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=size, mode=mode)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ops.resize_to(image, size, mode), expected, atol=5e-3)


@pytest.mark.parametrize("size", [(10, 40), (50, 47), (33, 94)])
def test_resize_area_is_the_mean_of_touched_pixels(image, size):
    """Target pixel i averages the source pixels from floor(i n / m) to ceil((i + 1) n / m)."""
    expected = np.empty((*size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * 33 // size[0], -(-(i + 1) * 33 // size[0]))
            columns = slice(j * 47 // size[1], -(-(j + 1) * 47 // size[1]))
            expected[i, j] = image[rows, columns].mean((0, 1))
    np.testing.assert_allclose(ops.resize_to(image, size, "area"), expected, atol=1e-3)


@pytest.mark.parametrize("mode", ops.MODES)
def test_resize_of_one_pixel(mode):
    """Never fewer than one pixel; a constant stays one."""
    np.testing.assert_allclose(ops.resize_by(PIXEL, 0.3, mode), PIXEL, atol=1e-4)
    np.testing.assert_allclose(
        ops.resize_to(PIXEL, (3, 2), mode), np.full((3, 2, 3), 64), atol=1e-4
    )


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_is_normal(gray):
    """Mean 0, standard deviation sigma, normal by the Kolmogorov-Smirnov distance; gray: equal
    channels.
    """
    image = np.full((96, 96, 3), 127.5, np.float32)
    noise = ops.gaussian_noise(image, 12.0, gray, 2) - image
    assert stats.kstest(noise[..., 0].ravel() / 12, "norm").pvalue > 1e-3
    if gray:
        np.testing.assert_array_equal(noise[..., 0], noise[..., 2])
    else:
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 4 / 96


@pytest.mark.parametrize("noise", [ops.gaussian_noise, ops.poisson_noise])
@pytest.mark.parametrize("gray", [False, True])
def test_noise_depends_on_its_seed_alone(image, noise, gray):
    """The same seed, the same bytes; another seed, others. The image is left as it was."""
    before = image.copy()
    first = noise(image, 2.0, gray, 1)
    assert first.dtype == np.float32 and first.shape == image.shape
    assert (
        first.tobytes()
        == noise(image, 2.0, gray, 1).tobytes()
        != noise(image, 2.0, gray, 2).tobytes()
    )
    np.testing.assert_array_equal(image, before)
    assert noise(PIXEL, 2.0, gray, 1).shape == PIXEL.shape


def test_noise_is_clipped():
    """Values stay in [0, 255]."""
    ends = np.repeat(np.array([0, 255], np.float32), 300).reshape(20, 10, 3)
    for noisy in (ops.gaussian_noise(ends, 50, False, 3), ops.poisson_noise(ends, 3.0, False, 3)):
        assert noisy.min() == 0 and noisy.max() == 255


def _levels(count: int) -> np.ndarray:
    """An image with `count` different levels between 64 and 191, each in as many pixels as the
    others.
    """
    return (
        np.round(np.linspace(64, 191, count))
        .repeat(3 * 4000)
        .reshape(count * 40, 100, 3)
        .astype(np.float32)
    )


@pytest.mark.parametrize(("values", "peak"), [(5, 8), (100, 128)])
def test_poisson_noise_is_poisson(values, peak):
    """On a pixel of level v the counts noise * peak / (255 scale) + v peak / 255 are Poisson(v peak
    / 255): chi-square.
    """
    image, scale = _levels(values), 0.05  # too weak to be clipped
    noise = (ops.poisson_noise(image, scale, False, 4) - image) / 255
    for level in np.unique(image)[:: max(1, values // 5)]:
        lam = level * peak / 255
        here = image == level
        counts = np.round(noise[here] * peak / scale + lam).astype(int)
        np.testing.assert_allclose(noise[here], (counts - lam) * scale / peak, atol=1e-5)
        bins = np.arange(256)
        seen = np.bincount(counts, minlength=256)[:256]
        expected = stats.poisson(lam).pmf(bins) * here.sum()
        enough = expected > 5
        assert enough.sum() >= 4
        distance = np.sum((seen - expected)[enough] ** 2 / expected[enough])
        assert distance < stats.chi2(enough.sum()).ppf(0.9999)


@pytest.mark.parametrize("peak", [1, 4, 256])
def test_poisson_tables_are_the_distribution(peak):
    """Each step of the table holds the quantile of all of it, or is left to the distribution, which
    is SciPy's.
    """
    table, distribution = ops._poisson_tables(peak)
    steps, longest = table.numel() // 256, distribution.size // 256
    for level in (0, 1, 37, 128, 255):
        row = table.reshape(256, steps)[level].numpy().astype(np.float64)
        counts = (row + level) * peak / 255
        edges = np.arange(steps) / steps
        poisson = stats.poisson(level * peak / 255)
        known = ~np.isnan(row)
        np.testing.assert_allclose(
            counts[known], np.maximum(poisson.ppf(edges + 1e-9), 0)[known], atol=1e-4
        )
        np.testing.assert_allclose(
            counts[known], poisson.ppf(edges + 1 / steps - 1e-9)[known], atol=1e-4
        )
        probability = distribution.reshape(256, longest)[level] - level
        np.testing.assert_allclose(
            probability, poisson.cdf(np.arange(longest)), rtol=0, atol=2**-40
        )
        assert probability[-1] >= 1 - 2**-40
    assert np.all(np.diff(distribution) >= 0)


def test_poisson_noise_in_the_tail():
    """Where the table ends the distribution takes over: the share beyond 3.5 standard deviations is
    that of Poisson.
    """
    image = np.full((1200, 1000, 3), 200, np.float32)
    image[0, :256, 0] = np.arange(256)  # all levels: peak 256
    noise = (ops.poisson_noise(image, 0.02, False, 6) - image)[1:] / 0.02 * 256 / 255
    lam = 200 * 256 / 255
    for sign in (-1, 1):
        edge = np.floor(lam + sign * 3.5 * np.sqrt(lam)) + 0.5
        share = stats.poisson(lam).sf(edge) if sign > 0 else stats.poisson(lam).cdf(edge)
        seen = np.count_nonzero((noise + lam - edge) * sign > 0)
        assert abs(seen - share * noise.size) < 4 * np.sqrt(share * noise.size)


@pytest.mark.parametrize(
    ("count", "peak"), [(1, 1), (2, 2), (3, 4), (100, 128), (128, 128), (129, 256), (256, 256)]
)
def test_poisson_peak_is_the_next_power_of_two(count, peak):
    """2^ceil(log2(different values))."""
    assert ops.poisson_peak(np.arange(count, dtype=np.uint8).reshape(1, -1, 1)) == peak


def test_poisson_noise_of_luma_is_gray():
    """Equal in all channels, and its variance is that of the luma's photons."""
    image = np.tile(np.array([204, 102, 25.5], np.float32), (128, 128, 1))
    noise = (ops.poisson_noise(image, 0.02, True, 5) - image) / 255
    np.testing.assert_allclose(noise[..., 0], noise[..., 1], atol=1e-6)
    luma = np.round((0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.1) * 255) / 255  # one level: peak 1
    assert noise[..., 0].var() == pytest.approx(0.02**2 * luma, rel=0.06)


@pytest.mark.parametrize("quality", [1, 30, 60, 95, 100])
@pytest.mark.parametrize("side", [1, 8, 33])
def test_jpeg_is_pils_libjpeg(image, quality, side):
    """The same pixels as PIL's own libjpeg at 4:2:0, of the image with black beyond its edges;
    quality 100 too.
    """
    levels = np.zeros((-side % 16 + side,) * 2 + (3,), np.uint8)
    levels[:side, :side] = np.round(image[:side, :side])
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    assert (
        np.abs(
            ops.jpeg(image[:side, :side], quality) - np.array(Image.open(buffer))[:side, :side]
        ).max()
        <= 1
    )


def test_jpeg_rounds_and_clips():
    """Overshoot is clipped before it is coded; a flat gray survives quality 100."""
    np.testing.assert_array_equal(ops.jpeg(np.full((16, 16, 3), 430, np.float32), 100), 255)
    np.testing.assert_array_equal(ops.jpeg(np.full((16, 16, 3), -9, np.float32), 100), 0)
    np.testing.assert_array_equal(ops.jpeg(np.full((16, 16, 3), 100, np.float32), 100), 100)


def test_no_operation_depends_on_opencvs_threads(image):
    """One thread or four, the same bytes."""
    large = np.tile(image, (8, 8, 1))
    kernels = [
        built({"kind": kind, "size": 21, "sigma": [2.0, 1.0], "theta": 0.3, "beta": 1.4})
        for kind in KINDS[:4]
    ]

    def everything() -> list[bytes]:
        made = [ops.blur(large, kernel) for kernel in kernels]
        made += [ops.resize_by(large, scale, mode) for scale in (0.4, 1.4) for mode in ops.MODES]
        made += [ops.gaussian_noise(large, 9, gray, 0) for gray in (False, True)]
        made += [ops.poisson_noise(large, 1, gray, 0) for gray in (False, True)]
        return [one.tobytes() for one in [*made, ops.jpeg(large, 80)]]

    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = everything()
        cv2.setNumThreads(4)
        assert everything() == alone
    finally:
        cv2.setNumThreads(before)
