"""The stages pretrain, rollout and finetune on tiny inputs: what they write, refuse, and
survive.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gdpo.hooks import Hooks
from gdpo.model.base import WEIGHTS
from gdpo.model.checkpoints import read_adapters
from gdpo.model.naosd import NAOSD
from gdpo.pretrain.start import initial_model
from tasks.run.fingerprint import fingerprint
from tasks.run.training import write_history
from tasks.stages import finetune, pretrain, rollout
from tests import tiny
from tests.tasks.stages.training import CHECKPOINT, ONLINE, STAGES, cut, outputs


@pytest.fixture
def root(after_training: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(after_training, tmp_path / "root", symlinks=True))


def history(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pretrain_leaves_a_model_and_its_history(after_training: Path) -> None:
    assert set(outputs(after_training)) == {
        "models/naosd/model.json",
        "models/naosd/naosd.safetensors",
        "reports/pretrain/metrics.jsonl",
        "reports/data-docs/rollout/00/index.html",
        "reports/data-docs/rollout/00/groups.html",
    }
    assert [
        row["step"] for row in history(after_training / "reports/pretrain/metrics.jsonl")
    ] == list(range(6))
    assert not (after_training / CHECKPOINT["pretrain"]).exists()
    model = NAOSD.from_pretrained(after_training / "models/naosd")
    assert (model.t_add, model.t_diff, model.prompt) == (250, 100, "sharp")
    card = json.loads((after_training / "models/naosd/model.json").read_text())
    weights = (after_training / "models/naosd/naosd.safetensors").read_bytes()
    assert card["base"] == "../../base" and card["adapters"] == [
        {
            "file": "naosd.safetensors",
            "rank": 2,
            "alpha": 4,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
    ]


def test_the_same_parameters_give_the_same_bytes(root: Path) -> None:
    before = outputs(root)
    pretrain.run(tiny.settings(), root, Hooks())
    assert outputs(root) == before


def test_pretrain_starts_from_the_adapters_of_init(root: Path) -> None:
    shutil.copytree(root / "models/naosd", root / "init")
    pretrain.run(
        tiny.settings(pretrain={"init": "init", "steps": 1, "optimizer": {"lr": 1e-12}}),
        root,
        Hooks(),
    )
    before, after = (
        load_file(root / name / "naosd.safetensors") for name in ("init", "models/naosd")
    )
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)


def test_without_steps_the_adapters_of_init_are_the_model(root: Path) -> None:
    """Released weights need no training; the base's own folder stands for fresh adapters."""
    shutil.copytree(root / "models/naosd", root / "init")
    pretrain.run(tiny.settings(pretrain={"init": "init", "steps": 0}), root, Hooks())
    before, after = (root / name / "naosd.safetensors" for name in ("init", "models/naosd"))
    assert after.read_bytes() == before.read_bytes()
    assert history(root / "reports/pretrain/metrics.jsonl") == []
    assert NAOSD.from_pretrained(root / "models/naosd").prompt == "sharp"
    assert initial_model(tiny.settings(pretrain={"init": "base"})) is None
    for init, problem in (("base", "pretrain.steps is 0"), ("models/naosd", "itself writes")):
        with pytest.raises(ValueError, match=problem):
            tiny.settings(pretrain={"init": init, "steps": 0})


def test_kept_weights_are_model_folders(root: Path) -> None:
    pretrain.run(tiny.settings(pretrain={"keep_every": 4}), root, Hooks())
    [kept] = (root / "work/pretrain").glob("kept-*/step-*")
    assert kept.name == "step-000004"
    assert NAOSD.from_pretrained(kept).t_add == 250


def test_an_init_that_does_not_fit_is_named(root: Path) -> None:
    shutil.copytree(root / "models/naosd", root / "init")
    other = {"init": "init", "lora": {"rank": 3, "alpha": 4}}
    with pytest.raises(
        ValueError,
        match=r"pretrain.lora must be \{'rank': 2, 'alpha': 4\}, that of pretrain.init init",
    ):
        pretrain.run(tiny.settings(pretrain=other), root, Hooks())
    with pytest.raises(ValueError, match=r"nowhere/model.json: no such file"):
        pretrain.run(tiny.settings(pretrain={"init": "nowhere"}), root, Hooks())


