"""A whole pipeline's inputs, much smaller than the sample profile: 20 steps of any stage in a
second, nothing read from disk.

base_folder   a diffusers folder of SD2.1-base's classes: UNet of two levels (8, 16), VAE 8/8/16
              (down-scaling 4), CLIP text encoder of one layer of width 8; weights drawn by name, so
              that a library's own initialisation plays no part
pairs         LR-HR pairs of 32 px: waves, edges and noise, degraded by block means
workplace     a root with base/, data/shards/train and data/selected, as degrade and select leave
              them
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel

from gdpo.config import Config, Rollout
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.images import to_tensor
from gdpo.model.naosd import NAOSD
from gdpo.preference.errors import noise_target, predict, squared
from gdpo.preference.group import Group
from gdpo.prior.architecture import SCHEDULER, tiny_tokenizer
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_share
from gdpo.seeds import numpy_generator, torch_generator

WIDTH = 8
SIDE = 32
SHARED = {"noise": "shared", "target": "consistent"}  # what rollout.input: lr needs
OWN_INPUT = {"input": "lr", **SHARED}
SETTINGS: dict[str, Any] = {
    "allow_cpu": True,
    "seed": 0,
    "model": {
        "base": "base",
        "prompt": "sharp",
        "training_prompt": "sharp",
        "negative_prompt": "blurry",
    },
    "degrade": {
        "train": [{"path": "photos"}],
        "evaluation": [{"path": "photos"}],
        "crop": SIDE,
        "evaluation_crop": SIDE,
    },
    "pretrain": {
        "lora": {"rank": 2, "alpha": 4},
        "steps": 6,
        "batch": 2,
        "optimizer": {"lr": 1e-3},
        "perceptual": "structure",
        "precision": "fp32",
        "checkpoint_every": 2,
    },
    "select": {},
    "reward": {"fidelity": ["psnr_y"], "perception": ["ssim_y"]},
    "rollout": {
        "group": 3,
        "metrics": ["psnr_y", "ssim_y"],
        "noises": 2,
        "batch": 6,
        "precision": "fp32",
    },
    "finetune": {
        "lora": {"rank": 2, "alpha": 4},
        "steps": 6,
        "batch": 2,
        "optimizer": {"lr": 1e-3},
        "omega": 500.0,
        "checkpoint_every": 2,
    },
    "evaluate": {"metrics": ["psnr_y"], "precision": "fp32"},
    "coldstart": {"precision": "fp32"},
}


def settings(**sections: dict[str, Any]) -> Config:
    """The tiny configuration with a few keys of each section replaced: settings(pretrain={"steps":
    3}).
    """
    merged = {
        name: {**value, **sections.get(name, {})} if isinstance(value, dict) else value
        for name, value in SETTINGS.items()
    }
    return Config.model_validate(merged)


def fill(network: nn.Module, name: str) -> nn.Module:
    """Weights of variance 1 / fan-in and lively biases, each drawn from its own name."""
    with torch.no_grad():
        for key, value in network.named_parameters():
            drawn = torch.randn(value.shape, generator=torch_generator("tiny", name, key))
            if value.ndim > 1:
                value.copy_(drawn / value[0].numel() ** 0.5)
            else:
                value.copy_(drawn / 10 + float(key.endswith("weight")))
    return network


def unet() -> UNet2DConditionModel:
    return fill(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
        ),
        "unet",
    )


def vae() -> AutoencoderKL:
    return fill(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
            mid_block_add_attention=True,
            scaling_factor=0.5,
        ),
        "vae",
    )


def text_encoder(tokenizer: Any) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return fill(CLIPTextModel(config), "text")


def model() -> NAOSD:
    """A fresh tiny NAOSD, without roles; always the same weights."""
    tokenizer = tiny_tokenizer()
    return NAOSD(unet(), vae(), text_encoder(tokenizer), tokenizer, prompt="sharp")


def noise_errors(
    model: NAOSD, group: Group, prompt: torch.Tensor, config: Rollout, noise_index: int
) -> torch.Tensor:
    """The errors m (G,) of the active role, float64."""
    batch = noise_target(model, group, config, noise_index)
    return squared(predict(model, batch, prompt, config) - batch.target.double(), batch)


def write_base(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    parts = {
        "unet": unet(),
        "vae": vae(),
        "text_encoder": text_encoder(tokenizer),
        "tokenizer": tokenizer,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


def pair(index: int, side: int = SIDE) -> Pair:
    """A made picture: a plane wave and an edge per channel, and noise whose strength differs
    between pictures.
    """
    rng = numpy_generator("tiny", "pair", index)
    y, x = np.mgrid[:side, :side] / side
    channels = []
    for _ in range(3):
        wave = np.sin(2 * np.pi * (rng.uniform(0, 4) * x + rng.uniform(0, 4) * y + rng.random()))
        channels.append(0.5 + 0.2 * wave + 0.2 * np.sign(x - rng.random()))
    hr = np.stack(channels, axis=-1) + rng.normal(0, 0.02 * (index % 4), (side, side, 3))
    lr = hr.reshape(side // 4, 4, side // 4, 4, 3).mean(axis=(1, 3))
    hr_u8, lr_u8 = ((image.clip(0, 1) * 255).round().astype(np.uint8) for image in (hr, lr))
    mode = ("area", "bilinear", "bicubic")[index % 3]
    # As `degrade` stores it: the golden trajectories depend on it through the rewards.
    share = float(detail_share(to_tensor(hr_u8)[None], PIPELINE_GRAYSCALE)[0])
    box = Box(0, 0, side, side)
    return Pair(f"pair{index}", "made", box, hr_u8, lr_u8, {"enlarge": mode}, share)


def workplace(root: Path, base: Path, count: int = 5) -> Path:
    """What degrade and select leave behind, and the base model, under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "base").symlink_to(base)
    write_shards(root / "data/shards/train", (pair(i) for i in range(count)), 1.0)
    (root / "data/selected").mkdir()
    pq.write_table(
        pa.table({"id": [f"pair{i}" for i in range(count - 1)]}),
        root / "data/selected/manifest.parquet",
    )
    return root


def tree(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders, by relative path."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Counted(TorchDispatchMode):
    """Counts what waits for a device: numbers read back (`_local_scalar_dense`), plain copies to
    the device `meta`.
    """

    calls = copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func == torch.ops.aten._local_scalar_dense.default
        # Timesteps are whole numbers of the host.
        self.calls += reads and args[0].is_floating_point()
        to_meta = (
            func == torch.ops.aten._to_copy.default and str((kwargs or {}).get("device")) == "meta"
        )
        self.copies += (
            to_meta and args[0].device.type == "cpu" and not (kwargs or {}).get("non_blocking")
        )
        return func(*args, **(kwargs or {}))
