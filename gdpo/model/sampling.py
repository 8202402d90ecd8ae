"""Super-resolution of a batch with seeded noise, for evaluation and rollouts.

Each sample draws its noise from its own generator, so results do not depend on batching. The same
keys give every model the same noise.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

from gdpo.checks import check_image, check_tensor
from gdpo.color import color_fix as fix_color
from gdpo.config.fields import ColorFix, Precision
from gdpo.model import steps
from gdpo.model.naosd import NAOSD
from gdpo.seeds import Key, seed_of, seeded_noise


def autocast(precision: Precision, device: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def base_dtype(precision: Precision) -> torch.dtype:
    """The dtype of frozen weights: bf16 under bf16 autocast, which halves their memory, or fp32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad x_BCHW at the bottom and right to sides that are multiples of `multiple`.

    Padding reflects the image, or replicates its edge if the image is too small for that.
    """
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    # Reflection continues the texture. A constant border would reach the last rows through the
    # convolutions, and the VAE's attention would see it everywhere.
    mode = "reflect" if bottom < x.shape[2] and right < x.shape[3] else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode) if bottom or right else x


def draw_noise(keys: list[Key], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, posterior noise), each (len(keys), *shape); keys[i] seeds row i of both."""
    both = seeded_noise([seed_of(*key) for key in keys], shape, 2)
    return both[0], both[1]


@torch.no_grad()
def super_resolve(
    model: NAOSD,
    lr: torch.Tensor,
    keys: list[Key],
    *,
    color_fix: ColorFix,
    precision: Precision,
    prompts: list[str] | None = None,
    per_image: int = 1,
) -> torch.Tensor:
    """Super-resolve LR images: image_BCHW in [0, 1], float32, after colour correction.

    lr: BCHW in [0, 1], already enlarged to full size; sides that are no multiple of
    `model.multiple` are padded and cropped back. keys: one per sample, the seed of its noise.
    prompts: one per sample; None: the model's default prompt. per_image: number of samples of each
    LR image. The samples of an image share one encoding and the posterior sample of the first key
    (released code, RL stage).
    Errors: ValueError naming the argument.
    """
    check_image("lr", lr)
    for name, values in (("keys", keys), ("prompts", keys if prompts is None else prompts)):
        if len(values) != len(lr) * per_image:
            raise ValueError(
                f"{name} must have one entry per image, {len(lr) * per_image}, got {len(values)}"
            )
    height, width = lr.shape[-2:]
    device = next(model.parameters()).device
    x = pad_to_multiple(lr, model.multiple).to(device) * 2 - 1
    noise, posterior_noise = draw_noise(keys, model.latent_shape(*x.shape[-2:]))
    prompt = model.embed([model.prompt] if prompts is None else prompts)
    with autocast(precision, device.type):
        # Encoding costs more than the UNet; one posterior sample serves the whole group.
        z = steps.encode(model, x, posterior_noise[::per_image].to(device))
        z_noisy = steps.inject(model, z.repeat_interleave(per_image, 0), noise.to(device))
        image = steps.decode(model, steps.denoise(model, z_noisy, prompt))
    # Cropped before the colour correction, whose statistics are those of the whole image.
    image = (image.float() * 0.5 + 0.5)[..., :height, :width]
    # The only check of values on this path. Written to a file, NaN would become black pixels, and
    # some metrics would score those without complaint.
    check_tensor("the model's image", image, "BCHW")
    return fix_color(color_fix, image, lr.to(device).repeat_interleave(per_image, 0))
