"""The stages of RealSR-R1 on tiny inputs: what they refuse, in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks
from gdpo.model.card import read_as
from gdpo.upscale.resolver import load_super_resolver
from gdpo.vlcot.folder import Card, _hashes, load_tokenizer
from gdpo.vlcot.rewards import understanding_reward
from tasks.files.chains import Chains
from tasks.run.vlcot import made_from
from tasks.stages import (
    vlcot_coldstart,
    vlcot_data,
    vlcot_grpo,
    vlcot_tokenizer,
)
from tasks.tools.doctor_models import damages
from tests.tasks.vlcot_root import SECTIONS, STAGES, pairs, settings


@pytest.fixture
def root(vlcot_finished: Path, tmp_path: Path) -> Path:
    """A copy of a root after all stages."""
    return Path(shutil.copytree(vlcot_finished, tmp_path / "root", symlinks=True))


def sealed(model: Path) -> Path:
    """The folder with a card that names the files as they are."""
    card = read_as(Card, model)
    card.model_copy(update={"sha256": _hashes(model)}).write(model)
    return model


def test_a_codebook_of_another_size_is_named(root: Path) -> None:
    other = settings(
        vlcot={**SECTIONS["vlcot"], "tokenizer": {"codes": 12, "images": 4, "steps": 1}}
    )
    vlcot_tokenizer.run(other, root, Hooks())
    for stage in ("coldstart", "grpo"):
        with pytest.raises(ValueError, match=r"00000.parquet: made with another tokenizer"):
            STAGES[stage](settings(), root, Hooks())
    model = root / "models/vlcot/vlcot"
    shutil.rmtree(model / "tokenizer")
    shutil.copytree(root / "models/vlcot/tokenizer", model / "tokenizer")
    with pytest.raises(
        ValueError, match=r"trunk.safetensors: has \d+ ids, and its tokenizer of 12"
    ):
        load_super_resolver(sealed(model))


@pytest.mark.parametrize(
    "name", ["codebook.safetensors", "vae/diffusion_pytorch_model.safetensors"]
)
def test_a_tokenizer_that_is_cut_off_is_named_and_not_the_tokens(root: Path, name: str) -> None:
    path = root / "models/vlcot/tokenizer" / name
    path.write_bytes(path.read_bytes()[:-5])
    for stage in ("coldstart", "grpo"):
        with pytest.raises(ValueError, match=f"{name}: damaged .*vlcot-tokenizer again"):
            STAGES[stage](settings(), root, Hooks())


def test_damaged_files_are_named_in_one_line(root: Path) -> None:
    model = root / "models/vlcot/vlcot"
    state = load_file(model / "trunk.safetensors")
    save_file(
        {k: v for k, v in state.items() if k != "model.norm.weight"}, model / "trunk.safetensors"
    )
    changed = r"vlcot/vlcot/trunk.safetensors: is not the file that .*model.json names"
    with pytest.raises(ValueError, match=changed):
        load_super_resolver(model)
    (problem,) = damages(model)
    assert re.search(changed, problem) and damages(root / "models/vlcot/control") == []
    with pytest.raises(ValueError, match=r"trunk.safetensors: .*1 missing \(model.norm.weight\)"):
        load_super_resolver(sealed(model))
    (model / "trunk.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"trunk.safetensors: unreadable"):
        load_super_resolver(sealed(model))
    save_file(
        {"codebook": torch.zeros(16, 3)}, root / "models/vlcot/tokenizer/codebook.safetensors"
    )
    with pytest.raises(ValueError, match=r"tokenizer: the codebook must be \(K, p\^2 4\)"):
        load_tokenizer(root / "models/vlcot/tokenizer")
    (root / "data/vlcot/00/00000.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"00000.parquet: damaged .*; run the stage vlcot-data"):
        Chains(root, made_from(settings(), root))


def test_values_that_do_not_fit_are_named(root: Path) -> None:
    sections = SECTIONS["vlcot"]
    for changed, message in (
        ({"stages": [8, 16, 64]}, "vlcot.stages: the last must be degrade.crop, got 64"),
        ({"stages": [4, 16, 32]}, "vlcot.stages must be multiples of the tokenizer's 8 pixels"),
        (
            {"tokenizer": {"codes": 5000, "images": 4, "steps": 1}},
            "5000 codes need as many different patches",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            vlcot_tokenizer.run(settings(vlcot={**sections, **changed}), root, Hooks())
    with pytest.raises(ValueError, match=r"vlcot.positions is 90, the longest chain of data/vlcot"):
        vlcot_coldstart.run(settings(vlcot={**sections, "positions": 90}), root, Hooks())
    with pytest.raises(ValueError, match=r"vlcot.width must be a multiple of twice vlcot.heads"):
        vlcot_coldstart.run(settings(vlcot={**sections, "width": 30}), root, Hooks())
    with pytest.raises(ValueError, match=r"grpo.metrics: ssim_y has no scale as a reward"):
        vlcot_grpo.run(settings(grpo={"metrics": ["ssim_y"]}), root, Hooks())


def test_pairs_without_tags_are_left_out_of_the_understanding_reward(root: Path) -> None:
    shutil.rmtree(root / "data/shards/train")
    write_shards(root / "data/shards/train/00", pairs(5, tags=" , "), 1.0)
    vlcot_data.run(settings(), root, Hooks(), "00")
    chain = Chains(root, made_from(settings(), root))[0]
    assert chain.truth.tags == () and understanding_reward("a rock", chain.truth.tags) is None
    vlcot_grpo.run(settings(), root, Hooks())
    lines = (root / "reports/vlcot/grpo/vlcot/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["understanding"] for line in lines] == [0, 0, 0]


def test_chains_cut_short_are_counted_and_stop_nothing(root: Path) -> None:
    vlcot_grpo.run(settings(grpo={"limit": 6}), root, Hooks())
    lines = (root / "reports/vlcot/grpo/vlcot/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["broken"] == 1 for line in lines)


def test_a_pair_without_its_shard_and_a_missing_stage_are_named(root: Path) -> None:
    shutil.rmtree(root / "data/shards/train")
    write_shards(root / "data/shards/train/00", pairs(3), 1.0)
    with pytest.raises(ValueError, match="the pair pair3 is not in data/shards/train"):
        vlcot_grpo.run(settings(), root, Hooks())
    shutil.rmtree(root / "data/vlcot")
    with pytest.raises(ValueError, match="no chains here; run the stage vlcot-data"):
        vlcot_coldstart.run(settings(), root, Hooks())
    shutil.rmtree(root / "models/vlcot/tokenizer")
    with pytest.raises(ValueError, match="no tokenizer here; run the stage vlcot-tokenizer"):
        vlcot_data.run(settings(), root, Hooks())
