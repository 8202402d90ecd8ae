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

from gdpo.config import Degrade, Rollout, Select
from gdpo.config.fields import EVALUATION
from gdpo.data.selection import REASONS, SELECTED, UNSCORED
from tasks import paths
from tasks.checks.columns import (
    complete,
    identity,
    in_range,
    is_true,
    read_columns,
    reduce_rows,
    with_columns,
)
from tasks.checks.expectations import Expectation, Suite, expect, expect_rows, validate
from tasks.files.selection import MANIFEST, SCORES

SHA256 = "^[0-9a-f]{64}$"
LARGEST = 1e6  # bound on the absolute value of any metric
HELD_OUT_LIST = paths.photo_list(EVALUATION)
NAMED = 20  # skipped pairs listed on the page


def check_pairs(folder: Path, part: str, root: Path, settings: Degrade) -> None:
    """Check the shards in `folder`, which are those of `part` ("evaluation" or a training part).

    Errors, here and below: ValueError with the first failed expectation, or naming a missing or
    damaged file.
    """
    table = read_columns(folder, ["id", "source", "box", "detail_share", "tags", "sha256"])
    photos = read_columns(root, ["name", "height", "width"], paths.photo_list(part))
    top, left, height, width = (pc.list_element(table["box"], i) for i in range(4))
    # The row of each patch's photograph in the list; null, and so a failure, if it is not listed.
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
        *identity("id"),
        *is_true("source_is_listed", "The photograph must be in the list that `index` wrote."),
        *is_true("box_is_inside", "The patch must lie inside its photograph."),
        *(expect("values_to_be_between", name, min_value=0) for name in ("top", "left")),
        *(
            expect("values_to_be_between", name, min_value=side, max_value=side)
            for name in ("height", "width")
        ),
        *complete("detail_share", 0, 1),
        expect("values_to_not_be_null", "sha256"),
        expect("values_to_match_regex", "sha256", regex=SHA256),
        _tags(part != EVALUATION and settings.tags != "none"),
    ]
    table = with_columns(
        table.drop_columns(["box"]), **columns, box_is_inside=pc.fill_null(inside, False)
    )
    shards = paths.HELD_OUT if part == EVALUATION else f"{paths.TRAIN}/{part}"
    _validate(
        [Suite("pairs", shards, table, ["id", "source"], expectations)], root, "degrade", part
    )


def _tags(tagged: bool) -> Expectation:
    """Every pair has tags (possibly empty text), or no pair has."""
    return expect("values_to_not_be_null" if tagged else "values_to_be_null", "tags")


def check_selection(folder: Path, root: Path, rule: Select) -> None:
    """Check scores.parquet and manifest.parquet in `folder`."""
    scores = read_columns(
        folder, ["id", "source", "score", "detail_share", "reason", "rank"], SCORES
    )
    manifest = read_columns(folder, ["id", "score", "detail_share"], MANIFEST)
    photos = read_columns(
        root, ["name", "sha256"], paths.photo_list("*"), but=Path(HELD_OUT_LIST).name
    )
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
    table = with_columns(
        scores,
        source_is_listed=pc.is_in(scores["source"], value_set=photos["name"].combine_chunks()),
        rank_fits_reason=pc.equal(scores["rank"].is_valid(), selected),
        score_fits_reason=pc.invert(pc.and_(unscored, pc.is_finite(scores["score"]))),
    )
    expectations = [
        expect_rows(1),
        *identity("id"),
        *is_true("source_is_listed", "The photograph must be in a list that `index` wrote."),
        expect("values_to_be_in_set", "reason", value_set=list(REASONS)),
        *is_true("rank_fits_reason", "Those selected have a rank, the others none."),
        *is_true("score_fits_reason", "A patch said to have no score has none."),
        expect("values_to_be_unique", "rank"),
        expect("values_to_be_between", "rank", min_value=0, max_value=pc.sum(selected).as_py() - 1),
        *complete("detail_share", 0, 1),
    ]
    return Suite("scores", f"{paths.SELECTED}/{SCORES}", table, ["id", "source"], expectations)


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
    held_out = read_columns(root, ["sha256"], HELD_OUT_LIST)["sha256"]
    evaluation = read_columns(root / paths.HELD_OUT, ["id"])["id"]
    counts = source.value_counts()
    of_photo = counts.field("counts").take(pc.index_in(source, value_set=counts.field("values")))
    # Element-wise comparison needs equal lengths; if they differ, all rows fail.
    as_scored = np.zeros(len(manifest), bool)
    if len(manifest) == len(ranked):
        as_scored = np.array(pc.equal(manifest["id"], ranked["id"]))
    table = with_columns(
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
        *identity("id"),
        *is_true(
            "is_in_rank_order", "The rows are those with a rank in scores.parquet, in that order."
        ),
        *complete("score", -LARGEST, LARGEST),
        *complete("detail_share", rule.min_detail, 1),
        *complete("patches_of_photograph", 1, rule.max_per_photo),
        expect("values_to_not_be_null", "photograph_sha256"),
        expect("values_to_match_regex", "photograph_sha256", regex=SHA256),
        *is_true("patch_is_new", "No patch is in both training and evaluation."),
        *is_true(
            "photograph_is_new",
            "No photograph (by its content) is in both training and evaluation.",
        ),
    ]
    return Suite("manifest", f"{paths.SELECTED}/{MANIFEST}", table, ["id", "source"], expectations)


