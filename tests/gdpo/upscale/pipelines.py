"""NAOSD as a pipeline of diffusers."""

from typing import Any

import torch
from diffusers import DDPMScheduler

from gdpo import NAOSD, NAOSDPipeline
from gdpo.prior.architecture import SCHEDULER


def of(model: NAOSD) -> NAOSDPipeline:
    parts = (model.vae, model.text_encoder, model.tokenizer, model.unet)
    scheduler = DDPMScheduler.from_config(SCHEDULER)
    return NAOSDPipeline(
        *parts, scheduler, t_add=model.t_add, t_diff=model.t_diff, prompt=model.prompt
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def whole(pipe: Any, seed: int = 0) -> torch.Tensor:
    """Samples of two images in [0, 1], of seeded noise, BCHW."""
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))
    found: torch.Tensor = pipe(
        x,
        scale=1,
        generator=torch.Generator().manual_seed(1),
        color_fix="none",
        output_type="pt",
    ).images
    return found
