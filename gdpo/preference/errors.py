"""The errors of policy and reference that every objective compares.

One code path computes both: the reference's errors in the rollout stage, the policy's in finetune.

    forward process   z_i     a sample from the posterior of the re-encoded candidate
                      z~_i    = add_noise(z_i, eps_i, t_add)
                      target  eps_i (released code), or "consistent": the noise for which Eq. 4 at
                              t_diff returns z_i
                      m_i     = mean (UNet(z~_i, t_diff, c) - target_i)^2

    action            z~_i    the state in which z_i was sampled: z_LR with the noise of candidate i
                      z_i     = mu_reference(z~_i) + sigma xi_i
                      m_i     = mean (z_i - mu(z~_i))^2 in x0 space: divided by 2 sigma^2, the
                              negative log-density of the action up to a constant

The action case is the forward process with the action as "consistent" target, rescaled from noise
space to x0 space.

The loss multiplies the difference m - r by omega/2 = 2500. Therefore m and r come from the same
batch shape, precision and noise, and the mean is taken in float64: an fp32 sum would cost the
difference about three digits.
"""

from dataclasses import dataclass

import torch

from gdpo.checks import check_same_shape, check_tensor
from gdpo.config import Rollout
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast
from gdpo.model.schedule import add_noise, alphas_cumprod
from gdpo.preference.group import Group
from gdpo.seeds import seeded_noise


@dataclass(frozen=True)
class NoiseTarget:
    """Input and target of one noise prediction for the candidates of a group.

    z_noisy, target: (G, c, h, w), the noisy latents and the target of eps_hat. unit: factor on the
    mean squared error; it converts m from noise space to x0 space for actions, and is 1 otherwise.
    """

    z_noisy: torch.Tensor
    target: torch.Tensor
    unit: float = 1.0

    def part(self, members: slice) -> "NoiseTarget":
        """Input and target of some of the candidates."""
        return NoiseTarget(self.z_noisy[members], self.target[members], self.unit)


def consistent_target(z_noisy: torch.Tensor, z: torch.Tensor, t_diff: int) -> torch.Tensor:
    """The noise prediction for which Eq. 4 at t_diff returns z from z_noisy."""
    abar = float(alphas_cumprod()[t_diff])
    return (z_noisy - abar**0.5 * z) / (1 - abar) ** 0.5


def check_group(group: Group) -> None:
    """Check a group's latents, metrics, errors and detail share.

    Errors: ValueError naming the group and the field that is not finite, negative, out of range or
    of the wrong length.
    """
    latents, size = group.latents, len(group.seeds)
    for name in ("mean", "std"):
        check_tensor(f"group {group.id}: latents.{name}", getattr(latents, name), "BCHW")
    check_same_shape("latents.std", latents.std, "latents.mean", latents.mean)
    if latents.lr is not None:
        check_tensor(f"group {group.id}: latents.lr", latents.lr, "CHW")
    if not 0 <= group.detail_share <= 1:
        raise ValueError(f"group {group.id}: detail_share is {group.detail_share}, not in [0, 1]")
    if bool((latents.std < 0).any()):
        raise ValueError(f"group {group.id}: latents.std must not be negative")
    lengths = {
        len(latents.mean),
        *(len(values) for values in group.metrics.values()),
        *(len(e) for e in group.reference_error),
    }
    if lengths | {len(seeds) for seeds in group.noise_seeds} != {size}:
        raise ValueError(
            f"group {group.id}: its lists and latents differ in length from its {size} seeds"
        )
    for name, values in (
        *group.metrics.items(),
        *(("reference_error", row) for row in group.reference_error),
    ):
        if not torch.tensor(values, dtype=torch.float64).isfinite().all():
            raise ValueError(f"group {group.id}: {name} of its candidates is not finite")


def noise_target(model: NAOSD, group: Group, config: Rollout, noise_index: int) -> NoiseTarget:
    """Input and target of one noise prediction for a group, on the device of its latents.

    noise_index: index of the stored noise, 0..K-1. All draws follow from the seeds in
    noise_seeds[noise_index]: first the posterior sample, then the noise of each candidate. With
    `rollout.noise: shared` all candidates use the noise of the first.
    Errors: ValueError for a model that injects no noise (OSEDiff).
    """
    if model.t_add is None:
        raise ValueError(
            "model.t_add is null: errors are compared at the noise a model injects, and this one "
            "injects none"
        )
    mean, std, lr = group.latents.mean.float(), group.latents.std.float(), group.latents.lr
    shape = tuple(mean.shape[1:])
    if lr is not None:  # actions: rebuild the state each candidate was sampled in
        state = seeded_noise(group.seeds, shape, 3)[0].to(mean, non_blocking=True)
        z_noisy = add_noise(lr.float().expand_as(mean), state, model.t_add)
        abar = float(alphas_cumprod()[model.t_diff])
        return NoiseTarget(
            z_noisy, consistent_target(z_noisy, mean, model.t_diff), (1 - abar) / abar
        )
    posterior, noise = seeded_noise(group.noise_seeds[noise_index], shape, 2).to(
        mean, non_blocking=True
    )
    if config.noise == "shared":
        noise = noise[:1].expand_as(noise)
    z = mean + std * posterior
    z_noisy = add_noise(z, noise, model.t_add)
    return NoiseTarget(
        z_noisy, noise if config.target == "added" else consistent_target(z_noisy, z, model.t_diff)
    )


def predict(
    model: NAOSD, batch: NoiseTarget, prompt: torch.Tensor, config: Rollout
) -> torch.Tensor:
    """eps_hat (G, c, h, w) of the active role: computed in the rollouts' precision, float64."""
    with autocast(config.precision, batch.z_noisy.device.type):
        return model.predict_noise(batch.z_noisy, prompt).double()


def squared(difference: torch.Tensor, batch: NoiseTarget) -> torch.Tensor:
    """Mean of difference^2 over each candidate's latent, times batch.unit: (G,) float64."""
    return batch.unit * difference.square().mean(dim=(1, 2, 3))


def noise_errors(
    model: NAOSD, group: Group, prompt: torch.Tensor, config: Rollout, noise_index: int
) -> torch.Tensor:
    """The errors m (G,) of the active role, float64, with gradient if gradients are enabled.

    Errors: ValueError as in `noise_target`.
    """
    batch = noise_target(model, group, config, noise_index)
    return squared(predict(model, batch, prompt, config) - batch.target.double(), batch)
