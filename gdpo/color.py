"""Colour correction of a super-resolved image against its enlarged low-resolution input (released
code).

    adain:    per channel, (x - mean_x) / std_x * std_r + mean_r       unbiased variance + 1e-5
              under the root
    wavelet:  high bands of x + lowest band of r                       5 levels of a (1 2 1) filter,
              dilation 1 .. 16

One-step models shift colours; the low-resolution input has the right ones. AdaIN matches two
numbers per channel, the wavelet form replaces everything coarser than about 32 pixels. As in the
release neither clamps; `color_fix` does.

Shapes: B batch, C channels, H W pixels; images are RGB in [0, 1].
"""

import torch
from torch.nn import functional

from gdpo.checks import check_image, check_same_shape

KINDS = ("none", "adain", "wavelet")
LEVELS = 5
EPSILON = 1e-5


def color_fix(kind: str, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Apply the correction `kind` ("none", "adain" or "wavelet") to image BCHW and clamp the result
    to [0, 1].

    reference: the enlarged low-resolution input, of the image's shape. For images that were just
    computed: values are not checked. Raises ValueError for an unknown kind or differing shapes.
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
    """Give each channel of image BCHW the mean and standard deviation of the reference's; not
    clamped.

    Raises ValueError naming the argument for a wrong shape or type, NaN, or values outside [0, 1].
    """
    _check(image, reference)
    return _adain(image, reference)


def _adain(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if image.shape[2] * image.shape[3] == 1:
        return reference.clone()  # one pixel has a mean but no deviation
    variance, mean = torch.var_mean(image, (2, 3), keepdim=True)
    wanted_variance, wanted_mean = torch.var_mean(reference, (2, 3), keepdim=True)
    return (image - mean) / (variance + EPSILON).sqrt() * (
        wanted_variance + EPSILON
    ).sqrt() + wanted_mean


def wavelet_color_fix(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The fine structure of image BCHW on the lowest band of the reference; not clamped. Errors as
    above.
    """
    _check(image, reference)
    return _wavelet(image, reference)


def _wavelet(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return image - lowest_band(image) + lowest_band(reference)


def lowest_band(image: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """What `levels` dilated (1 2 1) x (1 2 1) / 16 filters leave of image BCHW, the border pixel
    repeated.
    """
    for level in range(levels):
        reach = 2**level
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
