"""Sampling the G candidates of each LR image (paper Sec. 3.2 and Table 11).

`rollout.candidates` names what differs between the candidates of a group:

    noise      eps_i                    the paper's choice; each LR image is encoded once, and all
                                        candidates share one posterior sample (as released)
    guidance   eps_1, scale w_i         eps_hat = eps_hat(negative)
                                                  + w_i (eps_hat(prompt) - eps_hat(negative))
    t_add      eps_1, timestep t_i      the noise level of z~
    action     eps_i, then a Gaussian   z_i = z_SR + sigma xi_i is decoded; this policy has a
                                        density, which the objective of DanceGRPO needs

Guidance scales and timesteps are evenly spaced over their configured range, in the order of the
candidates; the paper states neither range nor spacing. Each candidate draws eps, posterior noise
and xi from its own seed, so the draws do not depend on batching or on G.
"""

from dataclasses import dataclass

import torch

from gdpo.config import Config
from gdpo.model import steps
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast, pad_to_multiple
from gdpo.model.schedule import predict_x0
from gdpo.seeds import seeded_noise


@dataclass(frozen=True)
class Candidates:
    """The sampled candidates of B LR images.

    image: (B * G, 3, H, W) in [0, 1], float32. latent: (B * G, c, h, w), what was decoded: z_SR, or
    the action with `rollout.candidates: action`. lr: z_LR, (B, c, h, w).
    """

    image: torch.Tensor
    latent: torch.Tensor
    lr: torch.Tensor


@torch.no_grad()
def candidates(
    model: NAOSD, lr: torch.Tensor, seeds: list[int], prompts: list[str], config: Config
) -> Candidates:
    """Sample G candidates per LR image with the active role.

    lr: (B, 3, H, W), LR images enlarged to full size, in [0, 1]. seeds: B * G, one per candidate.
    prompts: B, one per LR image.
    """
    settings, device = config.rollout, next(model.parameters()).device
    height, width = lr.shape[-2:]
    x = pad_to_multiple(lr, model.multiple).to(device) * 2 - 1
    # All three in one draw per candidate, used or not: xi comes last, so that `action` has the
    # noise of `noise` with the same seeds.
    noise, posterior, xi = seeded_noise(seeds, model.latent_shape(*x.shape[-2:]), 3).to(device)
    fraction = torch.linspace(0, 1, settings.group).repeat(len(lr))
    if settings.candidates in ("guidance", "t_add"):
        # Exactly one thing differs within a group; here it is not the noise.
        noise = noise[:: settings.group].repeat_interleave(settings.group, 0)
    with autocast(settings.precision, device.type):
        z_lr = steps.encode(model, x, posterior[:: settings.group])
        if settings.candidates == "action":
            # The file stores z_LR, and the state of an action is rebuilt from it: sampling from the
            # unrounded one would make the old policy's error differ from the density of the action.
            z_lr = stored(z_lr)
        z = z_lr.repeat_interleave(settings.group, 0)
        t_add = (
            _between(settings.t_add_range, fraction).round().long()
            if settings.candidates == "t_add"
            else None
        )
        z_noisy = steps.inject(model, z, noise, t_add)
        embedded = model.embed(prompts).repeat_interleave(settings.group, 0)
        eps_hat = model.predict_noise(z_noisy, embedded)
        if settings.candidates == "guidance":
            negative = model.predict_noise(z_noisy, model.embed([config.model.negative_prompt]))
            eps_hat = negative + _between(settings.guidance_range, fraction.to(device))[
                :, None, None, None
            ] * (eps_hat - negative)
        # In the precision of z~ and not of the network: bf16 would round the difference of two
        # large terms.
        z_sr = predict_x0(z_noisy, eps_hat.to(z_noisy.dtype), model.t_diff)
        if settings.candidates == "action":
            z_sr = stored(z_sr + settings.sigma * xi)
        image = steps.decode(model, z_sr)
    return Candidates((image.float() * 0.5 + 0.5)[..., :height, :width], z_sr, z_lr)


def _between(ends: list[float] | list[int], steps: torch.Tensor) -> torch.Tensor:
    return ends[0] + (ends[1] - ends[0]) * steps


def stored(latent: torch.Tensor) -> torch.Tensor:
    """A latent with the rounding (float16) and memory layout of the rollout file.

    Errors computed from the file are then bit-identical to those computed here. The layout matters
    because the encoder's output may be channels-last, for which other kernels run.
    """
    return latent.float().half().float().contiguous()
