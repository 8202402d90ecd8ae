"""Checks of the tables that degrade, select and rollout write, run before a table is put in place.

    check_pairs(folder, part, root, config.degrade)            the shards of one part: ids, hashes,
                                                               sources, boxes, tags
    check_selection(folder, root, config.select)               scores and manifest; no patch or
                                                               photograph of the evaluation
    check_rollouts(folder, part, root, config.rollout, ids)    the groups of one part: all of its
                                                               pairs, sizes, ranges

Each check writes Data Docs to reports/data-docs/<stage>. On failure it raises the ValueError of
tasks/checks/expectations.py and writes them to work/<stage>/data-docs instead. A condition without
a GX expectation (a quota, a set of 100,000 names) is first computed as a column. Images and latents
are not read.
"""

import html
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gdpo.config import Degrade, Rollout, Select
from gdpo.data.selection import REASONS, SELECTED, UNSCORED
from tasks.checks.expectations import Expectation, Suite, expect, expect_rows, validate

EVALUATION = "evaluation"
SHA256 = "^[0-9a-f]{64}$"
LARGEST = 1e6  # bound on the absolute value of any metric
NAMED = 20  # skipped pairs listed on the page


def check_pairs(folder: Path, part: str, root: Path, settings: Degrade) -> None:
    """Check the shards in `folder`, which are those of `part` ("evaluation" or a training part).

    Errors, here and below: ValueError with the first failed expectation, or naming a missing or
    damaged file.
    """
    table = _read(folder, ["id", "source", "box", "detail_share", "tags", "sha256"])
    photos = _read(root / "data/photos", ["name", "height", "width"], f"{part}.parquet")
    top, left, height, width = (pc.list_element(table["box"], i) for i in range(4))
    row = pc.index_in(table["source"], value_set=photos["name"].combine_chunks())
    inside = pc.and_(
        pc.less_equal(pc.add(top, height), photos["height"].take(row)),
        pc.less_equal(pc.add(left, width), photos["width"].take(row)),
    )
    columns = {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "source_is_listed": row.is_valid(),
    }
    side = settings.evaluation_crop if part == EVALUATION else settings.crop
    expectations = [
        expect_rows(len(photos)),
        *_identity("id"),
        *_true("source_is_listed", "The photograph must be in the list that `index` wrote."),
        *_true("box_is_inside", "The patch must lie inside its photograph."),
        *(expect("values_to_be_between", name, min_value=0) for name in ("top", "left")),
        *(
            expect("values_to_be_between", name, min_value=side, max_value=side)
            for name in ("height", "width")
        ),
        *_complete("detail_share", 0, 1),
        expect("values_to_not_be_null", "sha256"),
        expect("values_to_match_regex", "sha256", regex=SHA256),
        _tags(part != EVALUATION and settings.tags != "none"),
    ]
    table = _with(table.drop_columns(["box"]), **columns, box_is_inside=pc.fill_null(inside, False))
    shards = "data/shards/evaluation" if part == EVALUATION else f"data/shards/train/{part}"
    _validate(
        [Suite("pairs", shards, table, ["id", "source"], expectations)], root, "degrade", part
    )


def _tags(tagged: bool) -> Expectation:
    """Every pair has tags (possibly empty text), or no pair has."""
    return expect("values_to_not_be_null" if tagged else "values_to_be_null", "tags")


def check_selection(folder: Path, root: Path, rule: Select) -> None:
    """Check scores.parquet and manifest.parquet in `folder`."""
    scores = _read(
        folder, ["id", "source", "score", "detail_share", "reason", "rank"], "scores.parquet"
    )
    manifest = _read(folder, ["id", "score", "detail_share"], "manifest.parquet")
    photos = _read(root / "data/photos", ["name", "sha256"], "*.parquet", but="evaluation.parquet")
    suites = [
        _scores(scores, photos),
        _manifest(manifest, scores, photos, root, rule),
    ]
    _validate(suites, root, "select")


