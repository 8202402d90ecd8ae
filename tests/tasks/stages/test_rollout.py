"""The stage rollout and the files it leaves: parts, pairs without a group, and what `finetune`
refuses to read.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.preference import rollout as core
from gdpo.preference.group import Group
from tasks.files import chunks as rollout_chunks
from tasks.files.rollouts import chunk_ranks
from tasks.files.selection import Selected
from tasks.stages import rollout
from tests import tiny
from tests.tasks.stages.rollouts import FILE, PAIRS, opened, other_reference, parted, reselect


@pytest.fixture
def root(after_rollout: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(after_rollout, tmp_path / "root", symlinks=True))


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """Every stored row by its id."""
    tables = [
        pq.read_table(path) for path in sorted((root / "data/rollouts").glob("[0-9]*/*.parquet"))
    ]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def metadata(path: Path) -> dict[str, Any]:
    found = pq.read_schema(path).metadata
    return {
        key.decode(): json.loads(value) for key, value in found.items() if key != b"ARROW:schema"
    }


def test_one_file_with_the_groups_of_the_manifest_in_its_order(root: Path) -> None:
    order = ["pair3", "pair0", "pair4"]
    pq.write_table(pa.table({"id": order}), root / "data/selected/manifest.parquet")
    logged: list[tuple[int, dict[str, float]]] = []
    rollout.run(
        tiny.settings(), root, Hooks(log=lambda step, values: logged.append((step, values)))
    )
    table = pq.read_table(root / FILE)
    assert table["id"].to_pylist() == order
    first = table["metrics"].to_pylist()[:2]
    assert [(step, values["of"], values["skipped"]) for step, values in logged] == [
        (1, 3, 0),
        (2, 3, 0),
    ]
    assert logged[0][1]["psnr_y"] == pytest.approx(np.mean([group["psnr_y"] for group in first]))
    assert not {"reward", "advantage"} & set(table.schema.names)
    assert [path.name for path in (root / "data").rglob(".*")] == [] and not (
        root / "work/rollout/00/chunks"
    ).exists()
    assert (root / "reports/data-docs/rollout/00/groups.html").is_file()


@pytest.mark.parametrize("parts", [2, 3])
def test_the_union_of_any_number_of_parts_has_the_same_bytes(
    after_rollout: Path, root: Path, parts: int
) -> None:
    shutil.rmtree(root / "data/rollouts")
    config = parted(parts)
    for part in reversed(config.rollout.parts):
        rollout.run(config, root, Hooks(), part)
    assert rows(root) == rows(after_rollout) and len(rows(root)) == PAIRS
    one, many = list(opened(tiny.settings(), after_rollout)), list(opened(config, root))
    assert (
        [group.id for group in one]
        == [group.id for group in many]
        == [f"pair{i}" for i in range(PAIRS)]
    )
    assert all(torch.equal(a.latents.mean, b.latents.mean) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize(
    ("count", "batch", "parts"), [(7, 6, 1), (7, 6, 3), (8, 1, 2), (2, 6, 4), (13, 20, 2)]
)
def test_every_rank_is_in_one_part_and_a_chunk_fills_a_forward_pass(
    count: int, batch: int, parts: int
) -> None:
    settings = parted(parts, batch=batch).rollout
    whole = chunk_ranks(count, parted(1, batch=batch).rollout, "00")
    shares = [chunk_ranks(count, settings, part) for part in settings.parts]
    assert sorted(rank for share in shares for chunk in share.values() for rank in chunk) == list(
        range(count)
    )
    assert {chunk: places for share in shares for chunk, places in share.items()} == whole
    assert all(chunk % parts == k for k, share in enumerate(shares) for chunk in share)


def test_a_rollout_does_not_depend_on_the_batch_size(after_rollout: Path, root: Path) -> None:
    rollout.run(tiny.settings(rollout={"batch": 3}), root, Hooks())
    for id_, row in rows(after_rollout).items():
        assert row["metrics"]["psnr_y"] == pytest.approx(
            rows(root)[id_]["metrics"]["psnr_y"], rel=1e-4
        )
    # The batch size changes no result, so these are accepted.
    assert len(opened(tiny.settings(), root)) == PAIRS


def test_pictures_of_several_sizes_are_not_batched_together(root: Path) -> None:
    pairs = [tiny.pair(0), tiny.pair(1, side=64), tiny.pair(2)]
    write_shards(root / "data/shards/train", pairs, 1.0)
    pq.write_table(
        pa.table({"id": [pair.id for pair in pairs]}), root / "data/selected/manifest.parquet"
    )
    rollout.run(tiny.settings(rollout={"batch": 9}), root, Hooks())
    assert pq.read_table(root / FILE)["shape"].to_pylist() == [
        [3, 4, 8, 8],
        [3, 4, 16, 16],
        [3, 4, 8, 8],
    ]


def test_a_part_nobody_knows_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"^rollout.parts has no part '02'; there is 00, 01$"):
        rollout.run(parted(2), root, Hooks(), "02")


def test_a_metric_without_its_weights_is_named_before_the_work(root: Path) -> None:
    config = tiny.settings(rollout={"metrics": ["psnr_y", "ssim_y", "psnr"]})
    with pytest.raises(ValueError, match="psnr"):
        rollout.run(config, root, Hooks())


# Stopped, and going on.
def stopping(after: int) -> tuple[Hooks, list[int]]:
    """Hooks that ask to stop after so many chunks, and the steps they saw."""
    seen: list[int] = []
    return Hooks(
        log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) >= after
    ), seen


def test_stopped_it_goes_on_with_the_next_chunk(
    after_rollout: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.tree(root / "data", root / "reports")
    made: list[str] = []

    def noted(model: Any, pairs: list[Any], config: Config) -> Any:
        made.extend(pair.id for pair in pairs)
        return core.rollout(model, pairs, config)

    monkeypatch.setattr(rollout_chunks, "rollout", noted)
    for chunks, step in ((1, 2), (2, 4)):
        hooks, _ = stopping(chunks)
        with pytest.raises(Stopped) as stopped:
            rollout.run(tiny.settings(), root, hooks)
        assert stopped.value.step == step and tiny.tree(root / "data", root / "reports") == before
    # A damaged one is made again.
    os.truncate(root / "work/rollout/00/chunks/00000001.parquet", 100)
    shutil.rmtree(root / "data/rollouts")
    hooks, seen = stopping(99)
    rollout.run(tiny.settings(), root, hooks)
    assert made == ["pair0", "pair1", "pair2", "pair3", "pair2", "pair3", "pair4", "pair5", "pair6"]
    assert seen == [1, 3, 5, 6]  # those that were kept are logged again, so the log is whole
    assert (root / FILE).read_bytes() == (after_rollout / FILE).read_bytes()


def reseed(root: Path) -> Config:
    return tiny.settings().model_copy(update={"seed": 1})


def rebatch(root: Path) -> Config:
    return tiny.settings(rollout={"batch": 3})


def reshard(root: Path) -> Config:
    write_shards(root / "data/shards/train", (tiny.pair(i) for i in range(PAIRS)), 1.0)
    return tiny.settings()


def recode(root: Path) -> Config:
    return tiny.settings()


@pytest.mark.parametrize("change", [reseed, rebatch, reselect, reshard, other_reference, recode])
def test_chunks_of_another_run_are_not_taken(
    root: Path, change: Callable[[Path], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, _ = stopping(3)
    with pytest.raises(Stopped):
        rollout.run(tiny.settings(), root, hooks)
    config, (hooks, seen) = change(root), stopping(1)
    if change is recode:
        monkeypatch.setattr("tasks.run.fingerprint.made_by", lambda _: {"code": "another"})
    with pytest.raises(Stopped):
        rollout.run(config, root, hooks)
    assert len(seen) == 1 and len(list((root / "work/rollout/00/chunks").glob("*.parquet"))) == 1


# Pairs that give no group.
def without_scores(monkeypatch: pytest.MonkeyPatch, *indices: int) -> None:
    """The metric psnr_y is NaN for the second candidate of these pairs."""
    hr = {index: to_tensor(tiny.pair(index).hr) for index in indices}

    def scored(
        names: list[str], image: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        found = score(names, image, reference)
        for row in range(1, len(reference), 3):
            if any(torch.equal(reference[row], picture) for picture in hr.values()):
                found["psnr_y"][row] = torch.nan
        return found

    monkeypatch.setattr(core, "score_computed", scored)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_pair_without_finite_scores_is_left_out_by_name(
    after_rollout: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parts: int,
) -> None:
    without_scores(monkeypatch, 4)
    logged: list[dict[str, float]] = []
    rollout.run(parted(parts), root, Hooks(log=lambda _, values: logged.append(values)))
    reason = "metric psnr_y of its candidates is not finite"
    assert capsys.readouterr().err == f"gdpo-sr: rollout 00: pair4 is left out, {reason}\n"
    assert max(values["skipped"] for values in logged) == 1
    assert metadata(root / FILE)["skipped"] == {"pair4": reason}
    page = (root / "reports/data-docs/rollout/00/groups.html").read_text()
    assert f"1 left out (pair4: {reason})" in page
    expected = rows(after_rollout)
    del expected["pair4"]
    assert rows(root) == expected
    assert "pair4" not in [group.id for group in opened(parted(parts), root)]


def test_an_error_that_is_not_finite_leaves_a_pair_out_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = core.by_reference

    def broken(model: Any, group: Group, *args: Any) -> Any:
        group, errors = judged(model, group, *args)
        return group, errors * (float("nan") if group.id == "pair1" else 1)

    monkeypatch.setattr(core, "by_reference", broken)
    rollout.run(tiny.settings(), root, Hooks())
    assert list(metadata(root / FILE)["skipped"]) == ["pair1"]
    assert len(opened(tiny.settings(), root)) == PAIRS - 1


def test_no_group_at_all_is_an_error_and_nothing_is_kept_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (root / FILE).read_bytes()
    without_scores(monkeypatch, *range(PAIRS))
    with pytest.raises(
        ValueError,
        match=r"^rollout 00: all of its 7 pairs were left out; pair0: metric psnr_y .*not finite",
    ):
        rollout.run(tiny.settings(), root, Hooks())
    assert (root / FILE).read_bytes() == before and not list((root / "work").rglob("*.parquet"))


def test_selected_pairs_are_read_by_rank_or_by_id(root: Path) -> None:
    pq.write_table(
        pa.table({"id": ["pair3", "pair0", "pair4"]}), root / "data/selected/manifest.parquet"
    )
    by_rank, by_id = Selected(root), Selected(root, by_id=True)
    assert [pair.id for pair in by_rank] == ["pair3", "pair0", "pair4"] and len(by_rank) == 3
    assert [pair.id for pair in by_id[0:2]] == ["pair0", "pair3"]
    assert by_rank.fingerprint() != by_id.fingerprint()
