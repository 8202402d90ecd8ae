"""What the ablations show: paired differences with intervals, and whether their signs are the paper's.

    difference of two rows   per image and training repeat the mean over noises of a minus that of b
    its standard error       sqrt(se_images^2 + se_repeats^2), Student's interval with Satterthwaite's degrees of freedom
    its sign                 agrees / disagrees with the paper's difference if the 95 % interval leaves out 0,
                             otherwise not distinguishable; compared as better or worse, a stand-in may point the other way

Images and training seeds are both samples: three repeats that disagree widen the interval as few images do. The sum counts
the interaction of the two twice, so the interval errs to the wide side. The paper prints no errors, so its own sign is taken
at its word. Legend: I images; R repeats of the training, 1 for NAOSD; N noises.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gdpo.config import Config
from gdpo.evaluate import paper
from gdpo.evaluate.ablation import ABLATIONS, NAOSD, Ablation, is_stand_in, metric_of
from gdpo.evaluate.benchmark import REWARD, rewards
from gdpo.evaluate.statistics import CONFIDENCE, Array, Scores, mean_over_images
from gdpo.evaluate.tables import interval_text, mean_text
from gdpo.rewards.metrics import higher_is_better

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "not distinguishable"
REFERENCE = "naosd"
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A trained row: {metric: (I, R, N)} of it and, where advantages took part, of its shuffled control."""

    scores: dict[str, Array]
    control: dict[str, Array] | None = None


def effect(a_IRN: Array, b_IRN: Array) -> Record:
    """a - b, paired by image and by repeat (R = 1: the same for all repeats); noise counts may differ.

    Keys: mean, standard_error, low, high (None with a single image or repeat), p, distinguishable (the interval leaves out 0),
    and repeats: the mean of each.
    """
    difference_IR = a_IRN.mean(axis=2) - b_IRN.mean(axis=2)
    parts = [difference_IR.mean(axis=1), difference_IR.mean(axis=0)]  # over images, over repeats
    found: Record = {"mean": float(difference_IR.mean()), "standard_error": None, "low": None, "high": None, "p": None}
    found |= {"distinguishable": False, "repeats": parts[1].tolist()}
    if min(difference_IR.shape) < 2:
        return found
    squared = [float(part.var(ddof=1)) / len(part) for part in parts]
    error, half, p = math.sqrt(sum(squared)), 0.0, 1.0
    if error > 0:
        freedom = sum(squared) ** 2 / sum(s**2 / (len(part) - 1) for s, part in zip(squared, parts, strict=True))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
        p = 2 * float(stats.t.sf(abs(found["mean"]) / error, freedom))
    ends = {"low": found["mean"] - half, "high": found["mean"] + half}
    return {**found, **ends, "standard_error": error, "p": p, "distinguishable": ends["low"] > 0 or ends["high"] < 0}


def sign(ours: Record, better: bool, papers: float, papers_better: bool) -> str | None:
    """Whether our difference says what the paper's does; None where the paper's is 0.

    better: whether more of our metric is better; papers_better: the same of the paper's column.
    """
    if papers == 0:
        return None
    if not ours["distinguishable"]:
        return UNCLEAR
    return AGREES if ((ours["mean"] > 0) == better) == ((papers > 0) == papers_better) else DISAGREES


def add_reward(config: Config, reference: dict[str, Array], detail_share_I: Array, runs: Iterable[dict[str, Array]]) -> None:
    """Add to every run's scores the reward of the configuration in NAOSD's within-image standard deviations, in place.

    reference: NAOSD's, (I, 1, N); runs: (I, R, N). The yardstick is the same for all rows, whatever a row was trained on.
    """
    plain: Scores = {REFERENCE: {metric: values[:, 0] for metric, values in reference.items()}}
    fidelity, perception = config.reward.fidelity, config.reward.perception
    for scores in (reference, *runs):
        shape = next(iter(scores.values())).shape
        flat = {metric: values.reshape(len(values), -1) for metric, values in scores.items()}
        weighted = _weighted({**plain, "run": flat}, detail_share_I, fidelity, perception, config.reward.weighting == "equal")
        scores[REWARD] = weighted["run"].reshape(shape)


def _weighted(scores: Scores, shares: Array, fidelity: list[str], perception: list[str], equal: bool) -> dict[str, Array]:
    return rewards(scores, np.full_like(shares, 0.5) if equal else shares, fidelity, perception, REFERENCE)


def columns(table: Ablation, config: Config) -> list[tuple[str, str | None]]:
    """(column of the paper, our metric or None) of a table, and the reward at the end."""
    return [*((column, metric_of(column, config)) for column in table.columns), (REWARD, REWARD)]