def _scores(scores: pa.Table, photos: pa.Table) -> Suite:
    """Every patch has a known photograph and a reason. It has a rank exactly if selected, and no
    score if the reason is `UNSCORED`.
    """
    selected = pc.equal(scores["reason"], SELECTED)
    unscored = pc.equal(scores["reason"], UNSCORED)
    table = _with(
        scores,
        source_is_listed=pc.is_in(scores["source"], value_set=photos["name"].combine_chunks()),
        rank_fits_reason=pc.equal(scores["rank"].is_valid(), selected),
        score_fits_reason=pc.invert(pc.and_(unscored, pc.is_finite(scores["score"]))),
    )
    expectations = [
        expect_rows(1),
        *_identity("id"),
        *_true("source_is_listed", "The photograph must be in a list that `index` wrote."),
        expect("values_to_be_in_set", "reason", value_set=list(REASONS)),
        *_true("rank_fits_reason", "Those selected have a rank, the others none."),
        *_true("score_fits_reason", "A patch said to have no score has none."),
        expect("values_to_be_unique", "rank"),
        expect("values_to_be_between", "rank", min_value=0, max_value=pc.sum(selected).as_py() - 1),
        *_complete("detail_share", 0, 1),
    ]
    return Suite("scores", "data/selected/scores.parquet", table, ["id", "source"], expectations)


def _manifest(
    manifest: pa.Table, scores: pa.Table, photos: pa.Table, root: Path, rule: Select
) -> Suite:
    """The selected patches match scores.parquet, stay within count and quotas, and share nothing
    with the evaluation.
    """
    ranked = scores.filter(scores["rank"].is_valid()).sort_by("rank")
    source = ranked["source"].take(
        pc.index_in(manifest["id"], value_set=ranked["id"].combine_chunks())
    )
    sha256 = photos["sha256"].take(pc.index_in(source, value_set=photos["name"].combine_chunks()))
    held_out = _read(root / "data/photos", ["sha256"], "evaluation.parquet")["sha256"]
    evaluation = _read(root / "data/shards/evaluation", ["id"])["id"]
    counts = source.value_counts()
    of_photo = counts.field("counts").take(pc.index_in(source, value_set=counts.field("values")))
    as_scored = np.zeros(len(manifest), bool)
    if len(manifest) == len(ranked):
        as_scored = np.array(pc.equal(manifest["id"], ranked["id"]))
    table = _with(
        manifest,
        source=source,
        photograph_sha256=sha256,
        patches_of_photograph=of_photo,
        is_in_rank_order=pa.array(as_scored),
        patch_is_new=pc.invert(pc.is_in(manifest["id"], value_set=evaluation.combine_chunks())),
        photograph_is_new=pc.invert(pc.is_in(sha256, value_set=held_out.combine_chunks())),
    )
    expectations = [
        expect_rows(1, rule.count),
        *_identity("id"),
        *_true(
            "is_in_rank_order", "The rows are those with a rank in scores.parquet, in that order."
        ),
        *_complete("score", -LARGEST, LARGEST),
        *_complete("detail_share", rule.min_detail, 1),
        *_complete("patches_of_photograph", 1, rule.max_per_photo),
        expect("values_to_not_be_null", "photograph_sha256"),
        expect("values_to_match_regex", "photograph_sha256", regex=SHA256),
        *_true("patch_is_new", "No patch is in both training and evaluation."),
        *_true(
            "photograph_is_new",
            "No photograph (by its content) is in both training and evaluation.",
        ),
    ]
    return Suite(
        "manifest", "data/selected/manifest.parquet", table, ["id", "source"], expectations
    )


