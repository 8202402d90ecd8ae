"""The results of the ablations: paired differences with intervals, and whether their signs agree
with the paper's.

    difference of two rows   per image and training repeat, the mean over noises of a minus that of
                             b
    standard error           over images and over repeats (tasks/ablate/effects.py)
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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD, rewards
from gdpo.evaluate.statistics import Array, Scores, finite, mean_over_images
from gdpo.metrics.score import higher_is_better
from tasks.ablate.effects import Record, effect, sign
from tasks.ablate.rows import ABLATIONS, NAOSD, Ablation, is_stand_in, metric_of
from tasks.report import paper
from tasks.report.tables import interval_text, mean_text

REFERENCE = "naosd"
# The same comparison without the effect of training alone. NAOSD has no control and needs none.
BEYOND = {"to_naosd": "to_control", "to_gdpo": "beyond_controls_to_gdpo"}


@dataclass(frozen=True)
class RowScores:
    """A trained row: {metric: (I, R, N)} of the row and, if it was trained with advantages, of its
    shuffled control.
    """

    scores: dict[str, Array]
    control: dict[str, Array] | None = None


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
        # `rewards` knows images and noises only. Its unit is NAOSD's, so the repeats of a training
        # can be passed as more noises.
        flat = {metric: values.reshape(len(values), -1) for metric, values in scores.items()}
        weighted = rewards({**plain, "run": flat}, detail_share_I, config.reward, REFERENCE)
        scores[REWARD] = weighted["run"].reshape(shape)


def columns(table: Ablation, config: Config) -> list[tuple[str, str | None]]:
    """(column of the paper, our metric or None) of a table, followed by the reward."""
    return [*((column, metric_of(column, config)) for column in table.columns), (REWARD, REWARD)]


def records(
    key: str, config: Config, reference: Mapping[str, Array], results: Mapping[str, RowScores]
) -> list[Record]:
    """One record per row and column of a table: our values, differences with their signs, and the
    paper's figures.

    reference: NAOSD's scores, (I, 1, N). results: by row name, in the order of the rows. Both
    include the reward.
    """
    table = ABLATIONS[key]
    all_records = []
    for row in (NAOSD, *results):
        for column, metric in columns(table, config):
            printed = table.printed.get(row, {}).get(column)
            record: Record = {"row": row, "column": column, "metric": metric, "paper": printed}
            if metric is not None:
                record |= _ours(table, row, column, metric, reference, results)
            for other, name in ((NAOSD, "to_naosd"), (table.gdpo, "to_gdpo")):
                against = table.printed.get(other, {}).get(column)
                record[f"paper_{name}"] = (
                    None
                    if printed is None or against is None or row in (NAOSD, other)
                    else round(printed - against, 6)
                )
                record[f"sign_{name}"] = _sign(record, column, metric, name)
            all_records.append(record)
    return all_records


def _ours(
    table: Ablation,
    row: str,
    column: str,
    metric: str,
    reference: Mapping[str, Array],
    results: Mapping[str, RowScores],
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


def _against_gdpo(metric: str, result: RowScores, gdpo: RowScores | None) -> Record:
    """A result against GDPO, its control against GDPO's control, and the first difference minus the
    second.
    """
    if gdpo is None or result is gdpo:
        return {}
    effects = {"to_gdpo": effect(result.scores[metric], gdpo.scores[metric])}
    if result.control is not None and gdpo.control is not None:
        effects["control_to_gdpo"] = effect(result.control[metric], gdpo.control[metric])
        gained, by_gdpo = (
            _gain(metric, result.scores, result.control),
            _gain(metric, gdpo.scores, gdpo.control),
        )
        # Not the difference of the two effects: paired by image and repeat, what both trainings do
        # to an image cancels before the standard error is taken.
        effects[BEYOND["to_gdpo"]] = effect(gained, by_gdpo)
    return effects


def _gain(metric: str, scores: dict[str, Array], control: dict[str, Array]) -> Array:
    """(I, R, 1): a row minus its control, as means over noises."""
    difference: Array = scores[metric].mean(axis=2, keepdims=True) - control[metric].mean(
        axis=2, keepdims=True
    )
    return difference


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


def signs(table: Sequence[Record]) -> Iterator[tuple[Record, str, str, bool]]:
    """(record, "NAOSD" or "GDPO", sign, whether it holds beyond the controls) for every compared
    sign.
    """
    for record in table:
        for name, other in (("to_naosd", NAOSD), ("to_gdpo", "GDPO")):
            if record[f"sign_{name}"]:
                yield record, other, record[f"sign_{name}"], beyond_controls(record, name)


def what_matters(options: Sequence[Record]) -> str:
    """One sentence on the options: their differences to GDPO in the reward, beyond the controls."""
    name = BEYOND["to_gdpo"]
    changes = {r["row"]: r[name] for r in options if r["metric"] == REWARD and r.get(name)}

    def listed(distinguishable: bool) -> str:
        some = (
            (option, e) for option, e in changes.items() if e["distinguishable"] == distinguishable
        )
        return ", ".join(f"{option} ({mean_text(e)}, {interval_text(e)})" for option, e in some)

    if not listed(True):
        return (
            "Beyond the controls none is distinguishable from GDPO in the reward at this "
            f"scale: {listed(False)}."
        )
    rest = f"; not distinguishable are {listed(False)}" if listed(False) else ""
    return f"Against GDPO and beyond the controls the reward changes with {listed(True)}{rest}."
