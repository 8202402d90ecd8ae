"""Fig. 7 of the paper: spread and quality of NAOSD's outputs at other timesteps (Sec. 5.4).

    ranges, claims = figure_7(config, reference, results)     records by setting and metric; the
                                                              text's claims compared with ours
    table, of_claims = figure_7_tables(ranges, claims, config)

The paper draws the values and prints none, so only the claims of its text can be checked.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.statistics import Array, finite, mean_over_images
from gdpo.metrics.score import higher_is_better
from gdpo.pretrain.start import initial_model
from tasks.ablate.effects import Record, effect, over_repeats, sign
from tasks.ablate.findings import RowScores, columns
from tasks.ablate.rows import ABLATIONS, is_stand_in
from tasks.ablate.tables import difference, heading, measured, stand_ins
from tasks.report.tables import Cell, Table, label


def figure_7(
    config: Config, reference: Mapping[str, Array], results: Mapping[str, RowScores]
) -> tuple[list[Record], list[Record]]:
    """(records by setting and metric, the paper's claims about them).

    reference: NAOSD's scores, {metric: (I, 1, N)}. results: by setting "(t_add, t_diff)", scores
    (I, R, N).

    A record's `range` is the paper's: max minus min over the noises of the mean over images.
    `range_of_an_image` is the range of a single image, averaged over images. Both are means over
    repeats.
    """
    names = {column: metric for column, metric in columns(ABLATIONS["fig7"], config) if metric}
    all_records = []
    for setting, result in results.items():
        for column, metric in names.items():
            scores = result.scores[metric]
            mean, ranges = mean_over_images(scores.reshape(len(scores), -1)), _ranges(scores)[0]
            spread = float(ranges.std(ddof=1)) / math.sqrt(len(ranges)) if len(ranges) > 1 else None
            all_records.append(
                {
                    "row": setting,
                    "column": column,
                    "metric": metric,
                    "stand_in": column != REWARD and is_stand_in(column, metric),
                    "ours": mean.mean,
                    "standard_error": finite(mean.standard_error),
                    "range": float(ranges.mean()),
                    "range_standard_error": spread,
                    "range_of_an_image": float(np.ptp(scores, axis=2).mean()),
                    "to_naosd": effect(scores, reference[metric]),
                }
            )
    return all_records, list(_claims(results, names))


def _ranges(scores_IRN: Array) -> Array:
    """(1, R): the paper's range, max minus min over the noises of the mean over images."""
    range_of_set: Array = np.ptp(scores_IRN.mean(axis=0), axis=1)[None]
    return range_of_set


# The claims of the paper's text: (setting, setting compared with, column, "range" (is larger),
# "rises" or "falls"). "The last setting balances" is read as: a larger range and better perception
# than the first setting, better fidelity than the second.
CLAIMS: list[tuple[int, int, str, str]] = [
    *(
        (setting, 0, column, what)
        for setting in (1, 2)
        for column, what in (
            ("PSNR", "range"),
            ("MUSIQ", "range"),
            ("PSNR", "falls"),
            ("MUSIQ", "rises"),
        )
    ),
    (3, 0, "PSNR", "range"),
    (3, 0, "MUSIQ", "range"),
    (3, 0, "MUSIQ", "rises"),
    (3, 1, "PSNR", "rises"),
]


def _claims(results: Mapping[str, RowScores], names: Mapping[str, str]) -> Iterator[Record]:
    """Every claim compared with our results. A claim about ranges is compared twice: by the paper's
    definition and by the ranges of single images.
    """
    settings = list(results)
    for setting, against, column, what in CLAIMS:
        metric = names.get(column)
        if metric is None:
            continue
        own, other = (results[settings[i]].scores[metric] for i in (setting, against))
        plain: Record = {"metric": metric, "row": settings[setting], "against": settings[against]}
        if what == "range":
            of_images = effect(np.ptp(own, axis=2)[..., None], np.ptp(other, axis=2)[..., None])
            of_the_set = over_repeats(_ranges(own)[0], _ranges(other)[0])
            for kind, gain in (("of the set's mean", of_the_set), ("of single images", of_images)):
                verdict = sign(gain, True, 1.0, True)
                yield {
                    **plain,
                    "claim": f"the range of {column} is larger",
                    "of": kind,
                    **gain,
                    "sign": verdict,
                }
        else:
            change = effect(own, other)
            verdict = sign(change, higher_is_better(metric), 1.0 if what == "rises" else -1.0, True)
            yield {
                **plain,
                "claim": f"{column} {what}",
                "of": "the mean",
                **change,
                "sign": verdict,
            }


def figure_7_tables(
    ranges: Sequence[Record], claims: Sequence[Record], config: Config
) -> tuple[Table, Table]:
    """(range and mean of each setting; the claims of the paper's text and whether our results
    agree).
    """
    heads = [(column, metric) for column, metric in columns(ABLATIONS["fig7"], config) if metric]
    rows = []
    for setting in dict.fromkeys(record["row"] for record in ranges):
        mine = {record["column"]: record for record in ranges if record["row"] == setting}
        cells = [
            cell for column, _ in heads for cell in (_range(mine[column]), measured(mine[column]))
        ]
        rows.append([Cell(setting), *cells])
    header = [
        "(t_add, t_diff)",
        *(f"{heading(*head)} {part}" for head in heads for part in ("range", "mean")),
    ]
    steps, noises, start = (
        config.ablate.pretrain_steps,
        config.ablate.noises,
        initial_model(config) or "fresh adapters",
    )
    caption = (
        f"Fig. 7 of the paper: NAOSD trained at each setting for {steps} steps from {start}. "
        f"Range: greatest minus least over {noises} noises of the mean over images, mean ± "
        "standard error over training seeds "
        "(the paper: 50 noises on RealSR). Mean: ± standard error over images."
    )
    own = f"({config.model.t_add}, {config.model.t_diff})"
    notes = [
        *stand_ins("fig7", config),
        *(
            [
                f"{start} was trained at {own}: the other settings start from adapters of another "
                f"timestep, and after {steps} "
                "steps their level shows that as well."
            ]
            if initial_model(config)
            else []
        ),
        "The paper's values are drawn, not printed; the claims below are its text's. No "
        "advantages here, so no control.",
    ]
    first = Table(caption, header, rows, "figure-7", notes)
    lines = [
        [
            Cell(f"{c['row']} against {c['against']}"),
            Cell(c["claim"]),
            Cell(f"{label(c['metric'])}, {c['of']}"),
            difference(c),
            Cell(c["sign"] or "–"),
        ]
        for c in claims
    ]
    captions = [
        "A range of the set's mean is the paper's definition, one number per training seed; "
        "ranges of single images are paired "
        "by image and training seed. That (250, 100) balances is read as a larger range and "
        "better perception than (100, 100), "
        "and better fidelity than (250, 250).",
    ]
    header = ["Settings", "The paper says", "Ours is", "Difference of ours", "Sign"]
    return first, Table("What the paper says of Fig. 7", header, lines, "figure-7-claims", captions)


def _range(record: Record) -> Cell:
    error = record["range_standard_error"]
    return Cell(
        f"{record['range']:.3g}" + ("" if error is None else f" ± {error:.2g}"), record["range"]
    )
