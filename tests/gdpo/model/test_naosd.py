"""NAOSD's forward pass against the formulas done by hand, and its arguments."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from gdpo.model.naosd import NAOSD
from gdpo.prior.architecture import SCHEDULER
from gdpo.seeds import torch_generator
from tests import tiny


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


def inputs(
    model: NAOSD, batch: int = 2, height: int = 32, width: int = 48
) -> dict[str, torch.Tensor]:
    shape = (batch, *model.latent_shape(height, width))
    return {
        "x_BCHW": torch.rand(batch, 3, height, width, generator=torch_generator("x")) * 2 - 1,
        "prompt_BLD": model.embed(["a", "b"])[:batch],
        "noise": torch.randn(shape, generator=torch_generator("noise")),
        "posterior_noise": torch.randn(shape, generator=torch_generator("posterior")),
    }


@torch.no_grad()
def test_forward_is_the_released_formula(model: NAOSD) -> None:
    given = inputs(model)
    posterior = model.vae.encode(given["x_BCHW"]).latent_dist
    # 0.5: the tiny VAE's scaling factor.
    z = 0.5 * (posterior.mean + posterior.std * given["posterior_noise"])
    add, diff = (float(DDPMScheduler.from_config(SCHEDULER).alphas_cumprod[t]) for t in (250, 100))
    noisy = add**0.5 * z + (1 - add) ** 0.5 * given["noise"]
    eps = model.unet(noisy, 100, given["prompt_BLD"]).sample
    clean = (noisy - (1 - diff) ** 0.5 * eps) / diff**0.5
    image = model.vae.decode(clean / 0.5).sample
    found = model(**given)
    assert (image.abs() > 1).any(), "the clamp must have something to do"
    assert float((found - image.clamp(-1, 1)).norm() / found.norm()) < 1e-5
    assert found.shape == given["x_BCHW"].shape


@torch.no_grad()
def test_t_add_is_a_knob_and_noise_matters(model: NAOSD) -> None:
    given = inputs(model)
    z = model.encode(given["x_BCHW"], given["posterior_noise"])
    assert torch.equal(model.inject(z, given["noise"]), model.inject(z, given["noise"], 250))
    assert not torch.equal(model.inject(z, given["noise"]), model.inject(z, given["noise"], 150))
    changed = model(**{**given, "noise": -given["noise"]})
    assert (changed - model(**given)).abs().mean() > 1e-2


def test_shapes(model: NAOSD) -> None:
    assert (model.factor, model.multiple) == (4, 8)
    assert model.latent_shape(32, 48) == (4, 8, 12)
    assert model.embed(["a", "b"]).shape == (2, 77, tiny.WIDTH)
    assert model.scaling == 0.5


def test_one_prompt_serves_the_whole_batch(model: NAOSD) -> None:
    given = inputs(model)
    one = {**given, "prompt_BLD": given["prompt_BLD"][:1]}
    both = {**given, "prompt_BLD": given["prompt_BLD"][:1].expand(2, -1, -1)}
    with torch.no_grad():
        assert torch.equal(model(**one), model(**both))


def test_half_precision_runs(model: NAOSD) -> None:
    half = tiny.model().to(torch.bfloat16)
    given = inputs(model)
    with torch.no_grad():
        out = half(**{name: value.bfloat16() for name, value in given.items()})
        assert out.dtype == torch.bfloat16
        assert (out.float() - model(**given)).abs().mean() < 0.05


def test_noise_of_another_shape_does_not_broadcast(model: NAOSD) -> None:
    given = inputs(model)
    with pytest.raises(ValueError, match="noise must have the shape of the latent of x_BCHW"):
        model.encode(given["x_BCHW"], given["noise"][:1])
    with pytest.raises(ValueError, match="noise and z must have the same shape"):
        model.inject(given["noise"], given["noise"][:1])


@torch.no_grad()
def test_a_generator_stands_for_the_noise_it_draws(model: NAOSD) -> None:
    given = inputs(model)
    z = model.encode(given["x_BCHW"], torch_generator("posterior"))
    assert torch.equal(z, model.encode(given["x_BCHW"], given["posterior_noise"]))
    assert not torch.equal(z, model.encode(given["x_BCHW"], torch_generator("another")))


@torch.no_grad()
def test_the_steps_by_themselves_make_the_whole(model: NAOSD) -> None:
    """What another implementation replays, tensor by tensor."""
    given = inputs(model)
    z = model.encode(given["x_BCHW"], given["posterior_noise"])
    z = model.denoise(model.inject(z, given["noise"], 250), given["prompt_BLD"])
    assert torch.equal(model.decode(z), model(**given))


@torch.no_grad()
def test_without_t_add_no_noise_is_injected(model: NAOSD) -> None:
    """OSEDiff: z_SR = (z - sqrt(1 - abar_999) e) / sqrt(abar_999), whatever the noise."""
    osediff, given = tiny.model(), inputs(model)
    osediff.t_add, osediff.t_diff = None, 999
    z = osediff.encode(given["x_BCHW"], given["posterior_noise"])
    assert osediff.inject(z, given["noise"]) is z
    assert torch.equal(osediff.inject(z, given["noise"], 250), model.inject(z, given["noise"]))
    eps = osediff.unet(z, 999, given["prompt_BLD"]).sample
    abar = float(DDPMScheduler.from_config(SCHEDULER).alphas_cumprod[999])
    clean = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
    wanted = osediff.vae.decode(clean / 0.5).sample.clamp(-1, 1)
    assert float((osediff(**given) - wanted).norm() / wanted.norm()) < 1e-5
    assert torch.equal(osediff(**given), osediff(**{**given, "noise": -given["noise"]}))


def test_each_argument_of_a_forward_pass_is_looked_at_once(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at values makes the CPU wait for the device."""
    model = NAOSD.from_pretrained(tiny_base)
    noise = torch.zeros(1, *model.latent_shape(32, 32))
    prompt = model.embed([""])
    looks = []
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda tensor: looks.append(tensor) or aminmax(tensor))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32), prompt, noise, noise)
    assert len(looks) <= 5  # x_BCHW's range and type, the prompt, two noises