def records(key: str, config: Config, reference: Mapping[str, Array], results: Mapping[str, Result]) -> list[Record]:
    """One record per row and column of a table: ours, differences with their signs, and the paper's figures.

    reference: NAOSD's scores, (I, 1, N); results: by the names of the rows, in their order; both with the reward.
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
    table: Ablation, row: str, column: str, metric: str, reference: Mapping[str, Array], results: Mapping[str, Result]
) -> Record:
    """The measured part of a record; differences as plain values."""
    result = results.get(row)
    mine = reference[metric] if result is None else result.scores[metric]
    mean = mean_over_images(mine.reshape(len(mine), -1))
    others = {"to_naosd": None if result is None else reference, "to_control": result.control if result else None}
    gdpo = results.get(table.gdpo)
    others["to_gdpo"] = gdpo.scores if result and gdpo and row != table.gdpo else None
    compared = {name: None if other is None else effect(mine, other[metric]) for name, other in others.items()}
    if result is not None and result.control is not None:
        compared["control_to_naosd"] = effect(result.control[metric], reference[metric])
    stand_in = column != REWARD and is_stand_in(column, metric)
    return {"stand_in": stand_in, "ours": mean.mean, "standard_error": finite(mean.standard_error), **compared}


def finite(value: float) -> float | None:
    """The value, or None for one that JSON cannot hold."""
    return value if math.isfinite(value) else None


def _sign(record: Record, column: str, metric: str | None, name: str) -> str | None:
    if metric is None or record.get(name) is None or record[f"paper_{name}"] is None:
        return None
    papers_better = column not in paper.LOWER_IS_BETTER
    return sign(record[name], higher_is_better(metric), record[f"paper_{name}"], papers_better)


def signs(found: Sequence[Record]) -> Iterator[tuple[Record, str, str]]:
    """(record, "NAOSD" or "GDPO", sign) of everything whose sign was compared."""
    for record in found:
        for name, other in (("to_naosd", NAOSD), ("to_gdpo", "GDPO")):
            if record[f"sign_{name}"]:
                yield record, other, record[f"sign_{name}"]


def figure_7(
    config: Config, reference: Mapping[str, Array], results: Mapping[str, Result]
) -> tuple[list[Record], list[Record]]:
    """(records by setting and metric, the paper's claims about them). results: by setting "(t_add, t_diff)", (I, R, N).

    range: greatest minus least over the noises of the mean over images, mean over repeats (the paper's definition); the
    claims compare ranges of single images, of which there are many. Claims: each larger timestep against (100, 100).
    """
    names = {column: metric for column, metric in columns(ABLATIONS["fig7"], config) if metric}
    found = []
    for setting, result in results.items():
        for column, metric in names.items():
            scores = result.scores[metric]
            mean, ranges = mean_over_images(scores.reshape(len(scores), -1)), np.ptp(scores.mean(axis=0), axis=1)
            spread = float(ranges.std(ddof=1)) / math.sqrt(len(ranges)) if len(ranges) > 1 else None
            found.append(
                {
                    "row": setting, "column": column, "metric": metric,
                    "stand_in": column != REWARD and is_stand_in(column, metric),
                    "ours": mean.mean, "standard_error": finite(mean.standard_error),
                    "range": float(ranges.mean()), "range_standard_error": spread,
                    "range_of_an_image": float(np.ptp(scores, axis=2).mean()),
                    "to_naosd": effect(scores, reference[metric]),
                }
            )  # fmt: skip
    return found, [claim for setting in list(results)[1:3] for claim in _claims(setting, results, names)]


def _claims(setting: str, results: Mapping[str, Result], names: Mapping[str, str]) -> Iterator[Record]:
    """What the paper's text says of a setting against the first: ranges grow, MUSIQ rises, PSNR falls."""
    first = next(iter(results))
    for column, rises in (("PSNR", False), ("MUSIQ", True)):
        metric = names.get(column)
        if metric is None:
            continue
        here, there = results[setting].scores[metric], results[first].scores[metric]
        ranges = effect(np.ptp(here, axis=2)[..., None], np.ptp(there, axis=2)[..., None])
        level, up = effect(here, there), higher_is_better(metric)
        yield _claim(f"the range of {column} is larger", metric, setting, first, ranges, sign(ranges, True, 1.0, True))
        worse = "rises" if rises else "falls"
        yield _claim(f"{column} {worse}", metric, setting, first, level, sign(level, up, 1.0 if rises else -1.0, True))


def _claim(text: str, metric: str, setting: str, first: str, found: Record, verdict: str | None) -> Record:
    return {"claim": text, "metric": metric, "row": setting, "against": first, **found, "sign": verdict}


def what_matters(found: Sequence[Record]) -> str:
    """One sentence on the options, from their differences to GDPO in the reward."""
    changes = {r["row"]: r["to_gdpo"] for r in found if r["metric"] == REWARD and r.get("to_gdpo")}

    def listed(distinguishable: bool) -> str:
        some = ((row, e) for row, e in changes.items() if e["distinguishable"] == distinguishable)
        return ", ".join(f"{row} ({mean_text(e)}, {interval_text(e)})" for row, e in some)

    if not listed(True):
        return f"None is distinguishable from GDPO in the reward at this scale: {listed(False)}."
    rest = f"; not distinguishable are {listed(False)}" if listed(False) else ""
    return f"Against GDPO the reward changes with {listed(True)}{rest}."
