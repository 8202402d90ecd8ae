"""Noise errors: the formula, the two kinds of noise and of target, and policy == reference before
training.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config import Lora, Rollout
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import add_noise, predict_x0
from gdpo.preference.errors import (
    NoiseTarget,
    check_group,
    consistent_target,
    noise_target,
    predict,
    squared,
)
from gdpo.preference.group import Group, Latents
from gdpo.seeds import seeded_noise, torch_generator
from tests import tiny

SHAPE = (3, 4, 8, 8)
LATENTS = Latents(
    torch.randn(SHAPE, generator=torch_generator("mean")),
    torch.rand(SHAPE, generator=torch_generator("std")),
)


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


def settings(**changes: object) -> Rollout:
    return tiny.settings(rollout=changes).rollout


def group(latents: Latents = LATENTS, **changes: Any) -> Group:
    plain: dict[str, Any] = {
        "id": "g",
        "lr": "",
        "tags": None,
        "prompt": "sharp",
        "detail_share": 0.5,
        "seeds": [7, 8, 9],
        "metrics": {"psnr_y": [20.0, 21.0, 22.0]},
        "noise_seeds": [[1, 2, 3], [4, 5, 6]],
        "reference_error": [[0.3] * 3] * 2,
    }
    return Group(latents=latents, **{**plain, **changes})


def errors(
    model: NAOSD, config: Rollout, latents: Latents = LATENTS, visit: int = 0, **changes: Any
) -> torch.Tensor:
    return tiny.noise_errors(
        model, group(latents, **changes), model.embed(["sharp"]), config, visit
    )


@pytest.mark.parametrize("noise", ["own", "shared"])
@pytest.mark.parametrize("target", ["added", "consistent"])
@torch.no_grad()
def test_the_formula(model: NAOSD, noise: str, target: str) -> None:
    posterior, eps = seeded_noise([1, 2, 3], SHAPE[1:], 2)
    eps = eps[:1].expand(SHAPE) if noise == "shared" else eps
    z = LATENTS.mean + LATENTS.std * posterior
    noisy = 0.673792**0.5 * z + (1 - 0.673792) ** 0.5 * eps
    found = model.unet(noisy, 100, model.embed(["sharp"]).expand(3, -1, -1)).sample
    wanted = eps if target == "added" else (noisy - 0.894223**0.5 * z) / (1 - 0.894223) ** 0.5
    config = settings(noise=noise, target=target)
    assert errors(model, config).dtype == torch.float64
    assert errors(model, config).tolist() == pytest.approx(
        (found - wanted).square().mean(dim=(1, 2, 3)).tolist(), rel=1e-4
    )


def test_the_consistent_target_is_what_returns_the_latent() -> None:
    z, noise = LATENTS.mean.double(), LATENTS.std.double()
    noisy = add_noise(z, noise, 250)
    assert torch.allclose(predict_x0(noisy, consistent_target(noisy, z, 100), 100), z, atol=1e-12)
    same = add_noise(z, noise, 100)
    # Nothing differs when t_add is t_diff.
    assert torch.allclose(consistent_target(same, z, 100), noise, atol=1e-12)


def test_shared_noise_is_one_noise_for_the_group(model: NAOSD) -> None:
    same = Latents(LATENTS.mean[:1].expand(SHAPE).contiguous(), torch.zeros(SHAPE))
    with torch.no_grad():
        shared, own = (errors(model, settings(noise=kind), same) for kind in ("shared", "own"))
    assert shared.tolist() == pytest.approx([shared[0].item()] * 3, rel=1e-6)
    assert own.std() > 1e-3


@torch.no_grad()
def test_an_actions_error_is_its_distance_from_the_models_x0(model: NAOSD) -> None:
    """mean (z_i - mu(z~_i))^2 with z~_i from the group's own seeds: neither noise seeds nor the
    visit play a part.
    """
    z_lr = torch.randn(SHAPE[1:], generator=torch_generator("lr"))
    action = Latents(LATENTS.mean, torch.zeros(SHAPE), z_lr)
    z_noisy = add_noise(z_lr.expand(SHAPE), seeded_noise([7, 8, 9], SHAPE[1:], 3)[0], 250)
    wanted = (
        (LATENTS.mean - model.denoise(z_noisy, model.embed(["sharp"]))).square().mean(dim=(1, 2, 3))
    )
    found = errors(model, settings(), action)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert torch.equal(errors(model, settings(), action, visit=1, noise_seeds=[[0] * 3] * 2), found)


def test_noise_belongs_to_the_stored_seeds(model: NAOSD) -> None:
    with torch.no_grad():
        first = errors(model, settings())
        assert torch.equal(errors(model, settings()), first)
        assert not torch.equal(errors(model, settings(), visit=1), first)
        assert torch.equal(
            errors(model, settings(), visit=1, noise_seeds=[[0, 0, 0], [1, 2, 3]]), first
        )


def test_a_model_that_injects_no_noise_is_refused() -> None:
    model = tiny.model()
    model.t_add = None
    with pytest.raises(
        ValueError, match=r"^model.t_add is null: errors are compared at the noise a model injects"
    ):
        errors(model, settings())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            group(Latents(LATENTS.mean[0], LATENTS.std)),
            "group g: latents.mean must have shape BCHW",
        ),
        (
            group(Latents(LATENTS.mean, LATENTS.std[:1])),
            "latents.std and latents.mean must have the same shape",
        ),
        (
            group(Latents(LATENTS.mean * torch.nan, LATENTS.std)),
            "group g: latents.mean has values that are NaN",
        ),
        (
            group(Latents(LATENTS.mean, LATENTS.std.int())),
            "group g: latents.std must be a floating-point tensor",
        ),
        (
            group(Latents(LATENTS.mean, LATENTS.std - 1)),
            "group g: latents.std must not be negative",
        ),
        (
            group(Latents(LATENTS.mean, LATENTS.std, LATENTS.mean[0] * torch.nan)),
            "group g: latents.lr has values that are NaN",
        ),
        (group(detail_share=float("nan")), r"group g: detail_share is nan, not in \[0, 1\]"),
        (
            group(metrics={"niqe": [1.0, float("nan"), 2.0]}),
            "group g: niqe of its candidates is not finite",
        ),
        (
            group(reference_error=[[0.1, 0.2, 0.3], [0.1, float("inf"), 0.3]]),
            "group g: reference_error of its candidates is",
        ),
        (
            group(metrics={"niqe": [1.0, 2.0]}),
            "group g: its lists and latents differ in length from its 3 seeds",
        ),
        (
            group(noise_seeds=[[1, 2]]),
            "group g: its lists and latents differ in length from its 3 seeds",
        ),
    ],
)
def test_a_bad_group_is_named(bad: Group, says: str) -> None:
    check_group(group())
    with pytest.raises(ValueError, match=f"^{says}"):
        check_group(bad)


def test_policy_and_reference_agree_to_the_bit_before_training() -> None:
    """Without gradients and with them, without the role and with it: m - r is multiplied by
    2500.
    """
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
    assert all(bool(p.grad.any()) for name, p in parameters.items() if name.endswith("lora_B"))
    assert not any(bool(p.grad.any()) for name, p in parameters.items() if name.endswith("lora_A"))


@pytest.mark.parametrize("target", ["added", "consistent"])
def test_no_copy_to_the_device_is_waited_for(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On `meta`, which dispatches as a GPU does: the schedule's coefficients, the draws and the
    timestep.
    """
    model, given = tiny.model().to("meta"), group()
    there = replace(given, latents=given.latents.to(torch.device("meta")))
    seen: list[Any] = []
    monkeypatch.setattr(
        model.unet, "forward", lambda z, t, prompt: seen.append(t) or type("Out", (), {"sample": z})
    )
    config = tiny.settings(rollout={"target": target}).rollout
    prompt = torch.zeros(1, 4, 8, device="meta")
    with tiny.Counted() as counted:
        predict(model, noise_target(model, there, config, 0), prompt, config)
    assert counted.copies == 0 and seen[0].device.type == "meta"


def test_means_are_in_float64() -> None:
    """In float32 the difference of two means loses the digits that omega multiplies."""
    latent = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(0)) + 30

    class Model:
        def predict_noise(self, z: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
            return z

    target = NoiseTarget(latent, torch.zeros_like(latent))
    eps_hat = predict(Model(), target, torch.zeros(1), tiny.settings().rollout)
    found = float(squared(eps_hat - target.target.double(), target)[0])
    assert found == pytest.approx(float(np.mean(latent.numpy().astype(float) ** 2)), rel=1e-13)
