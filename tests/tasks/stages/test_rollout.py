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
from safetensors.torch import load_file, save_file

from gdpo.config import Config
from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.preference import rollout as core
from gdpo.preference.group import Group
from tasks.files import chunks as rollout_chunks
from tasks.files.rollouts import Rollouts, header, ranks
from tasks.files.selection import Selected
from tasks.stages import finetune, pretrain, rollout
from tests import tiny

PAIRS = 7
FILE = "data/rollouts/00/00000.parquet"


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a NAOSD and the groups of seven pairs; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("finished") / "root", tiny_base, PAIRS + 1)
    pretrain.run(tiny.settings(pretrain={"steps": 1}), root, Hooks())
    rollout.run(tiny.settings(), root, Hooks())
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))


def parted(count: int, **settings: Any) -> Config:
    return tiny.settings(rollout={"parts": [f"{part:02d}" for part in range(count)], **settings})


def opened(config: Config, root: Path) -> Rollouts:
    """The rollout set as finetune opens it."""
    return Rollouts(config, root, header(config, root))


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
    finished: Path, root: Path, parts: int
) -> None:
    shutil.rmtree(root / "data/rollouts")
    config = parted(parts)
    for part in reversed(config.rollout.parts):
        rollout.run(config, root, Hooks(), part)
    assert rows(root) == rows(finished) and len(rows(root)) == PAIRS
    one, many = list(opened(tiny.settings(), finished)), list(opened(config, root))
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
    whole = ranks(count, parted(1, batch=batch).rollout, "00")
    shares = [ranks(count, settings, part) for part in settings.parts]
    assert sorted(rank for share in shares for chunk in share.values() for rank in chunk) == list(
        range(count)
    )
    assert {chunk: places for share in shares for chunk, places in share.items()} == whole
    assert all(chunk % parts == k for k, share in enumerate(shares) for chunk in share)


def test_a_rollout_does_not_depend_on_the_batch_size(finished: Path, root: Path) -> None:
    rollout.run(tiny.settings(rollout={"batch": 3}), root, Hooks())
    for id_, row in rows(finished).items():
        assert row["metrics"]["psnr_y"] == pytest.approx(
            rows(root)[id_]["metrics"]["psnr_y"], rel=1e-4
        )
    assert (
        len(opened(tiny.settings(), root)) == PAIRS
    )  # made with another batch, and the same all the same


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
    finished: Path, root: Path, monkeypatch: pytest.MonkeyPatch
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
    os.truncate(
        root / "work/rollout/00/chunks/00000001.parquet", 100
    )  # a damaged one is made again
    shutil.rmtree(root / "data/rollouts")
    hooks, seen = stopping(99)
    rollout.run(tiny.settings(), root, hooks)
    assert made == ["pair0", "pair1", "pair2", "pair3", "pair2", "pair3", "pair4", "pair5", "pair6"]
    assert seen == [1, 3, 5, 6]  # those that were kept are logged again, so the log is whole
    assert (root / FILE).read_bytes() == (finished / FILE).read_bytes()


def reseed(root: Path) -> Config:
    return tiny.settings().model_copy(update={"seed": 1})


def rebatch(root: Path) -> Config:
    return tiny.settings(rollout={"batch": 3})


def reselect(root: Path) -> Config:
    pq.write_table(pa.table({"id": ["pair1", "pair0"]}), root / "data/selected/manifest.parquet")
    return tiny.settings()


def reshard(root: Path) -> Config:
    write_shards(root / "data/shards/train", (tiny.pair(i) for i in range(PAIRS)), 1.0)
    return tiny.settings()


def other_reference(root: Path) -> Config:
    card = root / "models/naosd/model.json"
    card.write_text(card.read_text().replace('"t_diff": 100', '"t_diff": 101'))
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
    finished: Path,
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
    expected = rows(finished)
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


# What finetune refuses.


def set_seed(root: Path) -> Config:
    return tiny.settings().model_copy(update={"seed": 1})


def set_metrics(root: Path) -> Config:
    return tiny.settings(rollout={"metrics": ["psnr_y", "ssim_y", "niqe"]})


def set_group(root: Path) -> Config:
    return tiny.settings(rollout={"group": 4})


def set_noise(root: Path) -> Config:
    return tiny.settings(rollout={"noise": "shared"})


def set_input(root: Path) -> Config:
    return tiny.settings(rollout=tiny.OWN_INPUT)


def set_prompt(root: Path) -> Config:
    return tiny.settings(model={"training_prompt": "detailed"})


