"""The schedule against the values of SD2.1-base, and against diffusers' own add_noise."""

import pytest
import torch
from diffusers import DDPMScheduler

from gdpo.model.schedule import add_noise, alphas_cumprod, predict_x0
from gdpo.prior.architecture import SCHEDULER

# t, abar_t, sqrt(abar_t), sqrt(1 - abar_t): diffusers' DDPMScheduler with SD2.1-base's
# configuration
TABLE = [
    (1, 0.998296, 0.999148, 0.041279),
    (100, 0.894223, 0.945634, 0.325234),
    (150, 0.827811, 0.909841, 0.414956),
    (200, 0.753692, 0.868154, 0.496295),
    (250, 0.673792, 0.820849, 0.571146),
    (350, 0.506487, 0.711679, 0.702505),
    (500, 0.276332, 0.525673, 0.850687),
    (999, 0.004660, 0.068265, 0.997667),
]


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("t", "abar", "signal", "noise"), TABLE)
def test_values_of_sd21_base(t: int, abar: float, signal: float, noise: float) -> None:
    found = alphas_cumprod()[t]
    values = [float(x) for x in (found, found.sqrt(), (1 - found).sqrt())]
    assert values == pytest.approx([abar, signal, noise], abs=1e-6)


@pytest.mark.parametrize("t", [250, torch.tensor([0, 250, 999])])
def test_add_noise_is_diffusers(z: torch.Tensor, t: torch.Tensor | int) -> None:
    scheduler = DDPMScheduler.from_config(SCHEDULER)
    noise = torch.randn_like(z)
    theirs = scheduler.add_noise(z, noise, torch.as_tensor(t).expand(3))
    assert torch.allclose(add_noise(z, noise, t), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("t", [0, 100, torch.tensor([20, 499, 999])])
def test_predict_x0_undoes_add_noise(z: torch.Tensor, t: torch.Tensor | int) -> None:
    z, noise = z.double(), torch.randn(3, 4, 2, 2, dtype=torch.float64)
    assert torch.allclose(predict_x0(add_noise(z, noise, t), noise, t), z, rtol=1e-12, atol=1e-12)


def test_one_step_coefficients_of_the_paper(z: torch.Tensor) -> None:
    """Eq. 6 with the release's (250, 100): a perfect noise prediction leaves 0.8680 z and 0.2601
    eps.
    """
    noise = torch.randn_like(z)
    out = predict_x0(add_noise(z, noise, 250), noise, 100)
    assert torch.allclose(out, 0.868042 * z + 0.260051 * noise, atol=2e-5)


def test_the_dtype_is_that_of_the_latent(z: torch.Tensor) -> None:
    assert add_noise(z.bfloat16(), z.bfloat16(), 250).dtype == torch.bfloat16
    assert predict_x0(z.double(), z.double(), 100).dtype == torch.float64


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([5, 1000, 3])])
def test_a_timestep_out_of_range_is_named(z: torch.Tensor, t: torch.Tensor | int) -> None:
    with pytest.raises(ValueError, match=r"timestep must lie in 0\.\.999, got"):
        add_noise(z, z, t)
    with pytest.raises(ValueError, match=r"timestep must lie in 0\.\.999, got"):
        predict_x0(z, z, t)
