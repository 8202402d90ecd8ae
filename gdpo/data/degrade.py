"""Second-order degradation: HR patch -> LR image, in two separate steps.

    draw    config, generator -> parameters (plain JSON, stored with the pair);
            each patch has its own generator
    apply   HR image, parameters -> LR image; deterministic, byte for byte

    first   blur -> resize -> noise -> JPEG
    second  [blur] -> resize to s H/4 -> noise        s: the drawn scale
    final   resize to H/4 -> [sinc] -> JPEG, or JPEG -> resize to H/4 -> [sinc]

Source: Real-ESRGAN, with the values of the GDPO release as defaults (gdpo/config/data.py). The
release enlarges the result back to full size by a random mode. That mode is drawn here too
("enlarge") and applied when a pair is used (`enlarge` in gdpo/data/shards.py).
"""

from typing import TypeVar

import numpy as np
import torch

from gdpo.checks import check_picture
from gdpo.config import Degradation, DegradationOrder
from gdpo.data.kernels import Draw, between, draw_final_sinc, draw_kernel, kernel, pick
from gdpo.data.operations import (
    INFERENCE_MODE,
    MODES,
    blur,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize_by,
    resize_to,
    to_levels,
)
from gdpo.seeds import numpy_generator

Image = TypeVar("Image", np.ndarray, torch.Tensor)


def degrade(hr_CHW: Image, config: Degradation, rng: np.random.Generator) -> Image:
    """Degrade one image: `apply(hr_CHW, draw(config, rng))`.

    hr_CHW: float (3, H, W) in [0, 1], array or tensor. Returns the same type, of shape
    (3, H // scale, W // scale) with sides of at least one pixel, in [0, 1] on 8-bit levels. Errors:
    ValueError naming the argument for a wrong shape, type or range, or NaN.
    """
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return apply(hr_CHW, draw(config, rng))


def patch_generator(version: int, patch: str, epoch: int = 0) -> np.random.Generator:
    """The generator of all draws for one patch, keyed by dataset version, patch id and epoch.

    An epoch is one pass over the patches. The key of epoch 0 omits the epoch, so that data sets
    made before epochs existed are epoch 0 of their version.
    """
    return numpy_generator(version, "degrade", patch, *([epoch] if epoch else []))


def degrade_patch(
    hr: np.ndarray, config: Degradation, rng: np.random.Generator, *, held_out: bool = False
) -> tuple[np.ndarray, Draw]:
    """(LR image, drawn parameters) of uint8 (H, W, 3); the LR image has the type of the HR patch.

    held_out: enlarged later as at inference, instead of by a drawn mode.
    """
    drawn = draw(config, rng)
    if held_out:
        # After the draw, so that the other parameters are those of any patch of this id.
        drawn["enlarge"] = INFERENCE_MODE
    return low_resolution(hr.astype(np.float32) / 255, drawn), drawn


def draw(config: Degradation, rng: np.random.Generator) -> Draw:
    """Draw all random parameters of one degradation, as plain JSON values."""
    drawn: Draw = {"scale": config.scale, "first": _draw_stage(config, config.first, rng)}
    drawn["first"]["jpeg"] = _draw_quality(config.first, rng)
    # In the order of the release. Each draw moves the generator on, so another order is another
    # data set.
    drawn["second"] = (
        _draw_stage(config, config.second, rng) if rng.random() < config.second_prob else None
    )
    drawn["final"] = {
        "jpeg_last": bool(rng.random() < 0.5),
        "mode": MODES[rng.integers(3)],
        "sinc": draw_final_sinc(config, rng),
        "jpeg": _draw_quality(config.second, rng),
    }
    drawn["enlarge"] = MODES[rng.integers(3)]
    return drawn


def _draw_stage(config: Degradation, stage: DegradationOrder, rng: np.random.Generator) -> Draw:
    blurred = rng.random() < stage.blur_prob
    return {
        "blur": draw_kernel(config, stage, rng) if blurred else None,
        "resize": _draw_resize(stage, rng),
        "noise": _draw_noise(stage, rng),
    }


def _draw_resize(stage: DegradationOrder, rng: np.random.Generator) -> Draw:
    low, high = stage.resize_range
    direction = pick(rng, ("up", "down", "keep"), stage.resize_prob)
    # Both uniform numbers are drawn, so that what follows does not depend on the direction.
    scale = {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}[direction]
    return {"scale": scale, "mode": MODES[rng.integers(3)]}


def _draw_noise(stage: DegradationOrder, rng: np.random.Generator) -> Draw:
    """Draw the kind and strength of the noise, and the seed of its values."""
    gaussian = rng.random() < stage.gaussian_noise_prob
    return {
        "kind": "gaussian" if gaussian else "poisson",
        "strength": between(rng, stage.noise_range if gaussian else stage.poisson_scale_range),
        "gray": bool(rng.random() < stage.gray_noise_prob),
        # A field of noise is not stored; its seed gives the same field again.
        "seed": int(rng.integers(2**62)),
    }


def _draw_quality(stage: DegradationOrder, rng: np.random.Generator) -> int:
    return round(between(rng, stage.jpeg_range))


def apply(hr_CHW: Image, drawn: Draw) -> Image:
    """Degrade an image by drawn parameters; shapes, ranges and errors as in `degrade`."""
    check_picture("hr_CHW", hr_CHW)
    hr = hr_CHW.detach().cpu().numpy() if isinstance(hr_CHW, torch.Tensor) else hr_CHW
    lr = low_resolution(np.ascontiguousarray(hr.transpose(1, 2, 0), dtype=np.float32), drawn)
    lr_CHW = np.ascontiguousarray(lr.transpose(2, 0, 1)) / np.float32(255)
    return torch.from_numpy(lr_CHW).to(hr_CHW) if isinstance(hr_CHW, torch.Tensor) else lr_CHW


def low_resolution(hr: np.ndarray, drawn: Draw) -> np.ndarray:
    """`apply` on float32 (H, W, 3) in [0, 1]; returns uint8 (H // scale, W // scale, 3).

    Sides are at least one pixel.
    """
    height, width = (max(1, side // drawn["scale"]) for side in hr.shape[:2])
    first, second, final = drawn["first"], drawn["second"], drawn["final"]
    image = hr * np.float32(255)
    image = blur(image, kernel(first["blur"])) if first["blur"] else image
    image = resize_by(image, first["resize"]["scale"], first["resize"]["mode"])
    image = jpeg(_noisy(image, first["noise"]), first["jpeg"])
    if second:
        image = blur(image, kernel(second["blur"])) if second["blur"] else image
        # As in the release, int(s H / 4) uses the exact H / 4, not the rounded LR size.
        scale = second["resize"]["scale"] / drawn["scale"]
        size = (max(1, int(hr.shape[0] * scale)), max(1, int(hr.shape[1] * scale)))
        image = _noisy(resize_to(image, size, second["resize"]["mode"]), second["noise"])
    # Real pictures are resized before or after their last compression; ringing is sharpened or not.
    image = jpeg(image, final["jpeg"]) if not final["jpeg_last"] else image
    image = resize_to(image, (height, width), final["mode"])
    image = blur(image, kernel(final["sinc"])) if final["sinc"] else image
    image = jpeg(image, final["jpeg"]) if final["jpeg_last"] else image
    return to_levels(image)


def _noisy(image: np.ndarray, noise: Draw) -> np.ndarray:
    add = gaussian_noise if noise["kind"] == "gaussian" else poisson_noise
    return add(image, noise["strength"], noise["gray"], noise["seed"])
