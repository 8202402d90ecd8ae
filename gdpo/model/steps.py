"""The four steps of NAOSD (paper Eqs. 3 and 4) without checks of their arguments.

These functions serve loops over tensors that were just computed, where a check of values would make
the CPU wait for the device at every step. `NAOSD` has methods of the same names with checks.
"""

from typing import Any, Protocol

import torch

from gdpo.model.schedule import add_noise, predict_x0


class OneStepNetwork(Protocol):
    """What a step needs of `NAOSD`. scaling: s, the VAE's latent unit."""

    vae: Any
    t_add: int | None
    t_diff: int

    @property
    def scaling(self) -> float:
        """s of z_LR = s * E(x)."""

    def predict_noise(self, z: torch.Tensor, prompt_BLD: torch.Tensor, /) -> torch.Tensor:
        """e of Eq. 4."""


def posterior(model: OneStepNetwork, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of the VAE posterior of x_BCHW in [-1, 1], scaled, each (B, c, h, w)."""
    distribution = model.vae.encode(x_BCHW).latent_dist
    return model.scaling * distribution.mean, model.scaling * distribution.std


def encode(model: OneStepNetwork, x_BCHW: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z_LR (B, c, h, w): a sample of the posterior; noise is standard normal (B, c, h, w)."""
    # A sample and not the mean, as released: rollouts and evaluation draw its noise from seeds.
    mean, std = posterior(model, x_BCHW)
    return mean + std * noise.to(mean)


def inject(
    model: OneStepNetwork,
    z: torch.Tensor,
    noise: torch.Tensor,
    t_add: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """z~ (Eq. 3). t_add: default the model's; z is returned if that is None too."""
    t_add = model.t_add if t_add is None else t_add
    return z if t_add is None else add_noise(z, noise.to(z), t_add)


def denoise(model: OneStepNetwork, z: torch.Tensor, prompt_BLD: torch.Tensor) -> torch.Tensor:
    """z_SR from z~ (Eq. 4)."""
    # Under autocast the network answers in bf16; Eq. 4 is computed in the precision of z.
    return predict_x0(z, model.predict_noise(z, prompt_BLD).to(z.dtype), model.t_diff)


def decode(model: OneStepNetwork, z: torch.Tensor) -> torch.Tensor:
    """image_BCHW in [-1, 1]."""
    # The base's VAE was trained on latents of its own unit; s makes their variance about 1.
    image: torch.Tensor = model.vae.decode(z / model.scaling).sample
    return image.clamp(-1, 1)
