"""Super-resolution of a batch with seeded noise: what evaluation and rollouts call.

The noise of sample i comes from its own generator, so results do not depend on batching, and the
same keys give every model the same noise.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

from gdpo.checks import check_image, check_tensor
from gdpo.color import color_fix as fix_color
from gdpo.fields import ColorFix, Precision
from gdpo.model import steps
from gdpo.model.naosd import NAOSD
from gdpo.seeds import Key, seed_of, seeded_noise


def autocast(precision: Precision, device: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def base_dtype(precision: Precision) -> torch.dtype:
    """What frozen weights are kept in: under bf16 autocast a bf16 base, in half the memory of the
    fp32 one it is cast from.
    """
    return torch.bfloat16 if precision == "bf16" else torch.float32


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend x_BCHW at the bottom and right to multiples of `multiple`, by reflection where the
    image is large enough.
    """
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    mode = "reflect" if bottom < x.shape[2] and right < x.shape[3] else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode) if bottom or right else x


def draw_noise(keys: list[Key], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, posterior noise), each (len(keys), *shape): row i from the generator of keys[i]."""
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
    """image_BCHW in [0, 1] (float32) from LR images already enlarged to full size, lr_BCHW in [0,
    1].

    keys: one per sample, seeds of its noise. prompts: one per sample; None: the model's default
    prompt. per_image: samples of each LR image, which is encoded once: they share one sample of its
    posterior, the first key's (released code, RL stage). Sides that are no multiple of
    `model.multiple` are padded and cropped back. Errors: ValueError naming the argument.
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
        z = steps.encode(model, x, posterior_noise[::per_image].to(device))
        z_noisy = steps.inject(model, z.repeat_interleave(per_image, 0), noise.to(device))
        image = steps.decode(model, steps.denoise(model, z_noisy, prompt))
    image = (image.float() * 0.5 + 0.5)[..., :height, :width]
    check_tensor("the model's image", image, "BCHW")
    return fix_color(color_fix, image, lr.to(device).repeat_interleave(per_image, 0))
