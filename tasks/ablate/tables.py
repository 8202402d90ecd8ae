"""The ablations as tables: the paper's rows, with our figures and the shuffled control beside the
paper's, and the signs.

    overview(key, records, config)      up to five lines per row: the paper's figure, ours, the
                                        differences of row and control to NAOSD, the sign
    details(key, records, config)       every difference with its interval and repeats; the
                                        difference to GDPO also with its sign
    flat(key, records)                  one line per row and column with every number, for CSV
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gdpo.config import Config
from gdpo.evaluate.benchmark import REWARD
from gdpo.metrics.score import higher_is_better
from tasks.ablate.effects import AGREES, DISAGREES, UNCLEAR, Record
from tasks.ablate.findings import BEYOND, beyond_controls, columns, signs
from tasks.ablate.rows import ABLATIONS, NAOSD, is_stand_in, metric_of
from tasks.report import paper
from tasks.report.tables import Cell, Table, interval_text, label, mean_text, number

EMPTY = Cell("–")
ZERO = 1e-9  # NAOSD's own reward is 0 up to rounding
PLURAL = {AGREES: "agree", DISAGREES: "disagree", UNCLEAR: UNCLEAR}
DIFFERENCES = (
    "to_naosd",
    "control_to_naosd",
    "to_control",
    "to_gdpo",
    "control_to_gdpo",
    BEYOND["to_gdpo"],
)
PARTS = ("mean", "standard_error", "low", "high", "p")
Lines = Sequence[tuple[str, Callable[[Record], Cell]]]


def overview(
    key: str, records: Sequence[Record], config: Config, notes: Sequence[str] = ()
) -> Table:
    """The table as in the paper. The notes below it list the stand-ins and count the signs that
    agree.
    """
    table = ABLATIONS[key]
    # Omit the paper's lines if the paper has no figures for this table.
    lines: Lines = [
        *([("paper (− NAOSD)", _printed)] if table.printed else []),
        ("ours", measured),
        ("ours − NAOSD", lambda record: difference(record.get("to_naosd"))),
        ("control − NAOSD", lambda record: difference(record.get("control_to_naosd"))),
        *([("sign to NAOSD", lambda record: _sign(record, "to_naosd"))] if table.printed else []),
    ]
    all_notes = [*stand_ins(key, config), *verdicts(records), *table.remarks, *notes]
    number_ = f"Table {key} of the paper: " if key.isdigit() else ""
    caption = (
        f"{number_}{table.subject}. Ours: mean ± standard error over images; differences with "
        "their 95 % interval over images "
        "and training repeats. Control: the same training with advantages shuffled inside each "
        "group."
    )
    return _table(key, f"{table.name}", caption, lines, records, config, all_notes)


def details(key: str, records: Sequence[Record], config: Config) -> Table:
    """Every difference of every row."""
    table = ABLATIONS[key]
    lines: Lines = [
        ("− NAOSD", lambda record: difference(record.get("to_naosd"))),
        ("− NAOSD, by repeat", _repeats),
        ("− its own control", lambda record: difference(record.get("to_control"))),
        ("− GDPO", lambda record: difference(record.get("to_gdpo"))),
        ("control − GDPO's control", lambda record: difference(record.get("control_to_gdpo"))),
        ("− GDPO, beyond the controls", lambda record: difference(record.get(BEYOND["to_gdpo"]))),
        *([("− GDPO, paper", _printed_to_gdpo)] if table.printed else []),
        *([("− GDPO, sign", lambda record: _sign(record, "to_gdpo"))] if table.printed else []),
    ]
    caption = (
        "All differences, paired over images, noises and training repeats, with 95 % intervals."
    )
    return _table(
        key,
        f"{table.name}-details",
        caption,
        lines,
        [r for r in records if r["row"] != NAOSD],
        config,
        [],
    )


def _table(
    key: str,
    name: str,
    caption: str,
    lines: Lines,
    records: Sequence[Record],
    config: Config,
    notes: Sequence[str],
) -> Table:
    """A table with one line per (row, line) that has any value."""
    heads = columns(ABLATIONS[key], config)
    rows = []
    for row in dict.fromkeys(record["row"] for record in records):
        mine = {record["column"]: record for record in records if record["row"] == row}
        for text, cell in lines:
            cells = [cell(mine[column]) for column, _ in heads]
            if any(one.text != EMPTY.text for one in cells):
                rows.append([Cell(row), Cell(text), *cells])
    return Table(caption, ["Method", "", *(heading(*head) for head in heads)], rows, name, notes)


def heading(column: str, metric: str | None) -> str:
    """The paper's column with its arrow, and our metric if it is a stand-in."""
    if column == REWARD:
        return f"{label(REWARD)} ↑"
    name = f"{column} {'↓' if column in paper.LOWER_IS_BETTER else '↑'}"
    if metric is None:
        return f"{name} (ours: none)"
    if not is_stand_in(column, metric):
        return name
    return f"{name} (ours: {label(metric)} {'↑' if higher_is_better(metric) else '↓'})"


def _decimals(column: str, value: float) -> int:
    """At least the paper's usual decimals in the column; more where it prints more (8.654)."""
    return max(
        2 if column in ("PSNR", "FID", "MUSIQ", "AFINE") else 4, len(repr(value).partition(".")[2])
    )


def _printed(record: Record) -> Cell:
    """The paper's figure and its difference to NAOSD."""
    value, difference = record["paper"], record["paper_to_naosd"]
    if value is None:
        return EMPTY
    decimals = _decimals(record["column"], value)
    beside = "" if difference is None else f" ({number(difference, decimals, sign=True)})"
    return Cell(number(value, decimals) + beside, value)


