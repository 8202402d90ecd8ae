"""gdpo.data.operations: each against an independent definition (SciPy, torch, PIL's libjpeg, a closed form)."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import correlate

from gdpo.data import operations as ops


@pytest.fixture
def image() -> np.ndarray:
    """A (33, 47, 3) float32 picture in [0, 1] with edges and texture."""
    rng = np.random.default_rng(0)
    coarse = rng.random((5, 7, 3), dtype=np.float32).repeat(7, 0).repeat(7, 1)[:33, :47]
    return np.clip(0.8 * coarse + 0.2 * rng.random((33, 47, 3), dtype=np.float32), 0, 1).astype(np.float32)


PIXEL = np.full((1, 1, 3), 0.25, np.float32)


@pytest.mark.parametrize("size", [1, 7, 21])
def test_blur_is_scipys_correlation(image, size):
    """Mirrored borders, every channel alike; also where the kernel (21) is cut by OpenCV's Fourier route."""
    kernel = np.random.default_rng(1).random((size, size), dtype=np.float32)
    kernel /= kernel.sum()
    expected = correlate(image.astype(np.float64), kernel[..., None].astype(np.float64), mode="mirror")
    np.testing.assert_allclose(ops.blur(image, kernel), expected, atol=1e-5)


def test_blur_of_one_pixel():
    """There is nothing to mix it with."""
    kernel = np.full((21, 21), 1 / 441, np.float32)
    np.testing.assert_allclose(ops.blur(PIXEL, kernel), PIXEL, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 0.77, 1.0, 1.31, 1.5])
@pytest.mark.parametrize("mode", ops.MODES)
def test_resize_by_is_the_releases_interpolation(image, scale, mode):
    """F.interpolate(scale_factor=...): the size is rounded down, positions follow the scale itself."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, scale_factor=scale, mode=mode)[0].permute(1, 2, 0)
    resized = ops.resize_by(image, scale, mode)
    assert resized.shape == expected.shape
    np.testing.assert_allclose(resized, expected, atol=2e-5)


@pytest.mark.parametrize("size", [(12, 17), (33, 60), (1, 1)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_to_is_torchs_interpolation(image, size, mode):
    """F.interpolate(size=...) without antialiasing."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=size, mode=mode)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ops.resize_to(image, size, mode), expected, atol=2e-5)


@pytest.mark.parametrize("size", [(10, 40), (50, 47), (33, 94)])
def test_resize_area_is_the_mean_of_touched_pixels(image, size):
    """Target pixel i averages the source pixels from floor(i n / m) to ceil((i + 1) n / m)."""
    expected = np.empty((*size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * 33 // size[0], -(-(i + 1) * 33 // size[0]))
            columns = slice(j * 47 // size[1], -(-(j + 1) * 47 // size[1]))
            expected[i, j] = image[rows, columns].mean((0, 1))
    np.testing.assert_allclose(ops.resize_to(image, size, "area"), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ops.MODES)
def test_resize_of_one_pixel(mode):
    """Never fewer than one pixel; a constant stays one."""
    np.testing.assert_allclose(ops.resize_by(PIXEL, 0.3, mode), PIXEL, atol=1e-6)
    np.testing.assert_allclose(ops.resize_to(PIXEL, (3, 2), mode), np.full((3, 2, 3), 0.25), atol=1e-6)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_is_normal(gray):
    """Mean 0, standard deviation sigma / 255, normal by the Kolmogorov-Smirnov distance; gray: equal channels."""
    image = np.full((96, 96, 3), 0.5, np.float32)
    noise = ops.gaussian_noise(image, 12.0, gray, np.random.default_rng(2)) - image
    assert stats.kstest(noise[..., 0].ravel() * 255 / 12, "norm").pvalue > 1e-3
    if gray:
        np.testing.assert_array_equal(noise[..., 0], noise[..., 2])
    else:
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 4 / 96


def test_noise_is_clipped():
    """Values stay in [0, 1]."""
    rng = np.random.default_rng(3)
    ends = np.repeat(np.array([0, 1], np.float32), 300).reshape(20, 10, 3)
    for noisy in (ops.gaussian_noise(ends, 50, False, rng), ops.poisson_noise(ends, 3.0, False, rng)):
        assert noisy.min() == 0 and noisy.max() == 1


def _levels(count: int) -> np.ndarray:
    """An image with `count` different values between 0.25 and 0.75, each in as many pixels as the others."""
    values = np.linspace(0.25, 0.75, count)
    return np.round(values * 255).repeat(3 * 4000).reshape(count * 40, 100, 3).astype(np.float32) / 255


def test_poisson_noise_is_poisson():
    """On a pixel of level v the counts noise * peak / scale + v peak / 255 are Poisson(v peak / 255): chi-square."""
    image, scale, peak = _levels(5), 0.05, 8  # too weak to be clipped
    noise = ops.poisson_noise(image, scale, False, np.random.default_rng(4)) - image
    for level in np.unique(image):
        lam = level * peak
        here = image == level
        counts = np.round(noise[here] * peak / scale + lam).astype(int)
        np.testing.assert_allclose(noise[here], (counts - lam) * scale / peak, atol=1e-5)
        bins = np.arange(30)
        seen = np.bincount(counts, minlength=30)[:30]
        expected = stats.poisson(lam).pmf(bins) * here.sum()
        enough = expected > 5
        assert enough.sum() >= 4
        distance = np.sum((seen - expected)[enough] ** 2 / expected[enough])
        assert distance < stats.chi2(enough.sum()).ppf(0.9999)


@pytest.mark.parametrize(("count", "peak"), [(1, 1), (2, 2), (3, 4), (100, 128), (128, 128), (129, 256), (256, 256)])
def test_poisson_peak_is_the_next_power_of_two(count, peak):
    """2^ceil(log2(different values))."""
    assert ops.poisson_peak(np.arange(count, dtype=np.uint8)) == peak


def test_poisson_noise_of_luma_is_gray():
    """Equal in all channels, and its variance is that of the luma's photons."""
    image = np.tile(np.array([0.8, 0.4, 0.1], np.float32), (128, 128, 1))
    noise = ops.poisson_noise(image, 0.02, True, np.random.default_rng(5)) - image
    np.testing.assert_allclose(noise[..., 0], noise[..., 1], atol=1e-6)
    luma = np.round((0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.1) * 255) / 255  # one level: peak 1
    assert noise[..., 0].var() == pytest.approx(0.02**2 * luma, rel=0.06)


@pytest.mark.parametrize("quality", [30, 60, 95, 100])
@pytest.mark.parametrize("side", [1, 8, 33])
def test_jpeg_is_pils_libjpeg(image, quality, side):
    """The same pixels as PIL's own libjpeg at 4:2:0, for odd sizes and quality 100 too."""
    levels = np.round(image[:side, :side] * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.array(Image.open(buffer)) / 255
    assert np.abs(ops.jpeg(image[:side, :side], quality) - expected).max() <= 1.01 / 255


def test_jpeg_rounds_and_clips():
    """Overshoot is clipped before it is coded; a flat gray survives quality 100."""
    np.testing.assert_allclose(ops.jpeg(np.full((16, 16, 3), 1.7, np.float32), 100), 1, atol=1e-6)
    np.testing.assert_allclose(ops.jpeg(np.full((16, 16, 3), 100 / 255, np.float32), 100), 100 / 255, atol=1e-6)
