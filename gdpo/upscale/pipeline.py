"""Inference: super-resolve a photograph of any size to exactly `scale` times that size.

    x        bicubic enlargement, padded by reflection to the model's multiple
    noise    drawn once from the seed for the whole latent; noise drawn per tile would differ in
             the overlaps
    prompt   tags of x (if there is a tagger), the user's words, the model's suffix;
             the same for all tiles
    z_LR     encode x                   in tiles
    z~       inject noise at t_add
    z_SR     denoise z~                 in tiles
    image    decode z_SR                in tiles
    result   image, cropped to size, with the colours of x

    photo = upscale(NAOSD.from_pretrained("models/gdpo"), read_photo("photo.jpg"))

t_add controls fidelity (paper, Appendix B): less noise stays closer to the photograph, more noise
generates more detail.

Shapes: H W pixels, C channels; photographs are uint8 HWC RGB.
"""

from collections.abc import Callable
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray

from gdpo.color import color_fix as fix_color
from gdpo.images import resize_bicubic, to_tensor, to_uint8
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose, join
from gdpo.model.sampling import draw_noise, pad_to_multiple
from gdpo.tagger.tagger import Tagger
from gdpo.upscale.tiling import Axis, Window, blend, plan

TILE = 512


@torch.no_grad()
def upscale(
    model: NAOSD,
    photo: NDArray[np.uint8],
    *,
    scale: float = 4.0,
    seed: int = 0,
    t_add: int | None = None,
    color_fix: str = "wavelet",
    tile: int = TILE,
    tagger: Tagger | None = None,
    words: str = "",
    on_prompt: Callable[[str], None] = lambda prompt: None,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint8]:
    """Super-resolve one photograph, uint8 HWC RGB -> uint8 (round(scale H), round(scale W), C).

    scale: the models here are trained for 4.
    seed: of the noise; the same seed gives the same pixels on one machine.
    t_add: timestep at which noise is added; None: the model's own.
    color_fix: colour correction, "none", "adain" or "wavelet" (gdpo/color.py).
    tile: side of a tile in output pixels; a smaller image is processed as one tile.
    tagger: tags the enlarged photograph for the prompt (released: RAM with DAPE).
    words: the user's words for the prompt.
    on_prompt: called with the prompt.
    on_tile: called with (done, total) after each tile; counts the tiles of all three passes.

    Raises ValueError naming the argument.
    """
    if not isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be a positive number, got {scale}")
    size = [max(1, round(scale * side)) for side in photo.shape[:2]]
    enlarged = to_tensor(resize_bicubic(photo, (size[0], size[1])))[None]
    padded = pad_to_multiple(enlarged, model.multiple)
    axes = _axes(model, padded, tile)
    prompt = compose(join(tagger.tags(enlarged)[0] if tagger else None, words), model.prompt)
    on_prompt(prompt)
    image = _super_resolve(model, padded * 2 - 1, axes, prompt, seed, t_add, on_tile)
    image = (image[..., : size[0], : size[1]] / 2 + 0.5).clamp(0, 1)
    return np.asarray(to_uint8(fix_color(color_fix, image, enlarged)[0]), np.uint8)


def _axes(model: NAOSD, padded: torch.Tensor, tile: int) -> tuple[Axis, Axis]:
    """The tiles of both axes in latent cells; the overlap is about a quarter of a tile or more."""
    # Tiles start at multiples of `unit`, the latent cells in the model's multiple of pixels.
    unit = model.multiple // model.factor
    cells = tile // model.multiple * unit
    overlap = cells // 4 // unit * unit
    if not overlap:
        raise ValueError(
            f"tile must be at least {4 * model.multiple} pixels for this model, got {tile}"
        )
    height, width = (side // model.factor for side in padded.shape[2:])
    return plan(height, cells, overlap, unit), plan(width, cells, overlap, unit)


def _super_resolve(
    model: NAOSD,
    x: torch.Tensor,
    axes: tuple[Axis, Axis],
    text: str,
    seed: int,
    t_add: int | None,
    on_tile: Callable[[int, int], None],
) -> torch.Tensor:
    """x 1CHW in [-1, 1] -> image 1CHW in [-1, 1].

    Three passes over the tiles (encode, denoise, decode), with one tile on the device at a time.
    """
    device = next(model.parameters()).device
    noise, posterior_noise = draw_noise([("upscale", seed)], model.latent_shape(*x.shape[2:]))
    prompt = model.embed([text])
    total = 3 * len(axes[0].starts) * len(axes[1].starts)
    done = iter(range(1, total + 1))

    def encode(window: Window) -> torch.Tensor:
        return model.encode(
            window.cut(x, model.factor).to(device), window.cut(posterior_noise, 1).to(device)
        )

    def denoise(window: Window) -> torch.Tensor:
        return model.denoise(window.cut(noisy, 1).to(device), prompt)

    def decode(window: Window) -> torch.Tensor:
        return model.decode(window.cut(clean, 1).to(device))

    def passed() -> None:
        on_tile(next(done), total)

    noisy = model.inject(blend(*axes, 1, encode, passed), noise, t_add)
    clean = blend(*axes, 1, denoise, passed)
    return blend(*axes, model.factor, decode, passed)
