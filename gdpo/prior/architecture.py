"""The architecture of the tiny prior: SD2.1-base's parts, shrunk to a few million parameters.

    autoencoder   4x down-scaling, 12 latent channels (SD: 8x, 4)       0.94 M parameters
    UNet          two levels, 64 and 96 channels, attention below       2.48 M
    text          CLIP, two layers of width 32, byte-level tokens       0.04 M

Everything is built from diffusers' and transformers' own classes, so the tiny folder loads, trains
and merges through the same code as SD2.1-base.
"""

import itertools
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 12
CONTEXT = 32
# The scheduler file of SD2.1-base. `clip_sample` must be false: DDPMScheduler's default clamps x0.
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}


def tiny_autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL with two halvings and 12 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=96,
        mid_block_add_attention=False,
    )


def tiny_unet() -> UNet2DConditionModel:
    """An untrained UNet2DConditionModel with cross attention on its lower level."""
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        attention_head_dim=(4, 6),
        use_linear_projection=True,
        norm_num_groups=8,
    )


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes.

    There are 512 byte tokens, half of them for the end of a word, and the start and end tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def tiny_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """An untrained CLIPTextModel of width 32 for `tokenizer`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CONTEXT,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


@torch.no_grad()
def widen(network: nn.Module, old: dict[str, torch.Tensor]) -> None:
    """Copy the weights of the same network with fewer latent channels into the first channels.

    network: an untrained network of the new width. old: a state dict with the same names and, per
    tensor, at most the new sizes. New channels keep their initial values. Errors: ValueError
    naming a tensor that is missing or larger.
    """
    for name, new in network.state_dict().items():
        if name not in old or any(a > b for a, b in zip(old[name].shape, new.shape, strict=True)):
            raise ValueError(f"{name}: missing in the narrower network, or larger there")
        # The encoder's last layers give means, then log-variances: each half grows on its own.
        halves = [2 if name.startswith(("encoder.conv_out", "quant_conv")) else 1]
        halves += [2 if name == "quant_conv.weight" else 1]
        pieces = [
            _pieces(old[name].shape[axis], new.shape[axis], halves[axis] if axis < 2 else 1)
            for axis in range(new.ndim)
        ]
        # Each combination of halves along the axes is one block of the tensor, copied into the
        # corner of its larger block.
        for piece in itertools.product(*pieces):
            new[tuple(to for _, to in piece)] = old[name][tuple(source for source, _ in piece)]


def _pieces(old: int, new: int, parts: int) -> list[tuple[slice, slice]]:
    """(source, destination) slices along one axis whose `parts` equal parts grow separately."""
    small, large = old // parts, new // parts
    return [
        (slice(i * small, (i + 1) * small), slice(i * large, i * large + small))
        for i in range(parts)
    ]
