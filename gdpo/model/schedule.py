"""The noise schedule of Stable Diffusion 2.1-base, as formulas.

    abar_t = prod_{s<=t} (1 - beta_s),   beta_s = linspace(sqrt(0.00085), sqrt(0.012), 1000)_s^2
    add:  z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps
    x0:   z   = (z_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)

No scheduler object is used. Since diffusers 0.32, `DDPMScheduler.step` raises an IndexError in the
one-step call of the released code, and by default it silently clips x0 to [-1, 1].
"""

from functools import cache

import torch

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


@cache
def alphas_cumprod() -> torch.Tensor:
    """abar_t for t = 0..999, float64 on the CPU."""
    # float64 on the CPU, rounded once when a coefficient takes a tensor's dtype: a product of 1000
    # factors in float32 would depend on the device in its last digits.
    # "scaled_linear": the square roots are evenly spaced, not the betas.
    beta = (
        torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
        ** 2
    )
    return torch.cumprod(1 - beta, 0)


def check_timestep(name: str, t: object) -> None:
    """Raise ValueError naming the argument unless t is an integer or integer tensor in 0..999."""
    if (
        isinstance(t, bool)
        or not isinstance(t, int | torch.Tensor)
        or (isinstance(t, torch.Tensor) and not _whole(t))
    ):
        raise ValueError(
            f"{name} must be a whole number or a tensor of such, got {getattr(t, 'dtype', repr(t))}"
        )
    index = torch.as_tensor(t, device="cpu").reshape(-1)
    if bool((index < 0).any() | (index >= NUM_TRAIN_TIMESTEPS).any()):
        raise ValueError(f"{name} must lie in 0..{NUM_TRAIN_TIMESTEPS - 1}, got {index.tolist()}")


def _whole(t: torch.Tensor) -> bool:
    return not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool


def _coefficients(t: torch.Tensor | int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `like` (B, ...)."""
    check_timestep("timestep", t)
    index = torch.as_tensor(t, device="cpu").reshape(-1)
    abar = alphas_cumprod()[index].reshape(-1, *[1] * (like.ndim - 1))
    later = like.device.type != "cpu"  # a blocking copy would wait for the device
    return abar.sqrt().to(like, non_blocking=later), (1 - abar).sqrt().to(like, non_blocking=later)


def add_noise(z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Forward diffusion of z (B, ...) to timestep t, one int or one per sample (paper Eq. 1)."""
    scale, sigma = _coefficients(t, z)
    return scale * z + sigma * noise


def predict_x0(z_t: torch.Tensor, eps_hat: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """x0 from z_t and the noise prediction eps_hat at timestep t (paper Eq. 4)."""
    scale, sigma = _coefficients(t, z_t)
    # The division enlarges errors of eps_hat by sigma / scale: 0.34 at t = 100, 1.6 at t = 500.
    return (z_t - sigma * eps_hat) / scale
