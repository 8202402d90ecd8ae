"""NAOSD's forward pass against the formulas done by hand, and its arguments."""

from typing import Any

import pytest
import torch

from gdpo.model.naosd import NAOSD
from gdpo.training import torch_generator
from tests import tiny


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


def inputs(model: NAOSD, batch: int = 2, height: int = 32, width: int = 48) -> dict[str, torch.Tensor]:
    shape = (batch, *model.latent_shape(height, width))
    return {
        "x": torch.rand(batch, 3, height, width, generator=torch_generator("x")) * 2 - 1,
        "prompt": model.embed(["a", "b"])[:batch],
        "noise": torch.randn(shape, generator=torch_generator("noise")),
        "posterior_noise": torch.randn(shape, generator=torch_generator("posterior")),
    }


@torch.no_grad()
def test_forward_is_the_released_formula(model: NAOSD) -> None:
    given = inputs(model)
    posterior = model.vae.encode(given["x"]).latent_dist
    z = 0.5 * (posterior.mean + posterior.std * given["posterior_noise"])  # 0.5: the tiny VAE's scaling factor
    noisy = 0.673792**0.5 * z + (1 - 0.673792) ** 0.5 * given["noise"]
    eps = model.unet(noisy, 100, given["prompt"]).sample
    clean = (noisy - (1 - 0.894223) ** 0.5 * eps) / 0.894223**0.5
    image = model.vae.decode(clean / 0.5).sample
    found = model(**given)
    assert (image.abs() > 1).any(), "the clamp must have something to do"
    assert torch.allclose(found, image.clamp(-1, 1), atol=2e-5)
    assert found.shape == given["x"].shape


@torch.no_grad()
def test_t_add_is_a_knob_and_noise_matters(model: NAOSD) -> None:
    given = inputs(model)
    z = model.encode(given["x"], given["posterior_noise"])
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
    one = {**given, "prompt": given["prompt"][:1]}
    both = {**given, "prompt": given["prompt"][:1].expand(2, -1, -1)}
    with torch.no_grad():
        assert torch.equal(model(**one), model(**both))


def test_half_precision_runs(model: NAOSD) -> None:
    half = tiny.model().to(torch.bfloat16)
    given = inputs(model)
    with torch.no_grad():
        out = half(**{name: value.bfloat16() for name, value in given.items()})
        assert out.dtype == torch.bfloat16
        assert (out.float() - model(**given)).abs().mean() < 0.05


def wrong(name: str, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    x, noise = given["x"], given["noise"]
    cases: dict[str, dict[str, Any]] = {
        "x channels": {"x": x[:, :1]},
        "x sides": {"x": x[..., :36]},
        "x range": {"x": x * 3},
        "x dtype": {"x": (x * 100).to(torch.uint8)},
        "x nan": {"x": torch.where(x > 0.9, torch.nan, x)},
        "noise batch": {"noise": noise[:1]},
        "noise shape": {"noise": noise[..., :4]},
        "noise nan": {"noise": noise * torch.inf},
        "posterior_noise batch": {"posterior_noise": noise[:1]},
        "prompt shape": {"prompt": given["prompt"][0]},
        "prompt batch": {"prompt": given["prompt"][:1].expand(3, -1, -1)},
        "prompt kind": {"prompt": "sharp"},
    }
    return cases[name]


@pytest.mark.parametrize(
    "case",
    [
        *("x channels", "x sides", "x range", "x dtype", "x nan", "noise batch", "noise shape", "noise nan"),
        *("posterior_noise batch", "prompt shape", "prompt batch", "prompt kind"),
    ],
)
def test_bad_arguments_are_named(model: NAOSD, case: str) -> None:
    given = inputs(model)
    with pytest.raises(ValueError, match=f"^{case.split()[0]} must|^{case.split()[0]} has values"):
        model(**{**given, **wrong(case, given)})


def test_noise_of_another_shape_does_not_broadcast(model: NAOSD) -> None:
    given = inputs(model)
    with pytest.raises(ValueError, match="noise and the latent of x must have the same shape"):
        model.encode(given["x"], given["noise"][:1])
    with pytest.raises(ValueError, match="noise and z must have the same shape"):
        model.inject(given["noise"], given["noise"][:1])
