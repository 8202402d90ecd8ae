"""Types of configuration values: ranges and formats that several keys share.

The validator of each type raises an error that describes the value; the reader of the parameters
adds the key.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Noises = Annotated[int, Field(ge=2)]
# Part of a path, hence the restricted characters.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
ColorFix = Literal["none", "adain", "wavelet"]
Precision = Literal["fp32", "bf16"]


EVALUATION = "evaluation"  # the part of the held-out photographs


def _ordered(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the lower end {pair[0]} lies above the upper end {pair[1]}")
    return pair


def _sums_to_one(shares: list[float]) -> list[float]:
    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"must be probabilities that add up to 1, got {shares}")
    return shares


def _positive(pair: list[float]) -> list[float]:
    if pair[0] <= 0:
        raise ValueError(f"must lie above 0, got {pair}")
    return pair


def _around_one(pair: list[float]) -> list[float]:
    if not 0 < pair[0] <= 1 <= pair[1]:
        raise ValueError(f"must go from a scale in (0, 1] to a scale of 1 or more, got {pair}")
    return pair


def _jpeg_quality(pair: list[float]) -> list[float]:
    if pair[0] < 1 or pair[1] > 100:
        raise ValueError(f"must lie in 1..100, got {pair}")
    return pair


def _timesteps(pair: list[int]) -> list[int]:
    if not 0 <= pair[0] < pair[1] <= 1000:
        raise ValueError(f"must be a lower and a greater upper end in 0..1000, got {pair}")
    return pair


def _odd(sizes: list[int]) -> list[int]:
    if any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"must be odd and positive, got {sizes}")
    return sizes


def _base_source(text: str) -> str:
    pinned = r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}"
    if "://" in text and not re.fullmatch(rf"s3://[^/\s]+(/\S*)?|{pinned}", text):
        raise ValueError(
            "must be a folder, s3://bucket/prefix or hf://owner/name@ and a whole commit, got "
            f"{text!r}"
        )
    return text


def _weight_source(text: str) -> str:
    known = r"s3://[^/\s]+(/\S*)?|hf://[\w.-]+/[\w.-]+@[\w.-]+|https://\S+"
    if "://" in text and not re.fullmatch(known, text):
        raise ValueError(
            "must be a folder, s3://bucket/prefix, hf://owner/name@revision or https://host/path, "
            f"got {text!r}"
        )
    return text


def _parts(names: list[str]) -> list[str]:
    odd = [name for name in names if not re.fullmatch(r"[a-z0-9_-]+", name) or name == EVALUATION]
    if odd or len(set(names)) < len(names):
        raise ValueError(
            f"must be different names of a-z, 0-9, _ and -, and not `evaluation`, got {names}"
        )
    return names


BaseSource = Annotated[str, Field(min_length=1), AfterValidator(_base_source)]
WeightSource = Annotated[str, Field(min_length=1), AfterValidator(_weight_source)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
PositiveRange = Annotated[Range, AfterValidator(_positive)]
AroundOne = Annotated[Range, AfterValidator(_around_one)]
Quality = Annotated[Range, AfterValidator(_jpeg_quality)]
Timesteps = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_timesteps)]
OddSizes = Annotated[list[int], Field(min_length=1), AfterValidator(_odd)]
Probabilities3 = Annotated[
    list[float], Field(min_length=3, max_length=3), AfterValidator(_sums_to_one)
]
Probabilities6 = Annotated[
    list[float], Field(min_length=6, max_length=6), AfterValidator(_sums_to_one)
]
Parts = Annotated[list[str], Field(min_length=1), AfterValidator(_parts)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
