"""Exported folders and LoRA files, read by diffusers and peft."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from gdpo.model.naosd import NAOSD
from gdpo.released.export import LORA_FILE, PEFT_CONFIG, PEFT_FILE, export_lora, export_merged
from tests.gdpo.released.released_files import (
    output,
    same,
)


@pytest.mark.parametrize("name", ["naosd", "gdpo"])
def test_merged_export_loads_in_diffusers_and_gives_the_same_image(
    files: Path, tmp_path: Path, name: str
) -> None:
    export_merged(files / name, tmp_path / "out")
    chained = NAOSD.from_pretrained(files / name)
    again = NAOSD.from_pretrained(tmp_path / "out")
    assert (again.t_add, again.t_diff, again.prompt) == (
        chained.t_add,
        chained.t_diff,
        chained.prompt,
    )
    # what the released test script loads, everything else from its base
    plain = NAOSD.from_pretrained(files / "base")
    unet, unet_info = UNet2DConditionModel.from_pretrained(
        tmp_path / "out", subfolder="unet", output_loading_info=True
    )
    vae, vae_info = AutoencoderKL.from_pretrained(
        tmp_path / "out", subfolder="vae", output_loading_info=True
    )
    assert not any([*unet_info.values(), *vae_info.values()])
    assert unet.dtype == vae.dtype == torch.float32
    theirs = NAOSD(unet, vae, plain.text_encoder, plain.tokenizer)
    assert same(theirs, chained) and same(again, chained) and not same(theirs, plain)
    assert str(files) not in (tmp_path / "out/unet/config.json").read_text()


def test_lora_export_loads_in_diffusers_over_the_merged_naosd(files: Path, tmp_path: Path) -> None:
    export_lora(files / "gdpo", tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {LORA_FILE, PEFT_CONFIG, PEFT_FILE}
    model = NAOSD.from_pretrained(files / "merged")
    before = output(model)
    model.unet.load_lora_adapter(tmp_path / "out", prefix="unet", weight_name=LORA_FILE)
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    assert float((output(model) - before).abs().max()) > 1e-3


def test_lora_export_loads_in_a_pipeline_of_diffusers(files: Path, tmp_path: Path) -> None:
    """By the name of the folder alone, as `load_lora_weights` does for anybody's LoRA."""
    export_lora(files / "gdpo", tmp_path / "out")
    model = NAOSD.from_pretrained(files / "merged")
    pipeline = StableDiffusionPipeline(
        model.vae,
        model.text_encoder,
        model.tokenizer,
        model.unet,
        DDPMScheduler.from_pretrained(files / "base/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    before = output(model)
    pipeline.load_lora_weights(tmp_path / "out")
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    assert float((output(model) - before).abs().max()) > 1e-3


def test_what_lora_cannot_say_is_not_exported_as_lora(files: Path, tmp_path: Path) -> None:
    refused = {
        "naosd": r"naosd.safetensors: unet.conv_in.bias has no LoRA form on the UNet; use "
        r"--format merged",
        "base": r"model.json: no such file, so there are no adapters",
        "merged": r"model.json: lists no adapters to export",
    }
    for name, message in refused.items():
        with pytest.raises(ValueError, match=message):
            export_lora(files / name, tmp_path / "x")
    assert not list(tmp_path.iterdir())
