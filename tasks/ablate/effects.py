"""Statistics of the ablations: differences with intervals, signs, and how much they are too narrow.

Two models' difference has two sources of chance: which images were taken and how a training went.
The standard error is sqrt(se_images^2 + se_repeats^2), with the degrees of freedom of Satterthwaite
(1946) for a sum of two variances.

Legend: I images; R training repeats (1 for NAOSD); N noises.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import special

from gdpo.evaluate.statistics import CONFIDENCE, Array

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "not distinguishable"
Record = dict[str, Any]


def effect(a_IRN: Array, b_IRN: Array) -> Record:
    """a - b, paired by image and by repeat (R = 1: the same for all repeats); noise counts may
    differ.

    Keys: mean; standard_error, low, high, p (None with a single image or repeat); distinguishable
    (the interval excludes 0); repeats (the mean of each).
    """
    # Noises first: they repeat a measurement, and are no sample of images or trainings.
    difference_IR = a_IRN.mean(axis=2) - b_IRN.mean(axis=2)
    parts = [difference_IR.mean(axis=1), difference_IR.mean(axis=0)]  # by image, by repeat
    record: Record = {
        "mean": float(difference_IR.mean()),
        "standard_error": None,
        "low": None,
        "high": None,
        "p": None,
    }
    record |= {"distinguishable": False, "repeats": parts[1].tolist()}
    if min(difference_IR.shape) < 2:
        return record
    squared = [float(part.var(ddof=1)) / len(part) for part in parts]
    # The squared error of the mean by images and by trainings. Each includes the interaction of the
    # two, which is therefore counted twice: the interval is too wide rather than too narrow.
    total = sum(squared)
    # Satterthwaite: degrees of freedom = total^2 / sum of s^2 / (n - 1).
    shares = sum(s**2 / (len(part) - 1) for s, part in zip(squared, parts, strict=True))
    return {
        **record,
        **_student(record["mean"], math.sqrt(total), total**2 / shares if total > 0 else math.inf),
    }


def over_repeats(a_R: Array, b_R: Array) -> Record:
    """a - b with Student's interval, paired by repeat only, for quantities with one number per
    repeat. Keys as in `effect`.
    """
    repeats = a_R - b_R
    record: Record = {
        "mean": float(repeats.mean()),
        "standard_error": None,
        "low": None,
        "high": None,
        "p": None,
    }
    record |= {"distinguishable": False, "repeats": repeats.tolist()}
    if len(repeats) < 2:
        return record
    return {
        **record,
        **_student(
            record["mean"], float(repeats.std(ddof=1)) / math.sqrt(len(repeats)), len(repeats) - 1
        ),
    }


def _student(mean: float, error: float, freedom: float) -> Record:
    """Interval and p of a mean with this standard error; an error of 0 gives an interval of width
    0.
    """
    half, p = 0.0, 0.0 if mean else 1.0
    if error > 0:
        half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
        p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    low, high = mean - half, mean + half
    return {
        "low": low,
        "high": high,
        "standard_error": error,
        "p": p,
        "distinguishable": low > 0 or high < 0,
    }


def sign(ours: Record, better: bool, papers: float, papers_better: bool) -> str | None:
    """Whether our difference has the paper's sign; None if the paper's difference is 0.

    better: whether higher is better for our metric; papers_better: for the paper's column.
    """
    # The paper prints rounded values without errors. Equal ones have no sign to compare with.
    if papers == 0:
        return None
    if not ours["distinguishable"]:
        return UNCLEAR
    return (
        AGREES if ((ours["mean"] > 0) == better) == ((papers > 0) == papers_better) else DISAGREES
    )


def photographs_widen(pairs: Iterable[tuple[Array, Array]], sources: Sequence[str]) -> Array:
    """Quartiles (3) of the ratio by which standard errors grow with photographs as the sampling
    unit, over the differences a - b.

    pairs: a and b, (I, R, N). sources: the photograph of each image. The error is cluster-robust
    over the mean of images. The result is empty with a single photograph.
    """
    # The indices of each photograph's images.
    groups = [np.flatnonzero(np.array(sources) == source) for source in dict.fromkeys(sources)]
    count, ratios = len(groups), []
    for a_IRN, b_IRN in pairs if count > 1 else ():
        difference_I = (a_IRN.mean(axis=2) - b_IRN.mean(axis=2)).mean(axis=1)
        centred_I = difference_I - difference_I.mean()
        # Cluster-robust: deviations are added up inside a photograph before they are squared, so
        # tiles that deviate together count as one. count / (count - 1) corrects for few clusters.
        clustered = math.sqrt(
            sum(centred_I[group].sum() ** 2 for group in groups) * count / (count - 1)
        ) / len(centred_I)
        plain = float(difference_I.std(ddof=1)) / math.sqrt(len(difference_I))
        ratios += [clustered / plain] if plain > 0 else []
    quartiles: Array = np.quantile(ratios, [0.25, 0.5, 0.75]) if ratios else np.zeros(0)
    return quartiles
