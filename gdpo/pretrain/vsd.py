"""Variational score distillation (VSD) on the latent z_SR, as released (OSEDiff's form).

    t ~ U[20, 500), z_t = add_noise(z, eps, t)                 one t per sample
    x0_fake from eps_fake(z_t, t, c_pos)                       fake score
    x0_real from eps_real = e_neg + 7.5 (e_pos - e_neg)        real score: frozen base with
                                                               classifier-free guidance
    w = mean |z - x0_real| per sample
    g = (x0_fake - x0_real) / w
    L_VSD = MSE(z, stopgrad(z - g))                            gradient reaches z only

The fake score has a denoising loss of its own, on detached z, with t ~ U[0, 1000). Both scores
share one UNet: the real score is the base without an active role, the fake score its `fake` role.
All adapters of the fake score are trained; in the released code only 17 of 258 are.
"""

import torch
import torch.nn.functional as F

from gdpo.checks import check_same_shape, check_tensor
from gdpo.model.schedule import add_noise, check_timestep, predict_x0


def guided_noise(
    eps_positive: torch.Tensor, eps_negative: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Classifier-free guidance: e_neg + guidance (e_pos - e_neg)."""
    # Only the real score is guided: it is the target. The fake score has to describe the images
    # that the generator makes now, and those follow no guidance.
    return eps_negative + guidance * (eps_positive - eps_negative)


def vsd_loss(
    z: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    eps_fake: torch.Tensor,
    eps_real: torch.Tensor,
) -> torch.Tensor:
    """L_VSD, a scalar, with gradient to z only.

    z, noise: (B, c, h, w). t: (B,), 0..999. eps_fake, eps_real: noise predictions of both scores at
    z_t, (B, c, h, w). Source: released code; L_VSD in the paper's Eq. 5.
    Errors: ValueError naming the argument for a wrong or differing shape, a timestep outside
    0..999, or NaN.
    """
    check_tensor("z", z, "BCHW")
    for name, value in (("noise", noise), ("eps_fake", eps_fake), ("eps_real", eps_real)):
        check_same_shape(name, check_tensor(name, value, "BCHW"), "z", z)
    if not isinstance(t, torch.Tensor) or t.shape != z.shape[:1]:
        shape = tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
        raise ValueError(
            f"t must have one timestep per sample, shape {tuple(z.shape[:1])}, got {shape}"
        )
    check_timestep("t", t)
    with torch.no_grad():
        z_t = add_noise(z, noise, t)
        x0_fake, x0_real = predict_x0(z_t, eps_fake.to(z), t), predict_x0(z_t, eps_real.to(z), t)
        # How far z is from a real image. Without this factor (DMD's) the noisiest timesteps, whose
        # x0 is the least certain, would give the largest gradients.
        weight = (z - x0_real).abs().mean(dim=(1, 2, 3), keepdim=True)
        # A sample that equals x0_real gets no gradient; the released code would divide by zero.
        gradient = torch.where(weight > 0, (x0_fake - x0_real) / weight, torch.zeros_like(z))
        target = z - gradient
    # Its derivative in z is proportional to `gradient`: the difference of two scores becomes a loss
    # without a backward pass through either network.
    return F.mse_loss(z, target)


def fake_score_loss(eps_fake: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Denoising loss of the fake score: MSE of its noise prediction and the added noise.

    eps_fake, noise: (B, c, h, w).
    Errors: ValueError naming the argument for a wrong or differing shape, or NaN.
    """
    check_same_shape(
        "eps_fake",
        check_tensor("eps_fake", eps_fake, "BCHW"),
        "noise",
        check_tensor("noise", noise, "BCHW"),
    )
    return F.mse_loss(eps_fake, noise.to(eps_fake))