def set_candidates(root: Path) -> Config:
    return tiny.settings(rollout={"candidates": "guidance"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_reference, r"reference \(models/naosd\) [0-9a-f]{12}, and now it is [0-9a-f]{12}"),
        (set_seed, "seed 0, and now it is 1"),
        (set_prompt, "model.training_prompt sharp, and now it is detailed"),
        (set_group, "rollout.group 3, and now it is 4"),
        (
            set_metrics,
            r'rollout.metrics \["psnr_y", "ssim_y"\], and now it is \["psnr_y", "ssim_y", "niqe"\]',
        ),
        (set_noise, "rollout.noise own, and now it is shared"),
        (set_input, "rollout.input reencoded, and now it is lr"),
        (set_candidates, "rollout.candidates noise, and now it is guidance"),
    ],
)
def test_rollouts_made_otherwise_are_refused_by_name(
    root: Path, change: Callable[[Path], Config], says: str
) -> None:
    config = change(root)
    with pytest.raises(
        ValueError, match=rf"^\S*{FILE}: made with {says}; run the rollout stage again$"
    ):
        finetune.run(config, root, Hooks())
    assert not (root / "models/gdpo").exists()


def test_what_changes_no_group_is_not_asked_for(root: Path) -> None:
    same = tiny.settings(
        rollout={"batch": 9, "parts": ["a", "b"], "sigma": 0.2, "guidance_range": [1.0, 3.0]}
    )
    assert header(same, root) == header(tiny.settings(), root)
    assert len(opened(same, root)) == PAIRS
    action = [
        header(
            tiny.settings(
                rollout={"candidates": "action", "sigma": s}, finetune={"objective": "dance_grpo"}
            ),
            root,
        )
        for s in (0.1, 0.2)
    ]
    assert action[0] != action[1]


def edit(change: Callable[[dict[str, Any]], None], name: str = FILE) -> Callable[[Path], None]:
    """Change the row of pair2, or append what `change` makes of it."""

    def edited(root: Path) -> None:
        table = pq.read_table(root / name)
        found = table.to_pylist()
        change(found[2])
        pq.write_table(pa.Table.from_pylist(found, schema=table.schema), root / name)

    return edited


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update({key: value})


def half(value: float, count: int = 3 * 4 * 8 * 8) -> bytes:
    return np.full(count, value, np.float16).tobytes()


def twice(root: Path) -> None:
    table = pq.read_table(root / FILE)
    pq.write_table(pa.concat_tables([table, table.slice(2, 1)]), root / FILE)


def cut(root: Path) -> None:
    os.truncate(root / FILE, (root / FILE).stat().st_size // 2)


def flip(root: Path) -> None:
    """One bit in the middle of the latents."""
    found = pq.read_metadata(root / FILE).row_group(0)
    columns = {found.column(i).path_in_schema: found.column(i) for i in range(found.num_columns)}
    content = bytearray((root / FILE).read_bytes())
    content[
        columns["latent_mean"].data_page_offset + columns["latent_mean"].total_compressed_size // 2
    ] ^= 1
    (root / FILE).write_bytes(content)


def foreign(root: Path) -> None:
    pq.write_table(pa.table({"id": ["pair0"]}), root / FILE)


def older(root: Path) -> None:
    """The one file of the version before."""
    shutil.copy(root / FILE, root / "data/rollouts/00000.parquet")


def other_columns(root: Path) -> None:
    table = pq.read_table(root / FILE)
    pq.write_table(table.drop_columns(["tags"]), root / FILE)


def gone(root: Path) -> None:
    shutil.rmtree(root / "data/rollouts")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (gone, r"data/rollouts: no rollouts here; run the rollout stage$"),
        (cut, rf"{FILE}: damaged rollouts \(.*\); run the rollout stage again$"),
        (flip, rf"{FILE}: damaged rollouts \(.*\); run the rollout stage again$"),
        (
            foreign,
            rf"{FILE}: no rollouts of this version; delete it and run the rollout stage again$",
        ),
        (older, r"data/rollouts/00000.parquet: belongs to no part \(00\); delete it$"),
        (other_columns, rf"{FILE}: other columns than rollouts have"),
        (twice, rf"{FILE}: group pair2 occurs twice; run the rollout stage again$"),
        (edit(put("prompt", None)), rf"{FILE}: prompt is missing in a row"),
        (edit(put("latent_mean", b"123")), rf"{FILE}: group pair2: damaged latents"),
        (edit(put("latent_mean", half(float("nan")))), rf"{FILE}: group pair2: latents.mean .*NaN"),
        (
            edit(put("latent_std", half(-1.0))),
            rf"{FILE}: group pair2: latents.std must not be negative",
        ),
        (edit(put("detail_share", float("nan"))), rf"{FILE}: group pair2: detail_share .*nan"),
        (edit(put("seeds", [1, 2])), rf"{FILE}: group pair2: .*length"),
        (
            edit(lambda row: row["noise_seeds"].pop()),
            rf"{FILE}: group pair2 is not of 3 candidates and 2 noises",
        ),
        (
            edit(lambda row: row["metrics"]["ssim_y"].__setitem__(1, float("nan"))),
            rf"{FILE}: group pair2: ssim_y .*not finite",
        ),
        (
            edit(lambda row: row["reference_error"][1].__setitem__(1, float("inf"))),
            rf"{FILE}: group pair2: reference_error .*not finite",
        ),
    ],
)
def test_damage_is_named_and_never_trained_on(
    root: Path, change: Callable[[Path], None], says: str
) -> None:
    change(root)
    with pytest.raises(ValueError, match=says) as error:
        finetune.run(tiny.settings(), root, Hooks())
    assert "\n" not in str(error.value) and not (root / "models/gdpo").exists()


