"""Train the tiny prior, a Stable-Diffusion-shaped model, from scratch on photographs.

    autoencoder   L1 + L1 of 8x8 means + 0.5 (1 - SSIM) + kl_weight * KL
                  on crops, randomly down-scaled and flipped
    denoiser      || eps - eps_hat(z_t, t, prompt) ||^2
                  on latents of the autoencoder; the prompt states clean or degraded
    decoder       reconstruction + hinge adversarial term, encoder frozen
    all           AdamW, one cosine cycle, all randomness seeded by (seed, step)

    gdpo-sr prior PHOTOS -o assets/tiny-sd     # makes the folder that ships in assets/

The prior has a few million parameters. It replaces SD2.1-base in the sample profile, so that every
later stage runs the real code on real photographs. The denoiser learns two prompts, clean and
degraded, because classifier-free guidance, and with it the VSD loss, needs them.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gdpo.config import Degradation
from gdpo.data.degrade import degrade
from gdpo.images import resize_bicubic
from gdpo.model.schedule import NUM_TRAIN_TIMESTEPS, add_noise
from gdpo.pretrain.losses import ssim
from gdpo.seeds import numpy_generator, torch_generator
from gdpo.train.loop import cosine, grad_norm

Photos = list[np.ndarray]


def random_crop(photos: Photos, size: int, rng: np.random.Generator) -> np.ndarray:
    """One random (size, size, 3) uint8 crop of a random photograph.

    The crop is down-scaled by a factor of 1 to 2 (area) and flipped with probability 1/2. One of
    sixteen is grey, so that grey pictures stay grey.
    """
    import cv2

    photo = photos[rng.integers(len(photos))]
    shortest = min(photo.shape[:2])
    # Several scales: the patches of later stages come from photographs of other sizes than these.
    window = round(size * rng.uniform(1.0, min(2.0, shortest / size)))
    top, left = (int(rng.integers(side - window + 1)) for side in photo.shape[:2])
    crop = photo[top : top + window, left : left + window]
    if window != size:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 1 / 16:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def crop_batch(photos: Photos, size: int, count: int, *key: int | str) -> torch.Tensor:
    """A (count, 3, size, size) batch in [-1, 1]; (*key, i) seeds crop i."""
    crops = [random_crop(photos, size, numpy_generator(*key, i)) for i in range(count)]
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def autoencoder_step(
    vae: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    photos: Photos,
    *,
    size: int,
    batch: int,
    steps: int,
    seed: int,
    lr: float,
    kl_weight: float,
) -> Callable[[int], dict[str, float]]:
    """The step function of the autoencoder's training; the module docstring gives the loss."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    device = vae.device

    def step_fn(step: int) -> dict[str, float]:
        x = crop_batch(photos, size, batch, seed, "autoencoder", step).to(device)
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps, warmup=50)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            z = posterior.sample(generator=torch_generator(seed, "posterior", step))
            y = vae.decode(z).sample.float()
        l1 = (y - x).abs().mean()
        # Without this term colours drift for a long time.
        tone = F.avg_pool2d(y - x, 8).abs().mean()
        similarity = ssim(y * 0.5 + 0.5, x * 0.5 + 0.5)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = l1 + tone + 0.5 * (1 - similarity) + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        norm = grad_norm(parameters, 1.0)
        optimizer.step()
        values = {"loss": loss, "l1": l1, "tone": tone, "ssim": similarity, "kl": kl}
        return {**{name: value.item() for name, value in values.items()}, "grad_norm": norm}

    return step_fn


class PatchDiscriminator(nn.Sequential):
    """Discriminates real from decoded patches: (B, 3, H, W) in [-1, 1] -> (B, 1, H/8, W/8) logits.

    It is trained together with the decoder and then discarded.
    """

    def __init__(self, width: int = 32) -> None:
        widths = [3, width, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))


