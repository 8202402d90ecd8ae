"""Colour correction of a super-resolved image x with its enlarged low-resolution input r.

    adain     per channel: (x - mean_x) / std_x * std_r + mean_r
              std = sqrt(unbiased variance + 1e-5)
    wavelet   high bands of x + lowest band of r
              5 levels of a (1 2 1) filter, dilation 1 .. 16

One-step models shift colours; the low-resolution input has the right ones. AdaIN matches the mean
and the standard deviation of each channel. The wavelet correction replaces everything coarser than
about 32 pixels. As in the release, neither clamps; `color_fix` does. Source: released code.

Shapes: B batch, C channels, H W pixels; images are RGB in [0, 1].
"""

import torch
from torch.nn import functional

from gdpo.checks import check_image, check_same_shape

KINDS = ("none", "adain", "wavelet")
LEVELS = 5
REACH = 2**LEVELS - 1  # rows and columns around a pixel that the wavelet correction looks at
EPSILON = 1e-5


def color_fix(kind: str, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Apply the correction `kind` ("none", "adain" or "wavelet") to image BCHW; clamped to [0, 1].

    reference: the enlarged low-resolution input, of the image's shape. Values are not checked: this
    is for images that were just computed. Raises ValueError for an unknown kind or differing
    shapes.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_same_shape("image", image, "reference", reference)
    if kind == "adain":
        image = _adain(image, reference)
    elif kind == "wavelet":
        image = _wavelet(image, reference)
    return image.clamp(0, 1)


def adain_color_fix(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give each channel of image BCHW the mean and standard deviation of the reference's channel.

    The result is not clamped. Raises ValueError naming the argument for a wrong shape or type, NaN,
    or values outside [0, 1].
    """
    _check(image, reference)
    return _adain(image, reference)


def _adain(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if image.shape[2] * image.shape[3] == 1:
        return reference.clone()  # one pixel has a mean but no deviation
    return apply_adain(image, mean_and_std(image), mean_and_std(reference))


def mean_and_std(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of each channel of image BCHW, as AdaIN takes them, (B, C, 1, 1)."""
    variance, mean = torch.var_mean(image, (2, 3), keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def apply_adain(
    image: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    wanted: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """image BCHW, or rows of it, from its own `mean_and_std` to the wanted one; not clamped."""
    return (image - own[0]) / own[1] * wanted[1] + wanted[0]


def wavelet_color_fix(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Replace the lowest band of image BCHW by that of the reference.

    The result is not clamped. Errors as in `adain_color_fix`.
    """
    _check(image, reference)
    return _wavelet(image, reference)


def _wavelet(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return image - lowest_band(image) + lowest_band(reference)


def lowest_band(image: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """Low-pass image BCHW by `levels` filters (1 2 1) x (1 2 1) / 16 with dilation 1, 2, 4, ...

    Borders repeat the edge pixel.
    """
    for level in range(levels):
        reach = 2**level
        # Once for both axes: a pad per axis would repeat corners that were filtered already.
        padded = functional.pad(image, (reach, reach, reach, reach), mode="replicate")
        for axis in (2, 3):
            size = image.shape[axis]
            before, middle, after = (
                padded.narrow(axis, start * reach, size) for start in (0, 1, 2)
            )
            padded = (before + 2 * middle + after) / 4
        image = padded
    return image


def _check(image: torch.Tensor, reference: torch.Tensor) -> None:
    check_image("image", image)
    check_image("reference", reference)
    check_same_shape("image", image, "reference", reference)
