"""The degradation of a pair in five words, from its drawn parameters.

    drawn parameters (gdpo/data/degrade.py) -> blur, resize, noise, compression, resize
    "medium blur, downsample, heavy noise, light compression, upsample"

    blur         standard deviation in HR pixels: hypot(first order, second / min(1, first scale));
                 two axes: their root mean square; sinc: 1.4 / cutoff. The last sinc is left out: it
                 rings at LR size, it does not blur
    noise        hypot of both orders in 8-bit levels; Poisson noise of scale s counts as 10 s, its
                 standard deviation at mid-grey
    compression  100 - quality of the last JPEG
    resize       of the first and of the second order: downsample, unchange, upsample

The five terms and the levels are those of the paper's Fig. 2. It gives no edges; ours are the
terciles of 6000 draws, so that each level is about as frequent as the others. Source of the idea of
binned parameters: PromptSR (arXiv 2311.14282).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LEVELS = ("light", "medium", "heavy")
RESIZES = ("downsample", "unchange", "upsample")
NAMES = ("blur", "resize", "noise", "compression", "resize")  # what each term is about
SINC = 1.4  # half-width of a sinc of cutoff 1, in pixels
POISSON = 10.0  # levels of noise per unit of the Poisson scale, at mid-grey


@dataclass(frozen=True)
class Bins:
    """Where light ends and where heavy begins; units as in the module docstring."""

    blur: tuple[float, float]
    noise: tuple[float, float]
    compression: tuple[float, float]


# released: the ranges of the GDPO release, the defaults of gdpo/config.py; real_esrgan: the ranges
# of Real-ESRGAN, on which PURE was trained.
BINS = {
    "released": Bins(blur=(1.45, 2.25), noise=(9.6, 13.6), compression=(14, 27)),
    "real_esrgan": Bins(blur=(1.7, 2.5), noise=(18.6, 25.7), compression=(27, 48)),
}
Range = Literal["released", "real_esrgan"]


def degradation_words(drawn: Mapping[str, Any], ranges: Range = "released") -> list[str]:
    """The five terms of one degradation, in the order of `NAMES`.

    drawn: the result of `gdpo.data.degrade.draw`. Errors: ValueError if it is not a complete draw.
    """
    if not {"first", "second", "final"} <= drawn.keys():
        raise ValueError(
            f"degradation must be a complete draw of gdpo.data.degrade, got the keys "
            f"{', '.join(sorted(drawn)) or 'none'}"
        )
    bins, amount = BINS[ranges], amounts(drawn)
    second = drawn["second"]
    return [
        f"{_level(amount['blur'], bins.blur)} blur",
        _resize(drawn["first"]["resize"]["scale"]),
        f"{_level(amount['noise'], bins.noise)} noise",
        f"{_level(amount['compression'], bins.compression)} compression",
        _resize(second["resize"]["scale"] if second else 1.0),
    ]


def amounts(drawn: Mapping[str, Any]) -> dict[str, float]:
    """Blur, noise and compression of a complete draw as numbers (units: module docstring)."""
    first, second = drawn["first"], drawn["second"]
    later = _sigma(second["blur"]) if second else 0.0
    noises = [_noise(order["noise"]) for order in (first, second) if order]
    return {
        # Variances of successive blurs add. The second blur works on pixels that the first resize
        # may have enlarged; an enlargement does not sharpen, so the factor stops at 1.
        "blur": math.hypot(_sigma(first["blur"]), later / min(1.0, first["resize"]["scale"])),
        "noise": math.hypot(*noises),
        "compression": 100.0 - drawn["final"]["jpeg"],
    }


def _sigma(kernel: Mapping[str, Any] | None) -> float:
    if kernel is None:
        return 0.0
    if kernel["kind"] == "sinc":
        return SINC / float(kernel["cutoff"])
    x, y = kernel["sigma"]
    return math.sqrt((x**2 + y**2) / 2)


def _noise(noise: Mapping[str, Any]) -> float:
    return float(noise["strength"]) * (POISSON if noise["kind"] == "poisson" else 1.0)


def _level(amount: float, edges: tuple[float, float]) -> str:
    return LEVELS[sum(amount >= edge for edge in edges)]


def _resize(scale: float) -> str:
    return RESIZES[(scale >= 1) + (scale > 1)]