def decoder_step(
    vae: AutoencoderKL,
    judge: PatchDiscriminator,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    photos: Photos,
    *,
    size: int,
    batch: int,
    steps: int,
    seed: int,
    lr: float,
    adversarial: float,
    latents: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> Callable[[int], dict[str, float]]:
    """The step function of the adversarial training of the decoder, which makes it sharper.

    latents: (images, step) -> what is decoded; None: samples of the posterior.

    The loss is reconstruction plus a hinge adversarial term, as in SD's VAE. The encoder is frozen,
    so that a denoiser trained on its latents remains valid. The adversarial gradient with respect
    to the image is scaled to `adversarial` times the norm of the reconstruction gradient; the
    factor grows linearly over the first 300 steps.
    """
    adam, adam_judge = optimizers
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    device = vae.device

    def posterior(x: torch.Tensor, step: int) -> torch.Tensor:
        generator = torch_generator(seed, "decoder-posterior", step)
        z: torch.Tensor = vae.encode(x).latent_dist.sample(generator=generator)
        return z

    def step_fn(step: int) -> dict[str, float]:
        x = crop_batch(photos, size, batch, seed, "decoder", step).to(device)
        for group in (*adam.param_groups, *adam_judge.param_groups):
            group["lr"] = lr * cosine(step, steps, warmup=100)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                z = (latents or posterior)(x, step)
            y = vae.decode(z).sample.float()
        # A leaf at the image: both gradients are taken there, balanced, and sent through the
        # decoder in one backward pass.
        image = y.detach().requires_grad_()
        rebuilt = (image - x).abs().mean() + 0.5 * (1 - ssim(image * 0.5 + 0.5, x * 0.5 + 0.5))
        fooled = -judge(image).mean()
        toward_photo, toward_judge = (
            torch.autograd.grad(value, image)[0] for value in (rebuilt, fooled)
        )
        # Balanced at the image, where both gradients are known without a backward pass through the
        # decoder (SD's VAE balances at its last layer).
        weight = (
            adversarial * min(1.0, step / 300) * toward_photo.norm() / (toward_judge.norm() + 1e-12)
        )
        adam.zero_grad()
        y.backward(toward_photo + weight * toward_judge)
        norm = grad_norm(parameters, 1.0)
        adam.step()
        # Hinge: patches that are told apart by a margin of 1 give no gradient, so the discriminator
        # does not run away from the decoder.
        judged = F.relu(1 - judge(x)).mean() + F.relu(1 + judge(y.detach())).mean()
        adam_judge.zero_grad()
        judged.backward()
        adam_judge.step()
        return {
            "rebuilt": rebuilt.item(),
            "fooled": fooled.item(),
            "judged": judged.item(),
            "grad_norm": norm,
        }

    return step_fn


CLEAN, EMPTY, DEGRADED = 0, 1, 2


def degraded(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uint8 HWC crop after second-order degradation, enlarged to its original size (bicubic)."""
    lr = degrade(torch.from_numpy(crop.transpose(2, 0, 1)).float() / 255, Degradation(), rng)
    small = (lr.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return resize_bicubic(small, crop.shape[:2])


@torch.no_grad()
def latent_bank(
    vae: AutoencoderKL, photos: Photos, *, size: int, clean: int, bad: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unscaled posterior means of `clean` clean and `bad` degraded crops, each (N, c, h, w)."""
    banks: list[list[torch.Tensor]] = [[], []]
    for kind, count in enumerate((clean, bad)):
        for start in range(0, count, 16):
            crops = []
            for i in range(start, min(start + 16, count)):
                rng = numpy_generator(seed, "bank", kind, i)
                crop = random_crop(photos, size, rng)
                crops.append(degraded(crop, rng) if kind else crop)
            x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
            banks[kind].append(vae.encode(x.to(vae.device)).latent_dist.mean.cpu())
    return torch.cat(banks[0]), torch.cat(banks[1])


def denoiser_step(
    unet: UNet2DConditionModel,
    text_encoder: nn.Module,
    prompt_ids: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    bank: tuple[torch.Tensor, torch.Tensor],
    *,
    batch: int,
    steps: int,
    seed: int,
    lr: float,
) -> Callable[[int], dict[str, float]]:
    """The step function of the denoiser's training: epsilon prediction on the scaled latent bank.

    prompt_ids: (3, 77) token ids of the clean, the empty and the negative prompt. On average, 75 %
    of a batch are clean latents with the clean prompt, 10 % clean latents with the empty prompt,
    and 15 % degraded latents with the negative prompt.
    """
    parameters = [*unet.parameters(), *text_encoder.parameters()]

    def draw(step: int, i: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        # By sample, so that the batch may be split over devices without another draw.
        rng = numpy_generator(seed, "denoiser", step, i)
        kind = int(rng.choice(3, p=[0.75, 0.10, 0.15]))
        latents = bank[1] if kind == DEGRADED else bank[0]
        z = latents[int(rng.integers(len(latents)))]
        noise = torch.randn(z.shape, generator=torch_generator(seed, "denoiser-noise", step, i))
        return z, noise, int(rng.integers(NUM_TRAIN_TIMESTEPS)), kind

    def step_fn(step: int) -> dict[str, float]:
        drawn = [draw(step, i) for i in range(batch)]
        z = torch.stack([d[0] for d in drawn]).to(unet.device)
        noise = torch.stack([d[1] for d in drawn]).to(unet.device)
        t = torch.tensor([d[2] for d in drawn], device=unet.device)
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps, warmup=100)
        # Three prompts are encoded per step, whatever the batch; its samples share them.
        prompt = text_encoder(prompt_ids)[0][[d[3] for d in drawn]]
        loss = F.mse_loss(unet(add_noise(z, noise, t), t, prompt).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        norm = grad_norm(parameters, 1.0)
        optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm}

    return step_fn
