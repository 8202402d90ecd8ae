"""Released files, fabricated in their layout on peft's own layers: read, refused, converted there
and back.
"""

from pathlib import Path

import pytest

import gdpo
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.checkpoints import read_adapters
from gdpo.model.naosd import NAOSD
from gdpo.released.convert import import_released
from gdpo.released.export import export_merged
from gdpo.released.pickles import Released
from gdpo.released.read import Merged, load_released_checkpoint
from tests.gdpo.released.released_files import (
    fabricate,
    same,
    unet_modules,
    vae_modules,
)

KINDS = ["naosd", "gdpo", "osediff"]


def test_our_rule_selects_the_released_modules(files: Path) -> None:
    model = NAOSD.from_pretrained(files / "base")
    assert sorted(name for place in unet_modules(model.unet) for name in place) == sorted(
        unet_targets(model.unet)
    )
    assert vae_modules(model.vae)[0] == vae_targets(model.vae)


@pytest.mark.parametrize("ranks", [(4, 4), (8, 4), (3, 5)])
def test_naosd_output_equals_that_of_the_peft_model(
    files: Path, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "naosd", ranks=ranks)
    import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert same(ours, theirs)
    assert not same(ours, NAOSD.from_pretrained(files / "base"))
    assert (ours.t_add, ours.t_diff, ours.prompt) == (250, 100, "clean, high-resolution, 8k,")


@pytest.mark.parametrize("below", ["naosd", "merged"])
def test_gdpo_over_a_chain_or_a_merged_base_equals_the_peft_model(
    files: Path, tmp_path: Path, below: str
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "merged", "gdpo", seed=3)
    import_released(tmp_path / "x.pkl", tmp_path / "x", files / below)
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert same(ours, theirs)
    assert not same(ours, NAOSD.from_pretrained(files / "naosd"))
    names = [adapters.name for adapters in read_adapters(tmp_path / "x")]
    assert names == (["naosd", "gdpo"] if below == "naosd" else ["gdpo"])


def test_osediff_output_equals_that_of_the_peft_model(files: Path, tmp_path: Path) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "osediff")
    notes = import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert notes == ()
    assert (ours.t_add, ours.t_diff, ours.prompt) == (None, 999, "")
    theirs.t_add, theirs.t_diff = None, 999  # OSEDiff's own forward pass
    assert same(ours, theirs)
    export_merged(tmp_path / "x", tmp_path / "out")
    again = NAOSD.from_pretrained(tmp_path / "out")
    assert again.t_add is None and same(again, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_settings_of_what_is_read(files: Path, kind: str) -> None:
    found = gdpo.load_released_checkpoint(str(files / f"{kind}.pkl"))
    assert isinstance(found, Released)
    adapters = found.adapters
    assert (adapters.name, adapters.lora.rank, adapters.lora.alpha) == (kind, 4, 8)
    assert adapters.tensors["unet.conv_in.lora_A"].shape == (4, 4, 3, 3)
    assert adapters.tensors["unet.conv_in.lora_B"].shape == (8, 4, 1, 1)
    assert ("unet.conv_in.weight" in adapters.tensors) == (kind != "gdpo")
    assert ("vae.quant_conv.lora_A" in adapters.tensors) == (kind != "gdpo")
    assert not [name for name in adapters.tensors if "decoder" in name]
    assert found.frozen.keys() == ({"conv_in.weight", "conv_in.bias"} if kind == "gdpo" else set())


@pytest.mark.parametrize("trained", [False, True])
def test_the_vae_decoder_adapter_is_left_out_with_a_reason(
    files: Path, tmp_path: Path, trained: bool
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "naosd", decoder_trained=trained)
    (note,) = import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    assert note.startswith(
        "left out 20 modules of the VAE decoder's adapter, which the release never activates"
    )
    assert ("not zero" in note) == trained
    assert same(NAOSD.from_pretrained(tmp_path / "x"), theirs)


def test_a_merged_folder_of_two_networks_becomes_a_model_folder_and_a_base(
    files: Path, tmp_path: Path
) -> None:
    found = load_released_checkpoint(files / "merged")
    assert isinstance(found, Merged)
    for name in ("unet", "vae"):
        (tmp_path / "merged" / name).mkdir(parents=True)
        for file in (files / "merged" / name).iterdir():
            (tmp_path / "merged" / name / file.name).write_bytes(file.read_bytes())
    assert import_released(tmp_path / "merged", tmp_path / "x", files / "base") == ()
    assert same(NAOSD.from_pretrained(tmp_path / "x"), NAOSD.from_pretrained(files / "naosd"))
    # GDPO's adapters can be added to it.
    import_released(files / "gdpo.pkl", tmp_path / "y", tmp_path / "x")
    assert same(NAOSD.from_pretrained(tmp_path / "y"), NAOSD.from_pretrained(files / "gdpo"))