def check_rollouts(
    folder: Path, part: str, root: Path, settings: Rollout, selected: list[str]
) -> None:
    """Check the groups of one part in `folder`. selected: the ids of the part's pairs, in order."""
    read = _read(
        folder,
        ["id", "prompt", "detail_share", "seeds", "metrics", "noise_seeds", "reference_error"],
    )
    skipped: dict[str, str] = json.loads((read.schema.metadata or {}).get(b"skipped", b"{}"))
    wanted = [id_ for id_ in selected if id_ not in skipped]
    table = _with(
        read.select(["id", "prompt", "detail_share"]),
        is_selected=pc.is_in(read["id"], value_set=pa.array(wanted, pa.string())),
        candidates=pc.list_value_length(read["seeds"]),
        noises=pc.list_value_length(read["noise_seeds"]),
        errors_of_noises=pc.list_value_length(read["reference_error"]),
    )
    values = {name: pc.struct_field(read["metrics"], name) for name in settings.metrics}
    table = _with(
        table, **{f"{name}_values": pc.list_value_length(column) for name, column in values.items()}
    )
    for name, column in {**values, "reference_error": read["reference_error"]}.items():
        least, most = _reduce(np.minimum, np.inf, column), _reduce(np.maximum, -np.inf, column)
        table = _with(table, **{f"{name}_least": least, f"{name}_most": most})
    expectations = [
        _rows_but(len(wanted), skipped),
        *_identity("id"),
        *_true(
            "is_selected",
            "The group must be of a pair that is this part's, and that is not said to be left out.",
        ),
        expect("values_to_not_be_null", "prompt"),
        *_complete("detail_share", 0, 1),
        *_complete("candidates", settings.group, settings.group),
        *(
            one
            for name in ("noises", "errors_of_noises")
            for one in _complete(name, settings.noises, settings.noises)
        ),
        *(
            one
            for name in settings.metrics
            for one in _complete(f"{name}_values", settings.group, settings.group)
        ),
        *(one for name in settings.metrics for one in _range(name, -LARGEST, LARGEST)),
        *_range("reference_error", 0, LARGEST),
    ]
    _validate(
        [Suite("groups", f"data/rollouts/{part}", table, ["id"], expectations)],
        root,
        "rollout",
        part,
    )


def _rows_but(count: int, skipped: dict[str, str]) -> Expectation:
    """Exactly `count` rows; the page lists the skipped pairs with their reasons."""
    named = html.escape(
        "; ".join(f"{id_}: {reason}" for id_, reason in list(skipped.items())[:NAMED]), quote=False
    )
    more = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    says = (
        f"A group for each of {count} pairs; {len(skipped)} left out ({named}{more})."
        if skipped
        else None
    )
    rows = expect_rows(count, count)
    return Expectation(rows.kind, {**rows.arguments, "description": says})


def _reduce(operation: np.ufunc, start: float, column: pa.ChunkedArray) -> pa.Array:
    """Reduce each row of a column of (nested) lists to one number; NaN if the row contains one.
    Empty rows give `start`.
    """
    values = column.combine_chunks()
    rows = np.arange(len(values))
    # Flatten one level of lists at a time; `rows` maps each value to its row.
    while pa.types.is_list(values.type):
        rows = rows[pc.list_parent_indices(values).to_numpy()]
        values = pc.list_flatten(values)
    reduced = np.full(len(column), start)
    with np.errstate(invalid="ignore"):
        operation.at(reduced, rows, values.to_numpy(zero_copy_only=False))
    return pa.array(reduced)


def _identity(column: str) -> list[Expectation]:
    """The column has no nulls and no duplicates."""
    return [expect("values_to_not_be_null", column), expect("values_to_be_unique", column)]


def _complete(column: str, least: float, most: float) -> list[Expectation]:
    """No nulls, and every value between `least` and `most`."""
    between = expect("values_to_be_between", column, min_value=least, max_value=most)
    return [expect("values_to_not_be_null", column), between]


def _range(name: str, least: float, most: float) -> list[Expectation]:
    """The columns `<name>_least` and `<name>_most` are complete and between `least` and `most`."""
    return [
        one
        for column in (f"{name}_least", f"{name}_most")
        for one in _complete(column, least, most)
    ]


def _true(column: str, says: str) -> list[Expectation]:
    """Every value of the column is True."""
    return [expect("values_to_be_in_set", column, says, value_set=[True])]


def _with(table: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _read(folder: Path, columns: list[str], pattern: str = "*.parquet", but: str = "") -> pa.Table:
    """`columns` of all files in `folder` that match `pattern`, except the file named `but`."""
    paths = sorted(path for path in folder.glob(pattern) if path.name != but)
    if not paths:
        raise ValueError(
            f"{folder / pattern}: no such file; run the stage that writes it, or `dvc repro`"
        )
    return pa.concat_tables(_read_file(path, columns) for path in paths)


def _read_file(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: damaged ({reason}); run the stage that writes it again"
        ) from error


def _validate(suites: Iterable[Suite], root: Path, *stage: str) -> None:
    """Validate the suites of a stage (and part), with the Data Docs in their usual places."""
    docs = root.joinpath("reports/data-docs", *stage)
    validate(list(suites), docs, root.joinpath("work", stage[0], "data-docs", *stage[1:]))
