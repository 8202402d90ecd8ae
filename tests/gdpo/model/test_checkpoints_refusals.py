"""Base and model folders that are damaged, foreign or changed are refused by file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gdpo import NAOSD
from gdpo.model.base import base_hashes

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_base_that_changed_is_refused(base_folder: Path, model_folder: Path) -> None:
    tensors = load_file(base_folder / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, base_folder / UNET)
    with pytest.raises(
        ValueError,
        match=r"model.json: trained on another base model than .*base \(SHA-256 differs\)",
    ):
        NAOSD.from_pretrained(model_folder)


def set_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(
            json.dumps({key: value for key, value in content.items() if value is not ...})
        )

    return change


def forget_hashes(folder: Path) -> None:
    """Make the card one of an earlier version, if there is one: with hashes any change is refused
    as damage.
    """
    if (folder / "model.json").exists():
        card = json.loads((folder / "model.json").read_text())
        adapters = [{**entry, "sha256": None} for entry in card["adapters"]]
        set_json("model.json", adapters=adapters)(folder)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, folder / UNET, metadata={"format": "pt"})


def spoil(
    name: str, key: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Path], None]:
    """Replace one tensor of a file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        save_file(
            {**tensors, key: change(tensors[key]).contiguous()},
            folder / name,
            metadata={"format": "pt"},
        )

    return apply


