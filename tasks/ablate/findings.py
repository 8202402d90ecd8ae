"""The results of the ablations: paired differences with intervals, and whether their signs agree
with the paper's.

    difference of two rows   per image and training repeat, the mean over noises of a minus that of
                             b
    standard error           sqrt(se_images^2 + se_repeats^2); Student's interval with
                             Satterthwaite's degrees of freedom
    beyond the controls      the same of (a - control of a) - (b - control of b), which removes the
                             effect of training alone
    sign                     agrees or disagrees with the paper's difference if the 95 % interval
                             excludes 0, otherwise not distinguishable. Signs are compared as better
                             or worse, because a stand-in metric may have the opposite direction

Images and training seeds are both samples: three repeats that disagree widen the interval as few
images do. The sum of variances counts the interaction of the two twice, so the interval is too wide
rather than too narrow. The paper prints no errors, so its signs are taken as given. A difference to
NAOSD or GDPO may come from training alone, without preferences. So a sign holds beyond the controls
only if the difference beyond the controls also excludes 0, on the same side.

Legend: I images; R training repeats (1 for NAOSD); N noises.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD, rewards
from gdpo.evaluate.statistics import CONFIDENCE, Array, Scores, mean_over_images
from gdpo.metrics.score import higher_is_better
from tasks.ablate.rows import ABLATIONS, NAOSD, Ablation, is_stand_in, metric_of
from tasks.report import paper
from tasks.report.tables import interval_text, mean_text

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "not distinguishable"
REFERENCE = "naosd"
# The same comparison without the effect of training alone. NAOSD has no control and needs none.
BEYOND = {"to_naosd": "to_control", "to_gdpo": "beyond_controls_to_gdpo"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A trained row: {metric: (I, R, N)} of the row and, if it was trained with advantages, of its
    shuffled control.
    """

    scores: dict[str, Array]
    control: dict[str, Array] | None = None


def effect(a_IRN: Array, b_IRN: Array) -> Record:
    """a - b, paired by image and by repeat (R = 1: the same for all repeats); noise counts may
    differ.

    Keys: mean; standard_error, low, high, p (None with a single image or repeat); distinguishable
    (the interval excludes 0); repeats (the mean of each).
    """
    difference_IR = a_IRN.mean(axis=2) - b_IRN.mean(axis=2)
    parts = [difference_IR.mean(axis=1), difference_IR.mean(axis=0)]  # by image, by repeat
    found: Record = {
        "mean": float(difference_IR.mean()),
        "standard_error": None,
        "low": None,
        "high": None,
        "p": None,
    }
    found |= {"distinguishable": False, "repeats": parts[1].tolist()}
    if min(difference_IR.shape) < 2:
        return found
    squared = [float(part.var(ddof=1)) / len(part) for part in parts]
    total = sum(squared)
    # Satterthwaite: degrees of freedom = total^2 / sum of s^2 / (n - 1).
    shares = sum(s**2 / (len(part) - 1) for s, part in zip(squared, parts, strict=True))
    return {
        **found,
        **_student(found["mean"], math.sqrt(total), total**2 / shares if total > 0 else math.inf),
    }


def over_repeats(a_R: Array, b_R: Array) -> Record:
    """a - b with Student's interval, paired by repeat only, for quantities with one number per
    repeat. Keys as in `effect`.
    """
    repeats = a_R - b_R
    found: Record = {
        "mean": float(repeats.mean()),
        "standard_error": None,
        "low": None,
        "high": None,
        "p": None,
    }
    found |= {"distinguishable": False, "repeats": repeats.tolist()}
    if len(repeats) < 2:
        return found
    return {
        **found,
        **_student(
            found["mean"], float(repeats.std(ddof=1)) / math.sqrt(len(repeats)), len(repeats) - 1
        ),
    }