def test_finetune_leaves_a_chain_and_the_control_another(root: Path) -> None:
    naosd = outputs(root)
    for name in ("gdpo", "control"):
        finetune.run(tiny.settings(), root, Hooks(), name)
        chain = read_adapters(root / "models" / name)
        assert [adapters.name for adapters in chain] == ["naosd", "gdpo"]
        assert not any(key.startswith("vae.") for key in chain[1].tensors)
        rows = history(root / f"reports/finetune/{name}/metrics.jsonl")
        assert rows[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
        assert not list((root / "work").rglob("checkpoint.pt"))
        NAOSD.from_pretrained(root / "models" / name)
    assert {key: value for key, value in outputs(root).items() if key in naosd} == naosd
    trained = [
        load_file(root / "models" / name / "gdpo.safetensors") for name in ("gdpo", "control")
    ]
    assert any(not torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    reference = load_file(root / "models/naosd/naosd.safetensors")
    chained = load_file(root / "models/gdpo/naosd.safetensors")
    assert all(torch.equal(reference[name], chained[name]) for name in reference)


def remove(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        gone = root / path
        gone.unlink() if gone.is_symlink() or gone.is_file() else shutil.rmtree(gone)

    return change


def foreign_manifest(root: Path) -> None:
    pq.write_table(pa.table({"id": ["pair0", "stranger"]}), root / "data/selected/manifest.parquet")


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        (
            pretrain,
            remove("data/shards/train"),
            r"data/shards/train: no shards here; run the degrade stage",
        ),
        (
            pretrain,
            cut("data/shards/train/00000.parquet"),
            r"00000.parquet: damaged or missing shard",
        ),
        (pretrain, remove("base"), r"base/unet/.*safetensors: no such file; model.base must be"),
        (rollout, remove("data/selected"), r"manifest.parquet: no such file; run the select stage"),
        (
            rollout,
            foreign_manifest,
            r"manifest.parquet: patch stranger is not in data/shards/train",
        ),
        (rollout, cut("data/selected/manifest.parquet"), r"manifest.parquet: damaged manifest"),
        (rollout, remove("models/naosd"), r"models/naosd: no such model folder"),
        (rollout, cut("models/naosd/naosd.safetensors"), r"naosd.safetensors: unreadable adapters"),
        (
            finetune,
            remove("data/rollouts"),
            r"data/rollouts: no rollouts here; run the rollout stage",
        ),
    ],
)
def test_missing_and_damaged_inputs_are_named(
    root: Path, stage: Any, change: Callable[[Path], None], says: str
) -> None:
    change(root)
    before = outputs(root)
    with pytest.raises(ValueError, match=says):
        stage.run(tiny.settings(), root, Hooks())
    assert outputs(root) == before


def test_online_trains_on_the_groups_that_the_stage_stores(root: Path) -> None:
    """In the first epoch, and where the stage too made one pair at a time."""
    one = {"batch": 3}
    settings = {"steps": 2, "batch": 2}
    rollout.run(tiny.settings(rollout=one), root, Hooks())
    found = []
    for changes in ({}, ONLINE):
        finetune.run(tiny.settings(rollout=one, finetune={**settings, **changes}), root, Hooks())
        found.append(history(root / "reports/finetune/gdpo/metrics.jsonl"))
    for cached, online in zip(*found, strict=True):
        assert cached == pytest.approx(online, rel=1e-6, abs=1e-6)


def test_online_needs_the_pairs_and_no_rollouts(root: Path) -> None:
    config = tiny.settings(finetune={"steps": 1, **ONLINE})
    shutil.rmtree(root / "data/rollouts")
    finetune.run(config, root, Hooks())
    assert (root / "models/gdpo/model.json").is_file()
    for gone, stage in (("data/selected", "select"), ("data/shards", "degrade")):
        shutil.move(root / gone, root / "gone")
        with pytest.raises(
            ValueError,
            match=rf"{gone}.*run the {stage} stage, or `dvc pull select degrade` \(finetune.rollo",
        ):
            finetune.run(config, root, Hooks())
        shutil.move(root / "gone", root / gone)


def test_fingerprints_name_settings_and_every_byte(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = fingerprint({"x": 1, "y": 2}, [folder])
    assert fingerprint({"y": 2, "x": 1}, [folder]) == first
    assert fingerprint({"x": 1, "y": 3}, [folder]) != first
    (folder / "a").write_text("2")
    assert fingerprint({"x": 1, "y": 2}, [folder]) != first
    (folder / "a").rename(folder / "b")
    (folder / "b").write_text("1")
    assert fingerprint({"x": 1, "y": 2}, [folder]) != first


def test_histories_have_whole_steps_and_all_digits(tmp_path: Path) -> None:
    write_history(tmp_path / "h", [{"step": 0.0, "loss": 1 / 3}, {"step": 1.0, "loss": 5e-5}])
    assert (tmp_path / "h/metrics.jsonl").read_text() == (
        '{"step": 0, "loss": 0.3333333333333333}\n{"step": 1, "loss": 5e-05}\n'
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_is_hashed_once(root: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed[file.name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    STAGES[stage](tiny.settings(), root, Hooks())
    weights = {str(root / "base" / name) for name in WEIGHTS}
    assert weights <= hashed.keys() and set(hashed.values()) == {1}
    # The stored hashes of the groups stand for them.
    assert not any(name.startswith(str(root / "data/rollouts")) for name in hashed)
