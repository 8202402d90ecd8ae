"""The output of `ablate`: per table a Markdown and an HTML page that start with the figure, and a
CSV file with every number; results.json with all results; index.md with a few sentences per table.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.statistics import Array
from gdpo.files import written_aside
from gdpo.model.card import IDENTITIES
from tasks.ablate.effects import Record, photographs_widen
from tasks.ablate.figure_7 import figure_7, figure_7_tables
from tasks.ablate.findings import RowScores, add_reward, records, what_matters
from tasks.ablate.rows import ABLATIONS
from tasks.ablate.tables import PLURAL, details, flat, overview, verdicts
from tasks.report.figures import forest
from tasks.report.tables import Table, sample, to_csv, to_html, to_markdown

STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem "
    "auto;max-width:90rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1.5rem "
    "0;display:block;overflow-x:auto}caption{text-align:left;padding:.5rem 0}"
    "caption span{display:block;max-width:60rem}"
    "th,td{padding:.15rem .6rem;border-bottom:1px solid "
    "#8884;text-align:left;white-space:nowrap}img{max-width:100%}"
)
CONTROL = IDENTITIES["control"]
SERIES = {"to_naosd": "advantages", "control_to_naosd": CONTROL.label}


def write(
    out: Path,
    config: Config,
    about: dict[str, Any],
    reference: dict[str, Array],
    shares: Array,
    results: Mapping[str, Mapping[str, RowScores]],
) -> str:
    """Write the folder `out`; returns the text of index.md, a line per table.

    about: metadata of the whole run, for results.json. reference: NAOSD's scores, (I, 1, N).
    shares: detail share of each image. results: by table and row, without the reward, which is
    added here in place.
    """
    every = [result for rows in results.values() for result in rows.values()]
    runs = [
        scores
        for result in every
        for scores in (result.scores, result.control)
        if scores is not None
    ]
    add_reward(config, reference, shares, runs)
    about = {**about, "photographs_widen": _widened(reference, every, about["sources"])}
    tables: dict[str, Any] = {}
    sentences: list[str] = []
    with written_aside(out) as part:
        part.mkdir()
        for key, rows in results.items():
            claims: list[Record] = []
            if key == "fig7":
                table_records, claims = figure_7(config, reference, rows)
                shown, sentence = figure_7_tables(table_records, claims, config), _of_claims(claims)
            else:
                table_records = records(key, config, reference, rows)
                sentence = (
                    what_matters(table_records)
                    if key == "options"
                    else " ".join(verdicts(table_records))
                )
                notes = [sentence] if key == "options" else []
                notes += _distances(about["distances"].get(key, {}))
                shown = (
                    overview(key, table_records, config, [*notes, *_how(config, about)]),
                    details(key, table_records, config),
                )
            tables[key] = {"records": table_records, "claims": claims, "sentence": sentence}
            sentences.append(f"{_title(key)}: {sentence}")
            _write_table(part, key, table_records, shown)
        (part / "index.md").write_text(
            _index(sentences, results, _how(config, about)), encoding="utf-8"
        )
        text = json.dumps({**about, "tables": tables}, indent=1, allow_nan=False)
        (part / "results.json").write_text(text + "\n", encoding="utf-8")
    return "\n".join(sentences)


def _widened(
    reference: dict[str, Array], every: Sequence[RowScores], sources: Sequence[str]
) -> list[float]:
    """`photographs_widen` for every result's difference to NAOSD, rounded."""
    pairs = ((result.scores[metric], reference[metric]) for result in every for metric in reference)
    return [round(float(value), 2) for value in photographs_widen(pairs, sources)]


