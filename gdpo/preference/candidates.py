"""The G candidates of each LR image, by what differs within a group (paper Sec. 3.2 and Table 11):

    noise      eps_i                    the paper's; one encoding and one posterior sample per LR
               image, as released
    guidance   eps_1, scale w_i         eps_hat = eps_hat(negative) + w_i (eps_hat(prompt) -
               eps_hat(negative))
    t_add      eps_1, timestep t_i      the noise level of z~
    action     eps_i, then a Gaussian   z_i = z_SR + sigma xi_i is decoded: a policy with a density,
               for DanceGRPO's objective

Scales and timesteps go through their range in equal steps, in the order of the candidates; the
paper states neither. A candidate's draws (eps, posterior, xi) come from its own seed, so they do
not depend on batching or on G.
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
    """image (B * G, 3, H, W) in [0, 1], float32; with `action` also the action (B * G, c, h, w) and
    z_LR (B, c, h, w).
    """

    image: torch.Tensor
    action: torch.Tensor | None = None
    lr: torch.Tensor | None = None


@torch.no_grad()
def candidates(
    model: NAOSD, lr: torch.Tensor, seeds: list[int], prompts: list[str], config: Config
) -> Candidates:
    """Candidates by the role in use. lr (B, 3, H, W): enlarged LR images in [0, 1]; seeds: B * G;
    prompts: B.
    """
    settings, device = config.rollout, next(model.parameters()).device
    height, width = lr.shape[-2:]
    x = pad_to_multiple(lr, model.multiple).to(device) * 2 - 1
    noise, posterior, xi = seeded_noise(seeds, model.latent_shape(*x.shape[-2:]), 3).to(device)
    fraction = torch.linspace(0, 1, settings.group).repeat(len(lr))
    if settings.candidates in ("guidance", "t_add"):
        noise = noise[:: settings.group].repeat_interleave(settings.group, 0)
    with autocast(settings.precision, device.type):
        z_lr = steps.encode(model, x, posterior[:: settings.group])
        if settings.candidates == "action":
            z_lr = _stored(z_lr)
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
        z_sr = predict_x0(z_noisy, eps_hat.to(z_noisy.dtype), model.t_diff)
        action = _stored(z_sr + settings.sigma * xi) if settings.candidates == "action" else None
        image = steps.decode(model, z_sr if action is None else action)
    image = (image.float() * 0.5 + 0.5)[..., :height, :width]
    return Candidates(image) if action is None else Candidates(image, action, z_lr)


def _between(ends: list[float] | list[int], steps: torch.Tensor) -> torch.Tensor:
    return ends[0] + (ends[1] - ends[0]) * steps


def _stored(latent: torch.Tensor) -> torch.Tensor:
    """As it comes back from the file: the density is that of what was decoded, to the last bit."""
    return latent.half().float().contiguous()