def _printed_to_gdpo(record: Record) -> Cell:
    difference = record["paper_to_gdpo"]
    if difference is None:
        return EMPTY
    return Cell(
        number(difference, _decimals(record["column"], record["paper"]), sign=True), difference
    )


def measured(record: Record) -> Cell:
    """Our mean ± its standard error over images."""
    if record["metric"] is None:
        return EMPTY
    value, error = record["ours"], record["standard_error"]
    if abs(value) < ZERO:
        return Cell("0", value)
    beside = "" if error is None else f" ± {error:.2g}"
    return Cell(f"{value:.4g}{beside}".replace("-", "−"), value)


def difference(effect: Mapping[str, Any] | None) -> Cell:
    """An effect with its interval."""
    return (
        EMPTY
        if effect is None
        else Cell(f"{mean_text(effect)} ({interval_text(effect)})", effect["mean"])
    )


def _sign(record: Record, name: str) -> Cell:
    verdict = record[f"sign_{name}"]
    if verdict in (None, UNCLEAR):
        return Cell(verdict or "–")
    return Cell(
        f"{verdict}, {'beyond' if beyond_controls(record, name) else 'not beyond'} the control"
    )


def _repeats(record: Record) -> Cell:
    """The difference to NAOSD of each training repeat."""
    effect = record.get("to_naosd")
    if effect is None:
        return EMPTY
    return Cell(", ".join(mean_text({**effect, "mean": mean}) for mean in effect["repeats"]))


def stand_ins(key: str, config: Config) -> list[str]:
    """Notes: which columns have a stand-in or no metric, and how our reward differs from the
    paper's.
    """
    notes = []
    for column, metric in columns(ABLATIONS[key], config):
        if metric is None:
            notes.append(
                f"{column}: not measured; it compares sets of images and has no value, so no "
                "interval, per image."
            )
        elif column != REWARD and is_stand_in(column, metric):
            notes.append(
                f"{column}: not in evaluate.metrics, for it needs weights; {label(metric)} stands "
                "in for it."
            )
    notes += rewarded(key, config)
    used = " | ".join(
        ", ".join(map(label, part)) for part in (config.reward.fidelity, config.reward.perception)
    )
    notes.append(
        f"Reward: {used}, weighted as in training, in NAOSD's within-image standard deviations; "
        "the same for all rows."
    )
    return notes


def rewarded(key: str, config: Config) -> list[str]:
    """Notes: which rows are trained with other metrics than the paper's."""
    notes = []
    lpips = metric_of("LPIPS", config)
    if key == "9" and lpips and is_stand_in("LPIPS", lpips):
        notes.append(
            f"The rows LPIPS and PSNR+LPIPS are trained for {label(lpips)} in the place of LPIPS."
        )
    perception = [
        name
        for name in config.reward.perception
        if name not in (paper.METRICS["MUSIQ"], paper.METRICS["MANIQA"])
    ]
    if perception and key != "fig7":
        names = ", ".join(map(label, perception))
        notes.append(
            f"All rows are trained for {names} where the paper's are for MUSIQ and MANIQA: "
            "columns with it are rewarded."
        )
    return notes


def verdicts(records: Sequence[Record]) -> list[str]:
    """Sentences: how many signs agree, how many of these beyond the controls, and every sign that
    disagrees.
    """
    every = list(signs(records))
    if not every:
        return []
    sentences = []
    for other in dict.fromkeys(name for _, name, *_ in every):
        mine = [
            (record, verdict, beyond) for record, name, verdict, beyond in every if name == other
        ]
        counts = Counter(verdict for _, verdict, _ in mine)
        beyond = Counter(verdict for _, verdict, holds in mine if holds)
        held = {
            verdict: f" ({beyond[verdict]} beyond the controls)"
            for verdict in (AGREES, DISAGREES)
            if counts[verdict]
        }
        parts = ", ".join(
            f"{counts[verdict]} {text}{held.get(verdict, '')}" for verdict, text in PLURAL.items()
        )
        # A stand-in may serve several columns: its difference counts as a sign in each of them, but
        # is only one measurement.
        measurements = len({(record["row"], record["metric"]) for record, *_ in mine})
        sentences.append(
            f"Signs of the differences to {other}: {parts}; {len(mine)} signs, {measurements} "
            "measured differences."
        )
    against = [
        f"{r['row']}, {r['column']} to {other}"
        for r, other, verdict, _ in every
        if verdict == DISAGREES
    ]
    return [*sentences, f"Disagreeing: {'; '.join(against)}."] if against else sentences


def flat(key: str, records: Sequence[Record]) -> Table:
    """One line per row and column, with every number unrounded."""
    header = ["row", "column", "metric", "ours", "standard_error"]
    header += [f"{name}.{part}" for name in DIFFERENCES for part in PARTS]
    header += ["paper", "paper_to_naosd", "sign_to_naosd", "paper_to_gdpo", "sign_to_gdpo"]
    rows = []
    for record in records:
        flattened = {**record}
        for name in DIFFERENCES:
            flattened |= {f"{name}.{part}": (record.get(name) or {}).get(part) for part in PARTS}
        rows.append([plain(flattened.get(name)) for name in header])
    return Table(ABLATIONS[key].subject, header, rows, ABLATIONS[key].name)


def plain(value: object) -> Cell:
    """A value as a cell of a CSV file; empty for None."""
    return (
        Cell("", value)
        if isinstance(value, int | float)
        else Cell("" if value is None else str(value))
    )
