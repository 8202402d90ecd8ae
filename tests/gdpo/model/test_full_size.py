"""NAOSD at the size of SD2.1-base, one 512x512 image, random weights: `make test-full`.

Measured on two cores of a shared server: seconds, then mean and greatest difference from fp32 over
all pixel values, in standard deviations of the fp32 image. One process does all three; its peak is
6.9 GB, and it takes a minute with loading.

    fp32       21 s
    autocast   10 s   0.0154   0.24      bf16 autocast over fp32 weights: what `precision: bf16`
               means in params.yaml
    bf16        9 s   0.0154   0.25      NAOSD.from_pretrained(..., dtype=torch.bfloat16)

Most of it is the 8 bits of bf16's fraction (0.004) through three networks. Trained weights are not
random: there only the order of magnitude carries over.
"""

import resource
import time

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from gdpo.cost.architectures import TEXT, UNET, VAE
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast
from gdpo.prior.architecture import tiny_tokenizer
from gdpo.seeds import torch_generator

GIGABYTE = 2**30


def full_size() -> NAOSD:
    """SD2.1-base's three networks as their libraries initialise them."""
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    # Its tokens are bytes; which of the 49,408 embeddings they name means nothing to random
    # weights.
    return NAOSD(
        UNet2DConditionModel(**UNET),
        AutoencoderKL(**VAE),
        text_encoder,
        tiny_tokenizer(),
        prompt="sharp",
    )


def inputs(model: NAOSD) -> list[torch.Tensor]:
    """x, noise and posterior noise of one image."""
    drawn = torch.randn(
        (2, 1, *model.latent_shape(512, 512)), generator=torch_generator("full size", "noise")
    )
    x = torch.rand(1, 3, 512, 512, generator=torch_generator("full size", "x")) * 2 - 1
    return [x, drawn[0], drawn[1]]


@pytest.mark.full_size
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor emulates bf16: no end after eight minutes",
)
@torch.no_grad()
def test_fp32_and_bf16_agree_on_two_cores_within_24_gb() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model = full_size()
    x, noise, posterior_noise = inputs(model)
    images: dict[str, torch.Tensor] = {}
    seconds: dict[str, float] = {}
    for way in ("fp32", "autocast", "bf16"):
        model = model.to(torch.bfloat16 if way == "bf16" else torch.float32)
        start = time.perf_counter()
        with autocast("bf16" if way == "autocast" else "fp32", "cpu"):
            prompt = model.embed([model.prompt])
            images[way] = model(x.to(model.unet.dtype), prompt, noise, posterior_noise).float()
        seconds[way] = time.perf_counter() - start
    torch.set_num_threads(before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    full = images["fp32"]
    assert full.shape == x.shape and float(full.std()) > 0.1
    assert float((full.abs() == 1).float().mean()) < 0.05, "the clamp must not hide a difference"
    difference = {way: (image - full).abs() / full.std() for way, image in images.items()}
    figures = {
        way: (round(seconds[way]), float(d.mean()), float(d.max())) for way, d in difference.items()
    }
    measured = f"{figures}, peak {peak / GIGABYTE:.1f} GB"
    for way in ("autocast", "bf16"):
        assert 0 < figures[way][1] < 0.03 and figures[way][2] < 0.6, measured
    assert peak < 24 * GIGABYTE, measured