def _student(mean: float, error: float, freedom: float) -> Record:
    """Interval and p of a mean with this standard error; an error of 0 gives an interval of width
    0.
    """
    half, p = 0.0, 0.0 if mean else 1.0
    if error > 0:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
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
    if papers == 0:
        return None
    if not ours["distinguishable"]:
        return UNCLEAR
    return (
        AGREES if ((ours["mean"] > 0) == better) == ((papers > 0) == papers_better) else DISAGREES
    )


def add_reward(
    config: Config,
    reference: dict[str, Array],
    detail_share_I: Array,
    runs: Iterable[dict[str, Array]],
) -> None:
    """Add the configured reward, in NAOSD's within-image standard deviations, to every run's scores
    in place.

    reference: NAOSD's scores, (I, 1, N). detail_share_I: of each image, in [0, 1]. runs: scores (I,
    R, N). All rows are measured with this same reward, whatever reward they were trained with.
    """
    plain: Scores = {REFERENCE: {metric: values[:, 0] for metric, values in reference.items()}}
    for scores in (reference, *runs):
        shape = next(iter(scores.values())).shape
        flat = {metric: values.reshape(len(values), -1) for metric, values in scores.items()}
        weighted = rewards({**plain, "run": flat}, detail_share_I, config.reward, REFERENCE)
        scores[REWARD] = weighted["run"].reshape(shape)


def columns(table: Ablation, config: Config) -> list[tuple[str, str | None]]:
    """(column of the paper, our metric or None) of a table, followed by the reward."""
    return [*((column, metric_of(column, config)) for column in table.columns), (REWARD, REWARD)]


def records(
    key: str, config: Config, reference: Mapping[str, Array], results: Mapping[str, Result]
) -> list[Record]:
    """One record per row and column of a table: our values, differences with their signs, and the
    paper's figures.

    reference: NAOSD's scores, (I, 1, N). results: by row name, in the order of the rows. Both
    include the reward.
    """
    table = ABLATIONS[key]
    found = []
    for row in (NAOSD, *results):
        for column, metric in columns(table, config):
            printed = table.printed.get(row, {}).get(column)
            record: Record = {"row": row, "column": column, "metric": metric, "paper": printed}
            if metric is not None:
                record |= _ours(table, row, column, metric, reference, results)
            for other, name in ((NAOSD, "to_naosd"), (table.gdpo, "to_gdpo")):
                against = table.printed.get(other, {}).get(column)
                known = printed is not None and against is not None and row not in (NAOSD, other)
                record[f"paper_{name}"] = round(printed - against, 6) if known else None  # type: ignore[operator]
                record[f"sign_{name}"] = _sign(record, column, metric, name)
            found.append(record)
    return found


def _ours(
    table: Ablation,
    row: str,
    column: str,
    metric: str,
    reference: Mapping[str, Array],
    results: Mapping[str, Result],
) -> Record:
    """The measured part of a record; differences are dicts of plain values."""
    result, gdpo = results.get(row), results.get(table.gdpo)
    mine = reference[metric] if result is None else result.scores[metric]
    mean = mean_over_images(mine.reshape(len(mine), -1))
    compared: Record = dict.fromkeys(("to_naosd", "to_control", "to_gdpo"))
    if result is not None:
        compared |= {"to_naosd": effect(mine, reference[metric])} | _against_gdpo(
            metric, result, gdpo
        )
        if result.control is not None:
            control = result.control[metric]
            compared |= {
                "to_control": effect(mine, control),
                "control_to_naosd": effect(control, reference[metric]),
            }
    stand_in = column != REWARD and is_stand_in(column, metric)
    return {
        "stand_in": stand_in,
        "ours": mean.mean,
        "standard_error": finite(mean.standard_error),
        **compared,
    }


def _against_gdpo(metric: str, row: Result, gdpo: Result | None) -> Record:
    """A row against GDPO, its control against GDPO's control, and the first difference minus the
    second.
    """
    if gdpo is None or row is gdpo:
        return {}
    found = {"to_gdpo": effect(row.scores[metric], gdpo.scores[metric])}
    if row.control is not None and gdpo.control is not None:
        found["control_to_gdpo"] = effect(row.control[metric], gdpo.control[metric])
        gained, by_gdpo = (
            _gain(metric, row.scores, row.control),
            _gain(metric, gdpo.scores, gdpo.control),
        )
        found[BEYOND["to_gdpo"]] = effect(gained, by_gdpo)
    return found


