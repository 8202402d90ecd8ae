"""The errors of policy and reference that every objective compares.

One code path computes both: the reference's errors in the rollout stage, the policy's in finetune.

    forward process   z_i     a sample from the posterior of the re-encoded candidate
                      z~_i    = add_noise(z_i, eps_i, t_add)
                      target  eps_i (released code), or "consistent": the noise for which Eq. 4 at
                              t_diff returns z_i
                      m_i     = mean (UNet(z~_i, t_diff, c) - target_i)^2

    input lr          z~      = add_noise(z_LR, eps, t_add): the LR latent that all candidates share
                              with one noise that is no candidate's own, as at inference
                      target  the noise for which Eq. 4 at t_diff returns z_SR,i, the candidate's
                              latent before decoding
                      m_i     = mean (UNet(z~, t_diff, c) - target_i)^2: one prediction for all i

    action            z~_i    the state in which z_i was sampled: z_LR with the noise of candidate i
                      z_i     = mu_reference(z~_i) + sigma xi_i
                      m_i     = mean (z_i - mu(z~_i))^2 in x0 space: divided by 2 sigma^2, the
                              negative log-density of the action up to a constant

The action case is the forward process with the action as "consistent" target, rescaled from noise
space to x0 space.

With input lr the logit is linear in the policy's prediction e: because the advantages sum to 0,

    sum_i A_i (m_i - r_i) = -2 mean[(e - e_reference) * sum_i A_i target_i]

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
    """Inputs of the noise prediction for a group, and what its candidates compare eps_hat with.

    z_noisy: (N, c, h, w), the noisy latents; N = G, or 1 if the candidates share their input, whose
    eps_hat then serves all of them. target: (G, c, h, w). unit: factor on the mean squared error;
    it converts m from noise space to x0 space for actions, and is 1 otherwise. reference: the
    reference's eps_hat (N, c, h, w) where it is stored.
    """

    z_noisy: torch.Tensor
    target: torch.Tensor
    unit: float = 1.0
    reference: torch.Tensor | None = None

    def part(self, inputs: slice) -> "NoiseTarget":
        """Some of the inputs, with the targets of their candidates."""
        if len(self.z_noisy) == 1:
            return self
        reference = None if self.reference is None else self.reference[inputs]
        return NoiseTarget(self.z_noisy[inputs], self.target[inputs], self.unit, reference)


def consistent_target(z_noisy: torch.Tensor, z: torch.Tensor, t_diff: int) -> torch.Tensor:
    """The noise prediction for which Eq. 4 at t_diff returns z from z_noisy."""
    # Eq. 4 solved for the noise. The added noise itself belongs to t_add = 250: put into Eq. 4 at
    # t_diff = 100 it would not return z.
    abar = float(alphas_cumprod()[t_diff])
    return (z_noisy - abar**0.5 * z) / (1 - abar) ** 0.5


def check_group(group: Group) -> None:
    """Check a group's latents, metrics, errors and detail share.

    Errors: ValueError naming the group and the field that is not finite, negative, out of range or
    of the wrong length.
    """
    latents, size = group.latents, len(group.seeds)
    for name, axes in (("mean", "BCHW"), ("std", "BCHW"), ("lr", "CHW"), ("prediction", "BCHW")):
        latent = getattr(latents, name)
        if latent is not None:
            check_tensor(f"group {group.id}: latents.{name}", latent, axes)
    if latents.std is not None:
        check_same_shape("latents.std", latents.std, "latents.mean", latents.mean)
        if bool((latents.std < 0).any()):
            raise ValueError(f"group {group.id}: latents.std must not be negative")
    if not 0 <= group.detail_share <= 1:
        raise ValueError(f"group {group.id}: detail_share is {group.detail_share}, not in [0, 1]")
    if latents.prediction is not None and len(latents.prediction) != len(group.noise_seeds):
        raise ValueError(
            f"group {group.id}: latents.prediction has {len(latents.prediction)} entries for "
            f"{len(group.noise_seeds)} noises"
        )
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
        *(("reference_error", by_candidate) for by_candidate in group.reference_error),
    ):
        if not torch.tensor(values, dtype=torch.float64).isfinite().all():
            raise ValueError(f"group {group.id}: {name} of its candidates is not finite")


def noise_target(model: NAOSD, group: Group, config: Rollout, noise_index: int) -> NoiseTarget:
    """Input and target of one noise prediction for a group, on the device of its latents.

    noise_index: index of the stored noise, 0..K-1. All draws follow from the seeds in
    noise_seeds[noise_index]: first the posterior sample, then the noise of each candidate. With
    `rollout.noise: shared` all candidates use the noise of the first. With `rollout.input: lr`
    that is the only draw.
    Errors: ValueError for a model that injects no noise (OSEDiff).
    """
    if model.t_add is None:
        raise ValueError(
            "model.t_add is null: errors are compared at the noise a model injects, and this one "
            "injects none"
        )
    # Latents read from a file are float16. Every sum below is in float32, as in the rollout stage,
    # which rounded to float16 before it computed r.
    mean, std, lr = group.latents.mean.float(), group.latents.std, group.latents.lr
    shape = tuple(mean.shape[1:])
    if config.input == "lr":
        assert lr is not None
        (noise,) = seeded_noise(group.noise_seeds[noise_index][:1], shape)
        z_noisy = add_noise(lr.float()[None], noise.to(mean, non_blocking=True), model.t_add)
        predicted = group.latents.prediction
        return NoiseTarget(
            z_noisy,
            consistent_target(z_noisy, mean, model.t_diff),
            reference=None if predicted is None else predicted[noise_index][None].double(),
        )
    if lr is not None:  # actions: rebuild the state each candidate was sampled in
        # Three draws of which the first is used: the candidate drew its noise, the posterior's and
        # xi in this order.
        state = seeded_noise(group.seeds, shape, 3)[0].to(mean, non_blocking=True)
        z_noisy = add_noise(lr.float().expand_as(mean), state, model.t_add)
        abar = float(alphas_cumprod()[model.t_diff])
        return NoiseTarget(
            # Eq. 4 divides an error of eps_hat by sqrt(abar / (1 - abar)) on its way to z_SR;
            # squared here.
            z_noisy,
            consistent_target(z_noisy, mean, model.t_diff),
            (1 - abar) / abar,
        )
    posterior, noise = seeded_noise(group.noise_seeds[noise_index], shape, 2).to(
        mean, non_blocking=True
    )
    if config.noise == "shared":
        # Common random numbers: what one noise adds to all errors alike cancels in sum_i A_i m_i,
        # because the advantages sum to 0.
        noise = noise[:1].expand_as(noise)
    assert std is not None
    z = mean + std.float() * posterior
    z_noisy = add_noise(z, noise, model.t_add)
    return NoiseTarget(
        z_noisy, noise if config.target == "added" else consistent_target(z_noisy, z, model.t_diff)
    )


def predict(
    model: NAOSD, batch: NoiseTarget, prompt: torch.Tensor, config: Rollout
) -> torch.Tensor:
    """eps_hat (N, c, h, w) of the active role: computed in the rollouts' precision, float64."""
    with autocast(config.precision, batch.z_noisy.device.type):
        return model.predict_noise(batch.z_noisy, prompt).double()


def squared(difference: torch.Tensor, batch: NoiseTarget) -> torch.Tensor:
    """Mean of difference^2 over each candidate's latent, times batch.unit: (G,) float64.

    difference: (G, c, h, w), or (1, c, h, w) between two predictions that serve all candidates.
    """
    # A mean over the latent, as released, so that omega does not depend on the size of the patch.
    mean: torch.Tensor = batch.unit * difference.square().mean(dim=(1, 2, 3))
    return mean.expand(len(batch.target))
