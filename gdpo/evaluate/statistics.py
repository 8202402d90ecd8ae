"""Statistics of an evaluation: photographs are the samples; their images (tiles) and noises are
repeated measurements.

    photograph   its mean over its images, for each noise
    mean         average over photographs of the mean over noises; standard error over photographs
    spread       sqrt(mean over images of the variance over noises): the effect of another noise
    difference   of two models: per photograph, the mean over noises of a minus that of b;
                 t interval and two-sided p over photographs

Scores are (I, N) arrays: I images, N noises of one model and one metric; (P, N) after averaging the
images of each of P photographs. Averaging first keeps the tiles and noises of one photograph from
being counted as that many photographs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Scores = dict[str, dict[str, Array]]  # model -> metric -> (I, N)

LEVEL = 0.01  # a difference is significant if p is below this level
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over photographs and its standard error (NaN with fewer than two)."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b over photographs: mean, standard error, t interval, two-sided p.

    low, high: ends of the interval. All but the mean are NaN with fewer than two photographs.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    p: float


def _checked(scores_IN: Array) -> Array:
    if scores_IN.ndim != 2 or not scores_IN.size:
        raise ValueError(
            f"scores must be a filled (images, noises) array, got shape {scores_IN.shape}"
        )
    if not np.isfinite(scores_IN).all():
        raise ValueError("scores must be finite, and one is NaN or infinite")
    return scores_IN


def by_photograph(scores_IN: Array, photographs: Sequence[str]) -> Array:
    """(P, N): the mean over the images of each photograph, in the order of first appearance.

    photographs: of each image, its photograph. ValueError if their number is not I.
    """
    if len(_checked(scores_IN)) != len(photographs):
        raise ValueError(
            f"photographs must be one per image: {len(photographs)} for {len(scores_IN)} images"
        )
    names = list(dict.fromkeys(photographs))
    of_image = np.array(photographs)
    return np.stack([scores_IN[of_image == name].mean(axis=0) for name in names])


def mean_over_images(scores_IN: Array) -> Mean:
    """Mean and standard error over the I images (or photographs) of the mean over the N noises."""
    # The sample is the images. N noises of one image say nothing about another image.
    image_means = _checked(scores_IN).mean(axis=1)
    count = len(image_means)
    error = float(image_means.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Mean(float(image_means.mean()), error)


def within_image_std(scores_IN: Array) -> float:
    """Standard deviation over noises, pooled over images: sqrt(mean_i var_i).

    Unbiased variances; 0 with one noise.
    """
    _checked(scores_IN)
    if scores_IN.shape[1] < 2:
        return 0.0
    return float(math.sqrt(scores_IN.var(axis=1, ddof=1).mean()))


def paired_difference(a_IN: Array, b_IM: Array) -> Difference:
    """a - b, paired by image; noise counts may differ (a baseline without noise has one).

    The interval and p use Student's t distribution with I - 1 degrees of freedom. If the difference
    is the same for all images, p is 0, or 1 if that difference is 0. ValueError for different
    numbers of images, an empty array, NaN or infinite scores.
    """
    if len(_checked(a_IN)) != len(_checked(b_IM)):
        raise ValueError(f"paired scores need the same images, got {len(a_IN)} and {len(b_IM)}")
    # Paired: photographs differ far more from each other than two models do on one of them.
    differences = a_IN.mean(axis=1) - b_IM.mean(axis=1)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, math.nan)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    # Equal differences have no t statistic (0 / 0). They occur for identical models and in tests.
    if error == 0:
        return Difference(mean, 0.0, mean, mean, 0.0 if mean else 1.0)
    # Student's t and not 1.96: with 24 photographs the interval is 6 % wider, with three twice as
    # wide.
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(special.stdtr(count - 1, -abs(mean) / error))
    return Difference(mean, error, mean - half, mean + half, p)


def verdict(difference: Difference, higher_is_better: bool) -> str:
    """`better` or `worse` (model a against b) when p < LEVEL, otherwise `not significant`."""
    if not difference.p < LEVEL:  # also true for NaN
        return "not significant"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def finite(value: float | None) -> float | None:
    """The value, or None if it is not finite, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def _difference_row(
    scores: Scores, a: str, b: str, metric: str, higher: bool, unit: float
) -> dict[str, Any]:
    difference = paired_difference(scores[a][metric], scores[b][metric])
    numbers = {key: finite(value) for key, value in vars(difference).items()}
    effect = difference.mean / unit if unit else None
    return {
        "pair": f"{a}-{b}",
        "a": a,
        "b": b,
        "metric": metric,
        **numbers,
        "effect": effect,
        "verdict": verdict(difference, higher),
    }


def summarise(
    scores: Scores,
    higher_is_better: Mapping[str, bool],
    pairs: Sequence[tuple[str, str]],
    *,
    unit_of: str,
    photographs: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Means, spreads and paired differences of every metric, as plain JSON values (NaN -> null).

    photographs: of each image, its photograph; None: every image is one. The `effect` of a
    difference is its mean divided by the within-image standard deviation of model `unit_of` (null
    if that is 0).
    """
    of_photographs = {
        model: {
            metric: values if photographs is None else by_photograph(values, photographs)
            for metric, values in metrics.items()
        }
        for model, metrics in scores.items()
    }
    # Per image and not per photograph: the spread is that of one output, whatever the number of
    # tiles.
    units = {metric: within_image_std(values) for metric, values in scores[unit_of].items()}
    models = {
        model: {
            metric: {
                **{
                    key: finite(value)
                    for key, value in vars(mean_over_images(of_photographs[model][metric])).items()
                },
                "within_image_std": within_image_std(values),
            }
            for metric, values in metrics.items()
        }
        for model, metrics in scores.items()
    }
    differences = [
        _difference_row(of_photographs, a, b, metric, higher_is_better[metric], units[metric])
        for a, b in pairs
        for metric in scores[unit_of]
    ]
    return {"models": models, "differences": differences}
