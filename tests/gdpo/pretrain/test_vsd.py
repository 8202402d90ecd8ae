"""VSD and the fake score's loss: values and gradients in closed form, replayed from given
noises.
"""

from typing import Any

import pytest
import torch

from gdpo.model.schedule import add_noise, alphas_cumprod, predict_x0
from gdpo.pretrain.vsd import fake_score_loss, guided_noise, vsd_loss
from gdpo.seeds import torch_generator

T = torch.tensor([20, 250, 499])


def tensors(*names: str) -> list[Any]:
    return [
        torch.randn(3, 4, 2, 5, generator=torch_generator(name), dtype=torch.float64)
        for name in names
    ]


def test_the_gradient_is_2_g_over_n() -> None:
    z, noise, eps_fake, eps_real = tensors("z", "noise", "fake", "real")
    z.requires_grad_()
    loss = vsd_loss(z, noise, T, eps_fake, eps_real)
    loss.backward()
    with torch.no_grad():
        z_t = add_noise(z, noise, T)
        fake, real = predict_x0(z_t, eps_fake, T), predict_x0(z_t, eps_real, T)
        weight = torch.stack([(z[b] - real[b]).abs().mean() for b in range(3)]).reshape(3, 1, 1, 1)
        g = (fake - real) / weight
    assert torch.allclose(z.grad, 2 * g / z.numel(), rtol=1e-12)
    assert loss.item() == pytest.approx(g.square().mean().item(), rel=1e-12)


def test_written_out_for_one_value() -> None:
    """x0 = (z_t - sqrt(1 - abar) eps) / sqrt(abar), so x0_fake - x0_real = sigma (eps_real -
    eps_fake) / scale.
    """
    abar = float(alphas_cumprod()[250])
    z, noise = torch.tensor(0.3), torch.tensor(-0.5)
    eps_fake, eps_real = torch.tensor(0.1), torch.tensor(0.9)
    real = (abar**0.5 * 0.3 + (1 - abar) ** 0.5 * (-0.5 - 0.9)) / abar**0.5
    g = ((1 - abar) / abar) ** 0.5 * (0.9 - 0.1) / abs(0.3 - real)
    given = [x.double().reshape(1, 1, 1, 1) for x in (z, noise, eps_fake, eps_real)]
    loss = vsd_loss(given[0], given[1], torch.tensor([250]), *given[2:])
    assert loss.item() == pytest.approx(g**2, rel=1e-6)


def test_only_z_gets_a_gradient() -> None:
    z, noise, eps_fake, eps_real = (
        x.requires_grad_() for x in tensors("z", "noise", "fake", "real")
    )
    vsd_loss(z, noise, T, eps_fake, eps_real).backward()
    assert z.grad is not None and bool(z.grad.any())
    assert noise.grad is None and eps_fake.grad is None and eps_real.grad is None


def test_equal_scores_pull_nowhere() -> None:
    z, noise, eps = tensors("z", "noise", "fake")
    z.requires_grad_()
    loss = vsd_loss(z, noise, T, eps, eps)
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


def test_a_sample_the_real_score_leaves_alone_has_no_gradient() -> None:
    """The release divides by zero there. At z = noise = 0 and eps_real = 0, x0_real is exactly
    z.
    """
    z, noise, eps_fake, eps_real = tensors("z", "noise", "fake", "real")
    for x in (z, noise, eps_real):
        x[1] = 0
    z.requires_grad_()
    loss = vsd_loss(z, noise, T, eps_fake, eps_real)
    loss.backward()
    assert torch.isfinite(loss)
    assert not z.grad[1].any() and z.grad[0].any() and z.grad[2].any()


def test_samples_do_not_see_each_other() -> None:
    z, noise, fake, real = tensors("z", "noise", "fake", "real")
    whole = vsd_loss(z, noise, T, fake, real)
    alone = [vsd_loss(*(x[b : b + 1] for x in (z, noise, T, fake, real))) for b in range(3)]
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-12)


def test_guidance() -> None:
    positive, negative = tensors("p", "n")
    assert torch.allclose(guided_noise(positive, negative, 7.5), 7.5 * positive - 6.5 * negative)
    assert torch.allclose(guided_noise(positive, negative, 1.0), positive)


def test_fake_score_loss_is_a_mean_square_with_its_gradient() -> None:
    eps, noise = tensors("fake", "noise")
    assert fake_score_loss(eps, noise).item() == pytest.approx((eps - noise).square().mean().item())
    assert torch.autograd.gradcheck(fake_score_loss, (eps.requires_grad_(), noise))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("z", torch.zeros(3, 4, 2), "z must have shape BCHW"),
        ("noise", torch.zeros(1, 4, 2, 5), "noise and z must have the same shape"),
        ("eps_fake", torch.zeros(3, 4, 2, 4), "eps_fake and z must have the same shape"),
        ("eps_real", torch.zeros(6, 4, 2, 5), "eps_real and z must have the same shape"),
        (
            "eps_real",
            torch.zeros(3, 4, 2, 5, dtype=torch.int64),
            "eps_real must be a floating-point tensor",
        ),
        ("eps_fake", torch.full((3, 4, 2, 5), torch.nan), "eps_fake has values that are NaN"),
        ("z", torch.full((3, 4, 2, 5), torch.inf), "z has values that are NaN or infinite"),
        (
            "t",
            torch.tensor([250]),
            r"t must have one timestep per sample, shape \(3,\), got \(1,\)",
        ),
        ("t", torch.tensor([1, 2, 1000]), "^t must lie in 0..999"),
    ],
)
def test_bad_arguments_are_named(name: str, value: torch.Tensor, says: str) -> None:
    given: dict[str, Any] = dict(
        zip(("z", "noise", "eps_fake", "eps_real"), tensors(*"abcd"), strict=True)
    )
    with pytest.raises(ValueError, match=says):
        vsd_loss(**{**given, "t": T, name: value})


def test_fake_score_loss_names_bad_arguments() -> None:
    (eps,) = tensors("fake")
    with pytest.raises(ValueError, match="eps_fake and noise must have the same shape"):
        fake_score_loss(eps, eps[:1])
    with pytest.raises(ValueError, match="noise has values that are NaN"):
        fake_score_loss(eps, eps * torch.nan)
