"""The four steps of NAOSD (paper Eqs. 3 and 4) without checks of their arguments.

These functions serve loops over tensors that were just computed, where a check of values would make
the CPU wait for the device at every step. `NAOSD` has methods of the same names with checks.
"""

from typing import TYPE_CHECKING

import torch

from gdpo.model.schedule import add_noise, predict_x0

if TYPE_CHECKING:
    from gdpo.model.naosd import NAOSD


def posterior(model: "NAOSD", x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of the VAE posterior of x_BCHW in [-1, 1], scaled, each (B, c, h, w)."""
    distribution = model.vae.encode(x_BCHW).latent_dist
    return model.scaling * distribution.mean, model.scaling * distribution.std


def encode(model: "NAOSD", x_BCHW: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z_LR (B, c, h, w): a sample of the posterior; noise is standard normal (B, c, h, w)."""
    mean, std = posterior(model, x_BCHW)
    return mean + std * noise.to(mean)


def inject(
    model: "NAOSD",
    z: torch.Tensor,
    noise: torch.Tensor,
    t_add: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """z~ (Eq. 3). t_add: default the model's; z is returned if that is None too."""
    t_add = model.t_add if t_add is None else t_add
    return z if t_add is None else add_noise(z, noise.to(z), t_add)


def denoise(model: "NAOSD", z: torch.Tensor, prompt_BLD: torch.Tensor) -> torch.Tensor:
    """z_SR from z~ (Eq. 4)."""
    return predict_x0(z, model.predict_noise(z, prompt_BLD).to(z.dtype), model.t_diff)


def decode(model: "NAOSD", z: torch.Tensor) -> torch.Tensor:
    """image_BCHW in [-1, 1]."""
    image: torch.Tensor = model.vae.decode(z / model.scaling).sample
    return image.clamp(-1, 1)
