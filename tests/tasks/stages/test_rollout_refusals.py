"""Rollout files that are damaged, or were made with other parameters, are refused by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from gdpo.config import Config
from gdpo.hooks import Hooks
from tasks.files.rollouts import header
from tasks.stages import finetune, rollout
from tests import tiny
from tests.tasks.stages.rollouts import FILE, PAIRS, opened, other_reference, parted, reselect


@pytest.fixture
def root(after_rollout: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(after_rollout, tmp_path / "root", symlinks=True))


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


def test_another_text_encoder_is_another_reference(after_rollout: Path, root: Path) -> None:
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


def test_parts_must_be_those_of_one_run(after_rollout: Path, root: Path) -> None:
    config = parted(2)
    shutil.rmtree(root / "data/rollouts")
    rollout.run(config, root, Hooks(), "01")
    with pytest.raises(
        ValueError,
        match=r"data/rollouts: part 00 is missing; run it: python -m tasks rollout --part 00$",
    ):
        opened(config, root)
    shutil.copytree(after_rollout / "data/rollouts/00", root / "data/rollouts/00")
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
