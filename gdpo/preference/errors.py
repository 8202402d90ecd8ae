"""The noise errors that GDPO compares: one code path for the reference (rollout stage) and the policy (finetune).

    z_i   re-encoded candidate, a sample of its stored posterior           z~_i = add_noise(z_i, eps_i, t_add)
    m_i   = mean (UNet(z~_i, t_diff, c) - target_i)^2                      summed in float64
    target: eps_i (release), or the noise that makes Eq. 4 return z_i at t_diff ("consistent")

The loss multiplies m - r by omega/2 = 2500, so both come from the same batch shape, precision and noise, and the mean is
taken in float64: summed in fp32, the difference loses three digits first.
"""

from dataclasses import dataclass

import torch

from gdpo.checks import check_same_shape, check_tensor
from gdpo.config import Rollout
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast
from gdpo.model.schedule import add_noise, alphas_cumprod
from gdpo.training import noise_like_batch


@dataclass(frozen=True)
class Latents:
    """Posterior moments of a group's re-encoded candidates: mean and std, both (G, c, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor


def consistent_target(z_noisy: torch.Tensor, z: torch.Tensor, t_diff: int) -> torch.Tensor:
    """The noise prediction for which Eq. 4 at t_diff returns z from z_noisy."""
    abar = float(alphas_cumprod()[t_diff])
    return (z_noisy - abar**0.5 * z) / (1 - abar) ** 0.5


def _check(latents: Latents) -> None:
    mean, std = (check_tensor(f"latents.{name}", getattr(latents, name), "BCHW") for name in ("mean", "std"))
    check_same_shape("latents.std", std, "latents.mean", mean)
    if bool((std < 0).any()):
        raise ValueError("latents.std must not be negative")


def noise_errors(
    model: NAOSD, latents: Latents, prompt: torch.Tensor, config: Rollout, *, seed: int, group: str, visit: int
) -> torch.Tensor:
    """m_G, float64, with gradient where gradients are on. visit: which of the stored noises (0..config.noises-1).

    The noises come from (seed, group id, visit, candidate), or without the candidate when `noise` is "shared".
    Errors: ValueError naming the argument, also for a model without noise injection (OSEDiff's).
    """
    if model.t_add is None:
        raise ValueError("model.t_add is null: GDPO compares errors at the noise a model injects, and this one injects none")
    _check(latents)
    size, shape = len(latents.mean), tuple(latents.mean.shape[1:])
    members = [0] * size if config.noise == "shared" else list(range(size))
    posterior = noise_like_batch([(seed, "re-encode", group, visit, i) for i in range(size)], shape)
    noise = noise_like_batch([(seed, "loss-noise", group, visit, i) for i in members], shape).to(latents.mean)
    z = latents.mean + latents.std * posterior.to(latents.mean)
    z_noisy = add_noise(z, noise, model.t_add)
    target = noise if config.target == "added" else consistent_target(z_noisy, z, model.t_diff)
    with autocast(config.precision, z.device.type):
        eps_hat = model.predict_noise(z_noisy, prompt)
    return (eps_hat.double() - target.double()).square().mean(dim=(1, 2, 3))
