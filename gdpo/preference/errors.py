"""The errors that every objective compares: one code path for the reference (rollout stage) and the
policy (finetune).

    forward process   z_i   a sample of the posterior of the re-encoded candidate;  z~_i =
                      add_noise(z_i, eps_i, t_add)
                      m_i   = mean (UNet(z~_i, t_diff, c) - target_i)^2
                      target: eps_i (release), or the noise that makes Eq. 4 return z_i at t_diff
                      ("consistent")
    action            z~_i  the candidate's own state: z_LR with its own noise;  z_i =
                      mu_reference(z~_i) + sigma xi_i
                      m_i   = mean (z_i - mu(z~_i))^2, in x0 space: the negative log-density of the
                            action up to 2 sigma^2

The second is the first with the action as the "consistent" target, scaled from noise to x0. The
loss multiplies m - r by omega/2 = 2500, so both come from the same batch shape, precision and
noise, and the mean is taken in float64: summed in fp32, the difference loses three digits first.
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
    """Input and target of one noise prediction: noisy latents (G, c, h, w), the targets of
    eps_hat, and m's unit.
    """

    z_noisy: torch.Tensor
    target: torch.Tensor
    unit: float = 1.0

    def part(self, members: slice) -> "NoiseTarget":
        """The same for some of the candidates."""
        return NoiseTarget(self.z_noisy[members], self.target[members], self.unit)


def consistent_target(z_noisy: torch.Tensor, z: torch.Tensor, t_diff: int) -> torch.Tensor:
    """The noise prediction for which Eq. 4 at t_diff returns z from z_noisy."""
    abar = float(alphas_cumprod()[t_diff])
    return (z_noisy - abar**0.5 * z) / (1 - abar) ** 0.5


def check_group(group: Group) -> None:
    """Raise ValueError naming the group and what of it is not finite, negative or of another
    size.
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
    """Input and target of a group's candidates on the device of its latents; all its draws follow
    from the group's seeds.

    noise_index: which of the stored noises (0..K-1). The draws come from noise_seeds[noise_index]:
    first the sample of each posterior, then the noise, with `noise: shared` the first candidate's
    for all. ValueError for a model that injects no noise (OSEDiff).
    """
    if model.t_add is None:
        raise ValueError(
            "model.t_add is null: errors are compared at the noise a model injects, and this one "
            "injects none"
        )
    mean, std, lr = group.latents.mean.float(), group.latents.std.float(), group.latents.lr
    shape = tuple(mean.shape[1:])
    if lr is not None:
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
    """eps_hat (G, c, h, w) in float64 by the role in use, in the precision of the rollouts."""
    with autocast(config.precision, batch.z_noisy.device.type):
        return model.predict_noise(batch.z_noisy, prompt).double()


def squared(difference: torch.Tensor, batch: NoiseTarget) -> torch.Tensor:
    """mean over a candidate's latent of difference^2, in m's unit: (G,) float64."""
    return batch.unit * difference.square().mean(dim=(1, 2, 3))


def noise_errors(
    model: NAOSD, group: Group, prompt: torch.Tensor, config: Rollout, noise_index: int
) -> torch.Tensor:
    """m_G, float64, of the role in use, with gradient where gradients are on. ValueError as
    `noise_target`.
    """
    batch = noise_target(model, group, config, noise_index)
    return squared(predict(model, batch, prompt, config) - batch.target.double(), batch)
