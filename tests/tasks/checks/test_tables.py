"""The suites: whole tables pass, and each kind of damage is found by the expectation that is for
it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.config import Select
from gdpo.data.selection import choose, manifest
from gdpo.data.shards import Box, Pair, write_shards
from tasks.checks.tables import check_pairs, check_rollouts, check_selection
from tasks.files.photographs import SCHEMA
from tests import tiny

CONFIG = tiny.settings()
RULE = Select(count=6, score="niqe", min_detail=0.1, max_per_photo=2, min_hash_distance=0)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _photos(root: Path, part: str, names: list[str]) -> None:
    (root / "data/photos").mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "name": n,
            "source": "s",
            "file": n,
            "resize": None,
            "sha256": _digest(n),
            "height": 64,
            "width": 48,
        }
        for n in names
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), root / f"data/photos/{part}.parquet")


def _pairs(photos: list[str]) -> list[Pair]:
    """Three of each photograph."""
    hr = np.zeros((32, 32, 3), np.uint8)
    return [
        Pair(f"{p}-{i}", p, Box(8 * i, 4 * i, 32, 32), hr, hr[::4, ::4], {}, 0.5)
        for p in photos
        for i in range(3)
    ]


def _candidates(id_: str) -> dict[str, Any]:
    metrics = {"psnr_y": [20.0, 21.0, 22.0], "ssim_y": [0.5, 0.6, 0.7]}
    return {
        "id": id_,
        "prompt": "",
        "detail_share": 0.4,
        "metrics": metrics,
        "seeds": [1, 2, 3],
        "noise_seeds": [[4, 5, 6], [7, 8, 9]],
        "reference_error": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Shards, lists, a selection and rollouts that pass."""
    trained, held_out = ["a", "b", "c"], ["x", "y"]
    _photos(tmp_path, "00", trained)
    _photos(tmp_path, "evaluation", held_out)
    write_shards(tmp_path / "data/shards/train/00", _pairs(trained), 1.0)
    write_shards(tmp_path / "data/shards/evaluation", _pairs(held_out), 1.0)
    pairs = _pairs(trained)
    patches = pa.table(
        {
            "id": [p.id for p in pairs],
            "source": [p.source for p in pairs],
            "score": np.arange(len(pairs), dtype=float),
            "detail_share": [0.05] + [0.5] * (len(pairs) - 1),
            "hash": pa.array(range(len(pairs)), pa.uint64()),
        }
    )
    scores = choose(patches, RULE, higher_is_better=False)
    for folder in ("selected", "rollouts/00"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    pq.write_table(scores, tmp_path / "data/selected/scores.parquet")
    pq.write_table(manifest(scores), tmp_path / "data/selected/manifest.parquet")
    groups = [_candidates(id_) for id_ in manifest(scores)["id"].to_pylist()]
    pq.write_table(pa.Table.from_pylist(groups), tmp_path / FILES["rollout"])
    return tmp_path


def _selected(root: Path) -> list[str]:
    ids: list[str] = pq.read_table(root / FILES["manifest"])["id"].to_pylist()
    return ids


CHECKS = {
    "degrade": lambda root: check_pairs(root / "data/shards/train/00", "00", root, CONFIG.degrade),
    "held out": lambda root: check_pairs(
        root / "data/shards/evaluation", "evaluation", root, CONFIG.degrade
    ),
    "select": lambda root: check_selection(root / "data/selected", root, RULE),
    "rollout": lambda root: check_rollouts(
        root / "data/rollouts/00", "00", root, CONFIG.rollout, _selected(root)
    ),
}
FILES = {
    "degrade": "data/shards/train/00/00000.parquet",
    "scores": "data/selected/scores.parquet",
    "manifest": "data/selected/manifest.parquet",
    "rollout": "data/rollouts/00/00000.parquet",
}


@pytest.mark.parametrize(
    ("stage", "pages"),
    [
        ("degrade", "degrade/00/pairs.html"),
        ("held out", "degrade/evaluation/pairs.html"),
        ("select", "select/manifest.html"),
        ("rollout", "rollout/00/groups.html"),
    ],
)
def test_whole_tables_pass_and_get_their_pages(root, stage, pages):
    CHECKS[stage](root)
    assert (root / "reports/data-docs" / pages).is_file() and not (root / "work").exists()


def _damage(root: Path, table: str, column: str, value: Any, row: int = 1) -> None:
    """Put a value into a cell; None, for the whole table: leave the row out."""
    path = root / FILES[table]
    rows = pq.read_table(path)
    cells = rows.to_pylist()
    if column:
        cells[row][column] = value
    else:
        del cells[row]
    fields = [field.with_nullable(True) for field in rows.schema]
    pq.write_table(pa.Table.from_pylist(cells, schema=pa.schema(fields)), path)


def _metrics(**changes: list[float]) -> dict[str, list[float]]:
    return {**_candidates("")["metrics"], **changes}


@pytest.mark.parametrize(
    ("stage", "table", "column", "value", "found"),
    [
        ("degrade", "degrade", "id", "a-0", r"unique\(column=id\) fails in 2 of 9"),
        ("degrade", "degrade", "sha256", "0" * 63, r"regex\(column=sha256"),
        ("degrade", "degrade", "sha256", None, r"not_be_null\(column=sha256"),
        ("degrade", "degrade", "source", "elsewhere", "source_is_listed"),
        ("degrade", "degrade", "box", [40, 0, 32, 32], "box_is_inside"),
        ("degrade", "degrade", "box", [0, 20, 32, 32], "box_is_inside"),
        ("degrade", "degrade", "box", [-1, 0, 32, 32], r"column=top"),
        ("degrade", "degrade", "box", [0, 0, 32, 16], r"column=width"),
        (
            "degrade",
            "degrade",
            "detail_share",
            1.5,
            r"column=detail_share, min_value=0.0, max_value=1.0\) fails in 1 of 9",
        ),
        ("degrade", "degrade", "detail_share", None, r"not_be_null\(column=detail_share"),
        ("degrade", "degrade", "tags", "a cat", r"to_be_null\(column=tags\) fails in 1 of 9"),
        ("select", "scores", "id", "a-0", r"scores\.parquet: .*unique\(column=id"),
        ("select", "scores", "source", "elsewhere", "source_is_listed"),
        ("select", "scores", "reason", "too dull", r"in_set\(column=reason"),
        ("select", "scores", "rank", None, "rank_fits_reason"),
        ("select", "scores", "rank", 2, r"unique\(column=rank"),
        ("select", "scores", "rank", 99, r"column=rank, min_value=0"),
        ("select", "scores", "detail_share", -0.1, r"column=detail_share"),
        ("select", "manifest", "id", "c-2", "is_in_rank_order"),
        ("select", "manifest", "", None, "is_in_rank_order"),
        ("select", "manifest", "score", None, r"not_be_null\(column=score"),
        ("select", "manifest", "detail_share", 0.09, r"column=detail_share, min_value=0.1"),
        ("rollout", "rollout", "id", "a-1", r"unique\(column=id"),
        ("rollout", "rollout", "id", "a-0", "is_selected"),
        (
            "rollout",
            "rollout",
            "",
            None,
            r"row_count.*min_value=6, max_value=6\) fails, observed is 5",
        ),
        ("rollout", "rollout", "prompt", None, r"not_be_null\(column=prompt"),
        ("rollout", "rollout", "seeds", [1, 2], r"column=candidates"),
        ("rollout", "rollout", "noise_seeds", [[1, 2, 3]], r"column=noises"),
        ("rollout", "rollout", "reference_error", [[0.1, 0.2, 0.3]], r"column=errors_of_noises"),
        ("rollout", "rollout", "metrics", _metrics(psnr_y=[20.0, 21.0]), r"column=psnr_y_values"),
        (
            "rollout",
            "rollout",
            "metrics",
            _metrics(psnr_y=[20.0, 21.0, float("inf")]),
            r"column=psnr_y_most",
        ),
        (
            "rollout",
            "rollout",
            "metrics",
            _metrics(ssim_y=[0.1, float("nan"), 0.2]),
            r"column=ssim_y_least",
        ),
        (
            "rollout",
            "rollout",
            "reference_error",
            [[0.1, -0.2, 0.3], [0.3, 0.2, 0.1]],
            r"column=reference_error_least",
        ),
    ],
)
def test_damage_is_found_by_the_expectation_for_it(root, stage, table, column, value, found):
    _damage(root, table, column, value)
    with pytest.raises(ValueError, match=found):
        CHECKS[stage](root)
    assert not (root / "reports").exists()


def test_a_score_beside_the_words_no_score_is_found(root):
    """Of a patch that is not selected."""
    _damage(root, "scores", "reason", "no score", row=0)
    with pytest.raises(ValueError, match="score_fits_reason"):
        CHECKS["select"](root)


def test_a_patch_or_photograph_of_the_evaluation_is_found(root):
    """A patch by its id, a photograph by its content, whatever its name."""
    write_shards(root / "data/shards/evaluation", _pairs(["b"]), 1.0)
    with pytest.raises(
        ValueError, match=r"patch_is_new.* fails in 2 of 6 rows, such as \[id b-0, source b"
    ):
        CHECKS["select"](root)
    write_shards(root / "data/shards/evaluation", _pairs(["x"]), 1.0)
    _photos(root, "evaluation", ["c"])
    with pytest.raises(ValueError, match=r"photograph_is_new.* fails in 2 of 6 rows"):
        CHECKS["select"](root)


def test_quota_and_count_are_those_of_the_rule(root):
    """A selection made with other values does not pass."""
    for changes, found in (
        ({"max_per_photo": 1}, "column=patches_of_photograph"),
        ({"count": 5}, "max_value=5"),
    ):
        with pytest.raises(ValueError, match=found):
            check_selection(root / "data/selected", root, RULE.model_copy(update=changes))
    check_selection(root / "data/selected", root, RULE.model_copy(update={"count": None}))


def test_every_listed_photograph_has_patches_and_an_empty_part_is_fine(root):
    """`index` lists only photographs that hold a patch."""
    _photos(root, "00", [*"abcdefghij"])
    with pytest.raises(ValueError, match=r"min_value=10\) fails, observed is 9"):
        CHECKS["degrade"](root)
    _photos(root, "00", [])
    write_shards(root / "data/shards/train/00", [], 1.0, ["00"])
    CHECKS["degrade"](root)


def test_tags_are_there_when_they_were_asked_for(root):
    """degrade.tags: hr; held-out pairs have none all the same."""
    settings = CONFIG.degrade.model_copy(update={"tags": "hr"})
    with pytest.raises(ValueError, match=r"not_be_null\(column=tags\) fails in 9 of 9"):
        check_pairs(root / "data/shards/train/00", "00", root, settings)
    check_pairs(root / "data/shards/evaluation", "evaluation", root, settings)


def _leave_out(root: Path, skipped: dict[str, str]) -> None:
    path = root / FILES["rollout"]
    pq.write_table(
        pq.read_table(path).replace_schema_metadata({"skipped": json.dumps(skipped)}), path
    )


def test_a_pair_that_is_said_to_be_left_out_has_no_group_and_is_on_the_page(root):
    """Groups and pairs left out are together those of the part."""
    _leave_out(root, {"b-1": "<a pixel> is not finite"})
    with pytest.raises(
        ValueError,
        match=r"row_count.*A group for each of 5 pairs; 1 left out \(b-1: .*observed is 6",
    ):
        CHECKS["rollout"](root)
    ids = _selected(root)
    _damage(root, "rollout", "", None, row=ids.index("b-1"))
    _leave_out(root, {"b-1": "<a pixel> is not finite"})
    CHECKS["rollout"](root)
    page = (root / "reports/data-docs/rollout/00/groups.html").read_text()
    assert "A group for each of 5 pairs; 1 left out (b-1: " in page and "<a pixel>" not in page
    others = ["new", *(id_ for id_ in ids if id_ != "b-1")][:-1]
    with pytest.raises(ValueError, match="is_selected"):
        check_rollouts(root / "data/rollouts/00", "00", root, CONFIG.rollout, [*others, "b-1"])


@pytest.mark.parametrize(
    "missing", ["data/photos/evaluation.parquet", "data/shards/evaluation/00000.parquet"]
)
def test_a_missing_or_damaged_file_is_named(root, missing):
    """What the checks compare with comes from other stages."""
    (root / missing).write_bytes(b"no Parquet")
    with pytest.raises(
        ValueError, match=rf"{missing}: damaged .*run the stage that writes it again"
    ):
        CHECKS["select"](root)
    (root / missing).unlink()
    with pytest.raises(ValueError, match="no such file; run the stage"):
        CHECKS["select"](root)
