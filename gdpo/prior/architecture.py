"""The architecture of the tiny prior: SD2.1-base's parts, shrunk to a few million parameters.

    autoencoder   4x down-scaling, 8 latent channels (SD: 8x, 4)        0.93 M parameters
    UNet          two levels, 64 and 96 channels, attention below       2.47 M
    text          CLIP, two layers of width 32, byte-level tokens       0.04 M

Everything is built from diffusers' and transformers' own classes, so the tiny folder loads, trains
and merges through the same code as SD2.1-base.
"""

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 8
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
    """An untrained AutoencoderKL with two halvings and 8 latent channels."""
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