def check_rollouts(
    folder: Path, part: str, root: Path, settings: Rollout, selected: list[str]
) -> None:
    """Check the groups of one part in `folder`. selected: the ids of the part's pairs, in order."""
    read = read_columns(
        folder,
        ["id", "prompt", "detail_share", "seeds", "metrics", "noise_seeds", "reference_error"],
    )
    skipped: dict[str, str] = json.loads((read.schema.metadata or {}).get(b"skipped", b"{}"))
    wanted = [id_ for id_ in selected if id_ not in skipped]
    table = with_columns(
        read.select(["id", "prompt", "detail_share"]),
        is_selected=pc.is_in(read["id"], value_set=pa.array(wanted, pa.string())),
        candidates=pc.list_value_length(read["seeds"]),
        noises=pc.list_value_length(read["noise_seeds"]),
        errors_of_noises=pc.list_value_length(read["reference_error"]),
    )
    values = {name: pc.struct_field(read["metrics"], name) for name in settings.metrics}
    table = with_columns(
        table, **{f"{name}_values": pc.list_value_length(column) for name, column in values.items()}
    )
    # GX cannot look into lists. The least and the greatest value of each row bound all of them, and
    # a NaN among them stays NaN, which is in no range.
    for name, column in {**values, "reference_error": read["reference_error"]}.items():
        least, most = (
            reduce_rows(np.minimum, np.inf, column),
            reduce_rows(np.maximum, -np.inf, column),
        )
        table = with_columns(table, **{f"{name}_least": least, f"{name}_most": most})
    expectations = [
        _rows_but(len(wanted), skipped),
        *identity("id"),
        *is_true(
            "is_selected",
            "The group must be of a pair that is this part's, and that is not said to be left out.",
        ),
        expect("values_to_not_be_null", "prompt"),
        *complete("detail_share", 0, 1),
        *complete("candidates", settings.group, settings.group),
        *(
            one
            for name in ("noises", "errors_of_noises")
            for one in complete(name, settings.noises, settings.noises)
        ),
        *(
            one
            for name in settings.metrics
            for one in complete(f"{name}_values", settings.group, settings.group)
        ),
        *(one for name in settings.metrics for one in in_range(name, -LARGEST, LARGEST)),
        *in_range("reference_error", 0, LARGEST),
    ]
    _validate(
        [Suite("groups", f"{paths.ROLLOUTS}/{part}", table, ["id"], expectations)],
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


def _validate(suites: Iterable[Suite], root: Path, *stage: str) -> None:
    """Validate the suites of a stage (and part), with the Data Docs in their usual places."""
    docs = root.joinpath(paths.DATA_DOCS, *stage)
    failed = paths.work(root, stage[0], "data-docs", *stage[1:])
    report = "../" * (1 + len(stage)) + "pages/data.html"
    validate(list(suites), docs, failed, report)