def test_another_text_encoder_is_another_reference(finished: Path, root: Path) -> None:
    """The card of a model holds the hashes of UNet and VAE; the stored errors depend on the
    embedded prompt too.
    """
    base = (root / "base").resolve()
    (root / "base").unlink()
    shutil.copytree(base, root / "base")
    weights = next((root / "base/text_encoder").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, weights)
    with pytest.raises(
        ValueError,
        match=r"made with text encoder or tokenizer \(model.base\) \w+, and now it is .*again$",
    ):
        finetune.run(tiny.settings(), root, Hooks())


def test_scores_by_another_version_of_a_metric_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdpo.metrics.score._origin", lambda name: "pyiqa 9.9")
    with pytest.raises(
        ValueError,
        match=rf"{FILE}: psnr_y was computed by gdpo, and here it is pyiqa 9.9; run the rollout",
    ):
        finetune.run(tiny.settings(), root, Hooks())


def test_parts_must_be_those_of_one_run(finished: Path, root: Path) -> None:
    config = parted(2)
    shutil.rmtree(root / "data/rollouts")
    rollout.run(config, root, Hooks(), "01")
    with pytest.raises(
        ValueError,
        match=r"data/rollouts: part 00 is missing; run it: python -m tasks rollout --part 00$",
    ):
        opened(config, root)
    shutil.copytree(finished / "data/rollouts/00", root / "data/rollouts/00")
    with pytest.raises(
        ValueError,
        match=r"01/00000.parquet: of another rollout set than .*00/00000.parquet \(other parts\)",
    ):
        opened(config, root)
    # A worker with other weights of a metric under the same name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdpo.metrics.score._origin", lambda name: f"pyiqa 9.9, {name}")
        rollout.run(config, root, Hooks(), "00")
    with pytest.raises(
        ValueError,
        match=r"01/00000.parquet: of another rollout set than .* \(other metrics\); run all parts",
    ):
        opened(config, root)
    reselect(root)
    rollout.run(config, root, Hooks(), "00")
    with pytest.raises(
        ValueError,
        match=r"01/00000.parquet: of another rollout set than .* \(other selected\); run all parts",
    ):
        opened(config, root)


def test_an_empty_part_is_fine(root: Path) -> None:
    """More parts than chunks."""
    reselect(root)
    config = parted(3)
    shutil.rmtree(root / "data/rollouts")
    rollout.run(config, root, Hooks())
    assert pq.read_metadata(root / "data/rollouts/02/00000.parquet").num_rows == 0
    assert [group.id for group in opened(config, root)] == ["pair0", "pair1"]


def test_selected_pairs_are_read_by_rank_or_by_id(root: Path) -> None:
    pq.write_table(
        pa.table({"id": ["pair3", "pair0", "pair4"]}), root / "data/selected/manifest.parquet"
    )
    by_rank, by_id = Selected(root), Selected(root, by_id=True)
    assert [pair.id for pair in by_rank] == ["pair3", "pair0", "pair4"] and len(by_rank) == 3
    assert [pair.id for pair in by_id[0:2]] == ["pair0", "pair3"]
    assert by_rank.fingerprint() != by_id.fingerprint()