def _write_table(
    folder: Path, key: str, table_records: Sequence[Record], shown: Sequence[Table]
) -> None:
    """Write one table's four files. The figure shows the reward's difference to NAOSD, of the
    trained rows and of their controls.
    """
    name = ABLATIONS[key].name
    picture = [
        (
            record["row"],
            run,
            e["mean"],
            *(e["mean"] if e[end] is None else e[end] for end in ("low", "high")),
        )
        for record in table_records
        if record["metric"] == REWARD
        for series, run in SERIES.items()
        if (e := record.get(series))
    ]
    roles = {CONTROL.label: CONTROL.role}
    forest(folder / f"{name}.svg", picture, IDENTITIES["naosd"].label, roles)
    title = f"{_title(key)}: {ABLATIONS[key].subject}"
    alt = (
        "Difference of the reward to NAOSD's of every row and of its shuffled control, with 95 "
        "% intervals"
    )
    parts = [f"# {title}", f"![{alt}]({name}.svg)", *map(to_markdown, shown)]
    (folder / f"{name}.md").write_text("\n\n".join(parts), encoding="utf-8")
    body = f'<h1>{escape(title)}</h1><p><img src="{name}.svg" alt="{escape(alt)}"></p>' + "".join(
        map(to_html, shown)
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title>'
    )
    html = (
        "<!doctype html><html "
        f'lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'
    )
    (folder / f"{name}.html").write_text(html, encoding="utf-8")
    (folder / f"{name}.csv").write_text(to_csv(flat(key, table_records)), encoding="utf-8")


def _title(key: str) -> str:
    return f"Table {key}" if key.isdigit() else {"fig7": "Fig. 7", "options": "Options"}[key]


def _of_claims(claims: Sequence[Record]) -> str:
    """How many of the paper's claims about Fig. 7 agree, and which disagree."""
    counts = Counter(claim["sign"] for claim in claims)
    tally = ", ".join(f"{counts[sign]} {word}" for sign, word in PLURAL.items())
    text = f"Of {len(claims)} claims of the paper's text {tally}"
    against = [
        f"{claim['row']}: {claim['claim']}, {claim['of']}"
        for claim in claims
        if claim["sign"] == "disagrees"
    ]
    return text + (f" ({'; '.join(against)})." if against else ".")


def _how(config: Config, about: Mapping[str, Any]) -> list[str]:
    """Notes on the cost of a row, the sample behind the intervals, and the skipped pairs."""
    cost, rollout = config.ablate, config.rollout
    notes = [
        f"Every row: {cost.repeats} trainings and {cost.repeats} of its control, {cost.steps} "
        f"steps of {cost.batch} groups out "
        f"of {cost.groups}, learning rate {cost.lr:g}, {_omega(config)}, noise "
        f"{rollout.noise}, target "
        f"{rollout.target}, G = {rollout.group}; unless the row says otherwise.",
        f"Evaluated on {sample(about)} with {cost.noises} noises each, the same for "
        f"all.{_narrow(about)}",
        "No sign is adjusted for how many are looked at: of those of no effect, one in twenty is "
        "called all the same.",
    ]
    for mode, pairs in about["skipped"].items():
        if pairs:
            notes.append(
                f"Left out of the rollouts by {mode}: "
                + "; ".join(f"{p['id']} ({p['reason']})" for p in pairs)
                + "."
            )
    return notes


def _distances(of_rows: Mapping[str, Sequence[float | None]]) -> list[str]:
    """A note on how far each row and its control ended from NAOSD, where that is logged."""
    told = [
        f"{option} {mine:.2f} (control {control:.2f})"
        for option, (mine, control) in of_rows.items()
        if mine is not None and control is not None
    ]
    what = "Distance from NAOSD at the last step, in its own errors (finetune.reach is such a "
    return [f"{what}distance): {', '.join(told)}."] if told else []


def _narrow(about: Mapping[str, Any]) -> str:
    """By how much the intervals are too narrow, because images of one photograph are correlated."""
    if about["photographs"] == about["images"] or not about["photographs_widen"]:
        return ""
    low, middle, high = about["photographs_widen"]
    return (
        f" Images of one photograph resemble each other: with the {about['photographs']} "
        "photographs as the unit, the standard "
        f"errors over images would be {middle:.1f} times as large (quartiles of all differences: "
        f"{low:.1f} to {high:.1f}), and "
        "their degrees of freedom fewer. The intervals are too narrow by that much for any other "
        "photographs than these."
    )


def _index(sentences: Sequence[str], results: Mapping[str, Any], how: Sequence[str]) -> str:
    """index.md, which links to the pages of the tables."""
    lines = [
        f"- [{ABLATIONS[key].subject}]({ABLATIONS[key].name}.md). {text}"
        for key, text in zip(results, sentences, strict=True)
    ]
    return "\n".join(["# Ablations", "", *lines, "", *how, ""])


def _omega(config: Config) -> str:
    omega, reach = config.finetune.omega, config.finetune.reach
    return f"omega by reach {reach:g}" if omega is None else f"omega {omega:g}"