def _gain(metric: str, scores: dict[str, Array], control: dict[str, Array]) -> Array:
    """(I, R, 1): a row minus its control, as means over noises."""
    difference: Array = scores[metric].mean(axis=2, keepdims=True) - control[metric].mean(
        axis=2, keepdims=True
    )
    return difference


def finite(value: float) -> float | None:
    """The value, or None if it is not finite and JSON cannot represent it."""
    return value if math.isfinite(value) else None


def _sign(record: Record, column: str, metric: str | None, name: str) -> str | None:
    """`sign` of the difference `name`; None if ours or the paper's is missing."""
    if metric is None or record.get(name) is None or record[f"paper_{name}"] is None:
        return None
    papers_better = column not in paper.LOWER_IS_BETTER
    return sign(record[name], higher_is_better(metric), record[f"paper_{name}"], papers_better)


def beyond_controls(record: Record, name: str) -> bool:
    """Whether the difference `name` is distinguishable, also beyond the controls, with the same
    sign.
    """
    raw, net = record.get(name), record.get(BEYOND[name])
    if not raw or not net or not raw["distinguishable"] or not net["distinguishable"]:
        return False
    return bool((raw["mean"] > 0) == (net["mean"] > 0))


def signs(found: Sequence[Record]) -> Iterator[tuple[Record, str, str, bool]]:
    """(record, "NAOSD" or "GDPO", sign, whether it holds beyond the controls) for every compared
    sign.
    """
    for record in found:
        for name, other in (("to_naosd", NAOSD), ("to_gdpo", "GDPO")):
            if record[f"sign_{name}"]:
                yield record, other, record[f"sign_{name}"], beyond_controls(record, name)


def photographs_widen(pairs: Iterable[tuple[Array, Array]], sources: Sequence[str]) -> Array:
    """Quartiles (3) of the ratio by which standard errors grow with photographs as the sampling
    unit, over the differences a - b.

    pairs: a and b, (I, R, N). sources: the photograph of each image. The error is cluster-robust
    over the mean of images. The result is empty with a single photograph.
    """
    # The indices of each photograph's images.
    groups = [np.flatnonzero(np.array(sources) == source) for source in dict.fromkeys(sources)]
    count, found = len(groups), []
    for a_IRN, b_IRN in pairs if count > 1 else ():
        difference_I = (a_IRN.mean(axis=2) - b_IRN.mean(axis=2)).mean(axis=1)
        centred_I = difference_I - difference_I.mean()
        clustered = math.sqrt(
            sum(centred_I[group].sum() ** 2 for group in groups) * count / (count - 1)
        ) / len(centred_I)
        plain = float(difference_I.std(ddof=1)) / math.sqrt(len(difference_I))
        found += [clustered / plain] if plain > 0 else []
    quartiles: Array = np.quantile(found, [0.25, 0.5, 0.75]) if found else np.zeros(0)
    return quartiles


def what_matters(found: Sequence[Record]) -> str:
    """One sentence on the options: their differences to GDPO in the reward, beyond the controls."""
    name = BEYOND["to_gdpo"]
    changes = {r["row"]: r[name] for r in found if r["metric"] == REWARD and r.get(name)}

    def listed(distinguishable: bool) -> str:
        some = ((row, e) for row, e in changes.items() if e["distinguishable"] == distinguishable)
        return ", ".join(f"{row} ({mean_text(e)}, {interval_text(e)})" for row, e in some)

    if not listed(True):
        return (
            "Beyond the controls none is distinguishable from GDPO in the reward at this "
            f"scale: {listed(False)}."
        )
    rest = f"; not distinguishable are {listed(False)}" if listed(False) else ""
    return f"Against GDPO and beyond the controls the reward changes with {listed(True)}{rest}."