def leave_out(*names: str) -> Callable[[Path], None]:
    """Take tensors out of the adapter file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / ADAPTERS)
        save_file(
            {name: tensor for name, tensor in tensors.items() if name not in names},
            folder / ADAPTERS,
        )

    return apply


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, torch.nan)


SCHEDULER = "scheduler/scheduler_config.json"
VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
ADAPTERS, BIAS = "naosd.safetensors", "unet.conv_in.bias"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            set_json(SCHEDULER, prediction_type="v_prediction"),
            "scheduler_config.json: prediction_type is 'v_prediction'",
        ),
        (set_json(SCHEDULER, clip_sample=...), "scheduler_config.json: clip_sample is True"),
        (set_json(SCHEDULER, clip_sample=True), "scheduler_config.json: clip_sample is True"),
        (
            set_json(SCHEDULER, beta_schedule="linear"),
            "scheduler_config.json: beta_schedule is 'linear'",
        ),
        (set_json(SCHEDULER, beta_end=0.02), "scheduler_config.json: beta_end is 0.02"),
        (
            set_json(SCHEDULER, trained_betas=[0.1] * 1000),
            r"scheduler_config.json: trained_betas is \[0.1, ",
        ),
        (
            set_json(SCHEDULER, rescale_betas_zero_snr=True),
            "scheduler_config.json: rescale_betas_zero_snr is True",
        ),
        (write(SCHEDULER, "{"), "scheduler_config.json: not valid JSON"),
        (write(SCHEDULER, "[]"), "scheduler_config.json: must hold a JSON object"),
        (remove(SCHEDULER), "scheduler_config.json: no such file"),
        (remove(UNET), "unet: cannot be loaded"),
        (remove("unet/config.json"), "unet: cannot be loaded"),
        (remove("text_encoder"), "text_encoder: cannot be loaded"),
        (remove("tokenizer"), "tokenizer: cannot be loaded"),
        (cut(UNET), "unet: cannot be loaded"),
        (cut(VAE), "vae: cannot be loaded"),
        (cut("text_encoder/model.safetensors"), "text_encoder: cannot be loaded"),
        (set_json("vae/config.json", latent_channels=3), "vae: cannot be loaded"),
        (drop_tensor, "unet: its weights lack mid_block.resnets.0.conv1.weight"),
        (
            spoil(UNET, "conv_in.bias", nan),
            "unet: conv_in.bias has values that are NaN or infinite",
        ),
        (
            spoil(VAE, "quant_conv.bias", lambda t: t / 0),
            "vae: quant_conv.bias has values that are NaN or infinite",
        ),
        (
            spoil(TEXT, "final_layer_norm.bias", nan),
            "text_encoder: .*final_layer_norm.bias has values that are NaN",
        ),
        (
            spoil(UNET, "conv_in.bias", lambda t: t.to(torch.int8)),
            "unet: .*conv_in.bias is of type I8, weights are floating-",
        ),
        (spoil(UNET, "conv_in.bias", lambda t: t[:3]), "unet: cannot be loaded"),
    ],
)
def test_a_bad_base_is_refused_by_the_name_of_its_file(
    base_folder: Path, change: Callable[[Path], None], says: str
) -> None:
    change(base_folder)
    with pytest.raises(ValueError, match=says) as caught:
        NAOSD.from_pretrained(base_folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such model folder"):
        NAOSD.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(
        ValueError,
        match=r"unet/diffusion_pytorch_model.safetensors: no such file; model.base must be",
    ):
        base_hashes(tmp_path)


def point_to(file: str) -> Callable[[Path], None]:
    return set_json("model.json", adapters=[{"file": file, "rank": 2, "alpha": 4}])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            point_to("../naosd.safetensors"),
            r"model.json: adapter file '../naosd.safetensors' is not inside the folder",
        ),
        (
            point_to("sub/naosd.safetensors"),
            r"model.json: adapter file 'sub/naosd.safetensors' is not inside",
        ),
        (
            point_to("/naosd.safetensors"),
            r"model.json: adapter file '/naosd.safetensors' is not inside",
        ),
        (point_to("other.safetensors"), r"other.safetensors: unreadable adapters"),
        (cut("naosd.safetensors"), r"naosd.safetensors: unreadable adapters"),
        (write("naosd.safetensors", "not tensors"), r"naosd.safetensors: unreadable adapters"),
        (write("model.json", "{"), r"model.json: not valid JSON"),
        (set_json("model.json", adapters=...), r"model.json: adapters is missing"),
        (set_json("model.json", base_sha256=...), r"model.json: base_sha256 is missing"),
        (
            set_json("model.json", format=2),
            r"model.json: format is 2: Input should be 1; fetch or make the model again",
        ),
        (
            set_json("model.json", t_add="250"),
            r"model.json: t_add is '250': Input should be a valid integer",
        ),
        (
            set_json("model.json", t_add=1000),
            r"model.json: t_add is 1000: Input should be less than or equal to 999",
        ),
        (
            set_json("model.json", t_diff=None),
            r"model.json: t_diff is None: Input should be a valid integer",
        ),
        (
            set_json("model.json", prompt=5),
            r"model.json: prompt is 5: Input should be a valid string",
        ),
        (
            set_json("model.json", adapters=[{"file": "naosd.safetensors"}]),
            r"model.json: adapters.0.rank is missing",
        ),
        (
            set_json("model.json", beauty=1),
            r"model.json: beauty is 1: Extra inputs are not permitted",
        ),
        (
            spoil(ADAPTERS, BIAS, nan),
            r"naosd.safetensors: unet.conv_in.bias has values that are NaN or infinite",
        ),
        (
            spoil(ADAPTERS, BIAS, lambda t: t.int()),
            r"naosd.safetensors: unet.conv_in.bias is of type torch.int32",
        ),
        (
            leave_out("unet.conv_out.lora_A", "unet.conv_out.lora_B"),
            r"naosd.safetensors: tensor 'unet.conv_out.lora_A' is miss",
        ),
        (
            leave_out("vae.quant_conv.lora_B"),
            r"naosd.safetensors: tensor 'vae.quant_conv.lora_B' is missing",
        ),
        (leave_out(BIAS), r"naosd.safetensors: tensor 'unet.conv_in.bias' is missing"),
        (
            lambda folder: save_file({}, folder / ADAPTERS),
            r"naosd.safetensors: tensor 'unet.\S+lora_A' is missing",
        ),
        (
            set_json("model.json", adapters=[{"file": ADAPTERS, "rank": 8, "alpha": 8}]),
            r"naosd.safetensors: unet.\S+ has rank 2, and model.json says 8",
        ),
        (
            spoil(ADAPTERS, BIAS, lambda t: t[:3]),
            r"the base model has no parameter conv_in.bias of shape \(3,\)",
        ),
    ],
)
def test_a_bad_model_folder_is_refused_by_the_name_of_its_file(
    model_folder: Path, change: Callable[[Path], None], says: str
) -> None:
    forget_hashes(model_folder)
    change(model_folder)
    with pytest.raises(ValueError, match=says):
        NAOSD.from_pretrained(model_folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unet.nowhere.lora_A", "the base model has no layer nowhere"),
        ("text.layer.weight", "adapter text.layer.weight belongs to neither"),
    ],
)
def test_foreign_tensors_in_an_adapter_file_are_refused(
    model_folder: Path, name: str, says: str
) -> None:
    forget_hashes(model_folder)
    tensors = load_file(model_folder / "naosd.safetensors")
    save_file({**tensors, name: torch.zeros(2, 2)}, model_folder / "naosd.safetensors")
    with pytest.raises(ValueError, match=says):
        NAOSD.from_pretrained(model_folder)
