"""Noise errors: the formula, the two kinds of noise and of target, and policy == reference before training."""

import pytest
import torch

from gdpo.config import Lora, Rollout
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import add_noise, predict_x0
from gdpo.preference.errors import Latents, consistent_target, noise_errors
from gdpo.training import torch_generator
from tests import tiny

SHAPE = (3, 4, 8, 8)
LATENTS = Latents(torch.randn(SHAPE, generator=torch_generator("mean")), torch.rand(SHAPE, generator=torch_generator("std")))


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


def settings(**changes: object) -> Rollout:
    return tiny.settings(rollout=changes).rollout


def errors(model: NAOSD, config: Rollout, latents: Latents = LATENTS, *, group: str = "g", visit: int = 0) -> torch.Tensor:
    return noise_errors(model, latents, model.embed(["sharp"]), config, seed=0, group=group, visit=visit)


def draw(name: str, members: list[int]) -> torch.Tensor:
    return torch.stack([torch.randn(SHAPE[1:], generator=torch_generator(0, name, "g", 0, i)) for i in members])


@pytest.mark.parametrize("noise", ["own", "shared"])
@pytest.mark.parametrize("target", ["added", "consistent"])
@torch.no_grad()
def test_the_formula(model: NAOSD, noise: str, target: str) -> None:
    eps = draw("loss-noise", [0, 0, 0] if noise == "shared" else [0, 1, 2])
    z = LATENTS.mean + LATENTS.std * draw("re-encode", [0, 1, 2])
    noisy = 0.673792**0.5 * z + (1 - 0.673792) ** 0.5 * eps
    found = model.unet(noisy, 100, model.embed(["sharp"]).expand(3, -1, -1)).sample
    wanted = eps if target == "added" else (noisy - 0.894223**0.5 * z) / (1 - 0.894223) ** 0.5
    config = settings(noise=noise, target=target)
    assert errors(model, config).dtype == torch.float64
    assert errors(model, config).tolist() == pytest.approx((found - wanted).square().mean(dim=(1, 2, 3)).tolist(), rel=1e-4)


def test_the_consistent_target_is_what_returns_the_latent() -> None:
    z, noise = LATENTS.mean.double(), LATENTS.std.double()
    noisy = add_noise(z, noise, 250)
    assert torch.allclose(predict_x0(noisy, consistent_target(noisy, z, 100), 100), z, atol=1e-12)
    same = add_noise(z, noise, 100)
    assert torch.allclose(consistent_target(same, z, 100), noise, atol=1e-12)  # nothing differs when t_add is t_diff


def test_shared_noise_is_one_noise_for_the_group(model: NAOSD) -> None:
    same = Latents(LATENTS.mean[:1].expand(SHAPE).contiguous(), torch.zeros(SHAPE))
    with torch.no_grad():
        shared, own = (errors(model, settings(noise=kind), same) for kind in ("shared", "own"))
    assert shared.tolist() == pytest.approx([shared[0].item()] * 3, rel=1e-6)
    assert own.std() > 1e-3


def test_noise_belongs_to_seed_group_and_visit(model: NAOSD) -> None:
    with torch.no_grad():
        first = errors(model, settings())
        assert torch.equal(errors(model, settings()), first)
        assert not torch.equal(errors(model, settings(), visit=1), first)
        assert not torch.equal(errors(model, settings(), group="h"), first)


def test_a_model_that_injects_no_noise_is_refused() -> None:
    model = tiny.model()
    model.t_add = None
    with pytest.raises(ValueError, match=r"^model.t_add is null: GDPO compares errors at the noise a model injects"):
        errors(model, settings())


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (Latents(LATENTS.mean[0], LATENTS.std), "latents.mean must have shape BCHW"),
        (Latents(LATENTS.mean, LATENTS.std[:1]), "latents.std and latents.mean must have the same shape"),
        (Latents(LATENTS.mean * torch.nan, LATENTS.std), "latents.mean has values that are NaN"),
        (Latents(LATENTS.mean, LATENTS.std.int()), "latents.std must be a floating-point tensor"),
        (Latents(LATENTS.mean, LATENTS.std - 1), "latents.std must not be negative"),
    ],
)
def test_bad_latents_are_named(model: NAOSD, latents: Latents, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        errors(model, settings(), latents)


def test_policy_and_reference_agree_to_the_bit_before_training() -> None:
    """Without gradients and with them, without the role and with it: m - r is multiplied by 2500."""
    model = tiny.model()
    with torch.no_grad():
        reference = errors(model, settings())
    model.unet_roles.add("policy", Lora(rank=2, alpha=4), seed=0)
    with model.unet_roles.use("policy"):
        policy = errors(model, settings())
    assert policy.requires_grad and not reference.requires_grad
    assert torch.equal(policy, reference)


def test_gradients_reach_every_adapter_of_the_policy() -> None:
    model = tiny.model()
    model.unet_roles.add("policy", Lora(rank=2, alpha=4), seed=0)
    with model.unet_roles.use("policy"):
        errors(model, settings()).sum().backward()
    parameters = model.unet_roles.parameters("policy")
    assert all(bool(p.grad.any()) for name, p in parameters.items() if name.endswith("lora_B"))  # type: ignore[union-attr]
    assert not any(bool(p.grad.any()) for name, p in parameters.items() if name.endswith("lora_A"))  # type: ignore[union-attr]
