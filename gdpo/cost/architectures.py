"""The full-size networks on the meta device: shapes only, without downloads or memory use.

    SD2.1-base     UNet, VAE, text encoder (OpenCLIP-H, 23 layers), as classes of diffusers and
                   transformers
    RAM            the tagger's network (gdpo/tagger/ram.py), into which DAPE's LoRA is merged
    MUSIQ, MANIQA  the networks of the reward, from pyiqa

Sizes come from the published configuration files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from gdpo.tagger.ram import RAM, Network

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
# Parameters of RAM's tag encoder and text decoder with DAPE's LoRA. They are in the released file,
# write sentences, and tagging never runs them (untied from the head; counted from RAM's code).
RAM_NEVER_RUN = 258_186_812


@dataclass(frozen=True)
class Networks:
    """The networks of one model on the meta device; tagger is None for a diffusers folder."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tagger: Network | None


def sd21() -> Networks:
    """SD2.1-base with the tagger of the released code."""
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        return Networks(
            UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), text_encoder, Network(RAM)
        )


def from_folder(folder: Path) -> Networks:
    """The networks that the configuration files of a diffusers folder describe.

    Errors: ValueError naming a file that is missing or not valid JSON.
    """
    configs: dict[str, dict[str, Any]] = {}
    for part in ("unet", "vae", "text_encoder"):
        path = folder / part / "config.json"
        try:
            configs[part] = json.loads(path.read_text())
        except OSError:
            raise ValueError(
                f"{path}: no such file; --model is sd2.1 or a diffusers folder"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
    with torch.device("meta"):
        unet, vae = (
            UNet2DConditionModel.from_config(configs["unet"]),
            AutoencoderKL.from_config(configs["vae"]),
        )
        return Networks(
            unet, vae, CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])), None
        )


def reward_networks() -> dict[str, nn.Module]:
    """MUSIQ and MANIQA, the paper's `reward.perception`, on the meta device without weights."""
    from pyiqa.archs.maniqa_arch import MANIQA
    from pyiqa.archs.musiq_arch import MUSIQ

    from gdpo.metrics.networks import offline

    with offline("maniqa_arch"):
        maniqa = MANIQA(pretrained=False)
    return {"MUSIQ": MUSIQ(pretrained=False).to("meta").eval(), "MANIQA": maniqa.to("meta").eval()}
