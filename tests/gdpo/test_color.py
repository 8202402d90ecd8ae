"""The colour fixes against definitions written out with other tools."""

import pytest
import torch
from torch.nn import functional

from gdpo.color import adain_color_fix, color_fix, wavelet_color_fix


def _pair(height: int = 23, width: int = 41) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    reference = 0.3 + 0.4 * torch.rand(
        2, 3, height, width, generator=generator, dtype=torch.float64
    )
    return image, reference


def _blur(x: torch.Tensor, radius: int) -> torch.Tensor:
    """The filter of the release: one 3x3 kernel per channel, dilated, replicated border."""
    kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype).expand(3, 1, 3, 3) / 16
    padded = functional.pad(x, (radius,) * 4, mode="replicate")
    return functional.conv2d(padded, kernel, groups=3, dilation=radius)


def _decompose(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.zeros_like(x)
    for level in range(5):
        low = _blur(x, 2**level)
        high += x - low
        x = low
    return high, x


def test_adain_takes_over_mean_and_deviation_of_each_channel() -> None:
    image, reference = _pair()
    fixed = adain_color_fix(image, reference)
    for b in range(2):
        for c in range(3):
            x, r = image[b, c], reference[b, c]
            expected = (x - x.mean()) / (x.var() + 1e-5) ** 0.5 * (r.var() + 1e-5) ** 0.5 + r.mean()
            torch.testing.assert_close(fixed[b, c], expected)
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)))


def test_wavelet_is_the_high_band_of_the_image_on_the_low_band_of_the_reference() -> None:
    image, reference = _pair()
    torch.testing.assert_close(
        wavelet_color_fix(image, reference), _decompose(image)[0] + _decompose(reference)[1]
    )


@pytest.mark.parametrize("kind", ["none", "adain", "wavelet"])
def test_an_image_that_already_has_the_right_colours_stays(kind: str) -> None:
    image, _ = _pair()
    torch.testing.assert_close(color_fix(kind, image, image), image)


def test_wavelet_removes_a_constant_colour_shift_but_keeps_texture() -> None:
    _, reference = _pair()
    shifted = reference + torch.tensor([0.1, -0.1, 0.05], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(wavelet_color_fix(shifted, reference), reference)


def test_only_color_fix_clamps() -> None:
    image, reference = torch.rand(1, 3, 16, 16).round(), torch.ones(1, 3, 16, 16)
    assert wavelet_color_fix(image, reference).max() > 1
    fixed = color_fix("wavelet", image, reference)
    assert fixed.max() <= 1 and fixed.min() >= 0


@pytest.mark.parametrize("kind", ["adain", "wavelet"])
def test_one_pixel_is_enough(kind: str) -> None:
    image, reference = torch.full((1, 3, 1, 1), 0.2), torch.full((1, 3, 1, 1), 0.7)
    torch.testing.assert_close(color_fix(kind, image, reference), reference)


def test_bad_arguments_are_named() -> None:
    image, reference = _pair()
    with pytest.raises(ValueError, match=r"^kind .*wavelet"):
        color_fix("wavelets", image, reference)
    with pytest.raises(ValueError, match=r"^image and reference"):
        adain_color_fix(image, reference[:, :, 1:])
    with pytest.raises(ValueError, match=r"^reference "):
        wavelet_color_fix(image, reference + 1)
    with pytest.raises(ValueError, match=r"^image "):
        wavelet_color_fix(image * float("nan"), reference)
