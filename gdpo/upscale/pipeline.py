"""Inference: super-resolve a photograph of any size to exactly `scale` times that size.

    x        bicubic enlargement, padded by reflection to the model's multiple
    noise    drawn once from the seed for the whole latent; noise drawn per tile would differ in
             the overlaps
    prompt   tags of x (if there is a tagger), the user's words, the model's suffix;
             the same for all tiles
    z_LR     encode x                   in tiles
    z~       inject noise at t_add
    z_SR     denoise z~                 in tiles
    image    decode z_SR                in tiles, a row of tiles at a time
    result   image, cropped to size, with the colours of x

    photo = upscale(NAOSD.from_pretrained("models/gdpo"), read_photo("photo.jpg"))

t_add controls fidelity (paper, Appendix B): less noise stays closer to the photograph, more noise
generates more detail.

Of the whole picture, memory holds x and the result in the photograph's type, and four latents; what
is float32 in pixels is a row of tiles (gdpo/upscale/strips.py says when it is more). That makes
`bytes_needed`.

Shapes: H W pixels, C channels; photographs are uint8 or uint16 HWC RGB.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gdpo.images import resize_bicubic, resize_plane, to_uint8
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose, join
from gdpo.model.sampling import draw_noise
from gdpo.tiling import Axis, Window, blend, split_axis, strips
from gdpo.upscale.strips import corrected

if TYPE_CHECKING:
    from gdpo.tagger.tagger import Tagger

TILE = 512
# Bytes of memory per pixel of the result, by the bytes of a level: both pictures and the latents,
# or the result and its file while that is written. Measured by benchmarks/upscale_memory.py.
PER_PIXEL = {1: 12, 2: 30}
HELD = 12  # more with color_fix adain


@torch.no_grad()
def upscale(
    model: NAOSD,
    photo: NDArray[Any],
    *,
    scale: float = 4.0,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    t_add: int | None = None,
    color_fix: str = "wavelet",
    tile: int = TILE,
    tagger: "Tagger | None" = None,
    words: str = "",
    on_prompt: Callable[[str], None] = lambda prompt: None,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[Any]:
    """Super-resolve one photograph, HWC RGB -> (round(scale H), round(scale W), C), same type.

    photo: uint8, or uint16 whose depth the result keeps.
    scale: the models here are trained for 4.
    size: (height, width) of the result; replaces `scale`.
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
    height, width = size_of(photo, scale, size)
    enlarged = Enlarged.of(photo, (height, width), model.multiple)
    axes = _axes(model, enlarged.padded, tile)
    # Tags of the whole photograph: with those of each tile, neighbours would generate different
    # things in their overlap.
    prompt = compose(
        join(tagger.tags(as_image(enlarged.pixels))[0] if tagger else None, words), model.prompt
    )
    on_prompt(prompt)
    decoded = _super_resolve(model, enlarged, axes, prompt, seed, t_add, on_tile)
    done, result = 0, np.empty_like(enlarged.pixels)
    cropped = _cropped(decoded, height, width)
    for strip in corrected(color_fix, cropped, enlarged.strip, (1, 3, height, width)):
        result[done : done + strip.shape[2]] = as_photo(strip[0], photo.dtype)
        done += strip.shape[2]
    return result


def scaled(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(height, width) of the result for a photograph of `size`, at least one pixel a side."""
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def size_of(photo: NDArray[Any], scale: float, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the result; `size` replaces `scale`. Errors: ValueError naming them."""
    if not isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be a positive number, got {scale}")
    height, width = size or scaled(photo.shape[:2], scale)
    if min(height, width) < 1:
        raise ValueError(f"size must be at least one pixel a side, got {size}")
    return height, width


def bytes_needed(size: tuple[int, int], dtype: np.dtype[Any], color_fix: str) -> int:
    """About the memory that a result of `size` takes, besides the model and one row of tiles."""
    per_pixel = PER_PIXEL[dtype.itemsize] + (HELD if color_fix == "adain" else 0)
    return size[0] * size[1] * per_pixel


def as_photo(image_CHW: torch.Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An image in [0, 1] as HWC of uint8 or uint16."""
    if dtype == np.uint8:
        return to_uint8(image_CHW)
    return (image_CHW.movedim(0, -1) * 65535).round().numpy().astype(np.uint16)


def enlarge(photo: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The bicubic enlargement, HWC of the photograph's type."""
    if photo.dtype == np.uint8:
        return resize_bicubic(photo, size)
    return np.dstack([resize_plane(photo[..., channel], size) for channel in range(3)])


def as_image(photo: NDArray[Any]) -> torch.Tensor:
    """uint8 or uint16 HWC as 1CHW in [0, 1]."""
    planes = np.ascontiguousarray(photo.transpose(2, 0, 1), dtype=np.float32)
    planes /= np.iinfo(photo.dtype).max
    return torch.from_numpy(planes)[None]


@dataclass(frozen=True)
class Enlarged:
    """The enlarged photograph, padded to the model's multiple, of which parts become floats.

    pixels: HWC, without padding. rows, columns: which of its rows and columns each of the padded
    picture shows, as `pad_to_multiple` pads.
    """

    pixels: NDArray[Any]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, photo: NDArray[Any], size: tuple[int, int], multiple: int) -> "Enlarged":
        """The photograph at `size`, (height, width)."""
        ends = [-side % multiple for side in size]
        reflects = all(end < side for end, side in zip(ends, size, strict=True))
        rows, columns = (
            np.pad(np.arange(side), (0, end), mode="reflect" if reflects else "edge")
            for side, end in zip(size, ends, strict=True)
        )
        return cls(enlarge(photo, size), rows, columns)

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) with the padding."""
        return len(self.rows), len(self.columns)

    def cut(self, window: Window, factor: int) -> torch.Tensor:
        """The window's part of the padded picture, 1CHW in [0, 1]."""
        rows = self.rows[window.top * factor :][: window.height * factor]
        columns = self.columns[window.left * factor :][: window.width * factor]
        return as_image(self.pixels[rows[:, None], columns])

    def strip(self, top: int, bottom: int) -> torch.Tensor:
        """Rows of the picture without padding, 1CHW in [0, 1]."""
        return as_image(self.pixels[top:bottom])


def _axes(model: NAOSD, padded: tuple[int, int], tile: int) -> tuple[Axis, Axis]:
    """The tiles of both axes in latent cells; the overlap is about a quarter of a tile or more."""
    # Tiles start at multiples of `unit`, the latent cells in the model's multiple of pixels.
    unit = model.multiple // model.factor
    cells = tile // model.multiple * unit
    # A quarter of the tile, in whole units: the blend is half as wide, so that no point near a
    # tile's border, which lacks context, has weight.
    overlap = cells // 4 // unit * unit
    if not overlap:
        raise ValueError(
            f"tile must be at least {4 * model.multiple} pixels for this model, got {tile}"
        )
    height, width = (side // model.factor for side in padded)
    return split_axis(height, cells, overlap, unit), split_axis(width, cells, overlap, unit)


def _super_resolve(
    model: NAOSD,
    x: Enlarged,
    axes: tuple[Axis, Axis],
    text: str,
    seed: int,
    t_add: int | None,
    on_tile: Callable[[int, int], None],
) -> Iterator[torch.Tensor]:
    """Strips of the image from top to bottom, 1CHW in [-1, 1], with the padding.

    Three passes over the tiles (encode, denoise, decode), with one tile on the device at a time.
    """
    prompt = model.embed([text])
    total = 3 * len(axes[0].starts) * len(axes[1].starts)
    done = iter(range(1, total + 1))

    def passed() -> None:
        on_tile(next(done), total)

    # Each pass blends before the next begins: with all three per tile, the seams of the encoder
    # would be denoised and decoded into the picture. Memory holds the latents of one pass.
    clean = _denoised(model, _noisy(model, x, axes, seed, t_add, passed), axes, prompt, passed)
    like = next(model.parameters())

    def decode(window: Window) -> torch.Tensor:
        return model.decode(window.cut(clean, 1).to(like))

    yield from strips(*axes, model.factor, decode, passed)


def _noisy(
    model: NAOSD,
    x: Enlarged,
    axes: tuple[Axis, Axis],
    seed: int,
    t_add: int | None,
    passed: Callable[[], None],
) -> torch.Tensor:
    """The first pass: the latent of the picture with noise."""
    like = next(model.parameters())  # the tiles are of its type; blending is in float32
    noise, posterior_noise = draw_noise([("upscale", seed)], model.latent_shape(*x.padded))

    def encode(window: Window) -> torch.Tensor:
        part = x.cut(window, model.factor) * 2 - 1
        return model.encode(part.to(like), window.cut(posterior_noise, 1).to(like))

    z = blend(*axes, 1, encode, passed)
    return model.inject(z.to(like.dtype), noise.to(like.dtype), t_add)


def _denoised(
    model: NAOSD,
    noisy: torch.Tensor,
    axes: tuple[Axis, Axis],
    prompt: torch.Tensor,
    passed: Callable[[], None],
) -> torch.Tensor:
    """The second pass: the latent without noise."""
    like = next(model.parameters())

    def denoise(window: Window) -> torch.Tensor:
        return model.denoise(window.cut(noisy, 1).to(like), prompt)

    return blend(*axes, 1, denoise, passed)


def _cropped(decoded: Iterator[torch.Tensor], height: int, width: int) -> Iterator[torch.Tensor]:
    """The strips without the padding, in [0, 1]."""
    left = height
    for strip in decoded:
        # Clamped before the colour correction: the blend of decoded tiles may overshoot, and AdaIN
        # would fit its statistics to that. In place: a strip is a row of tiles.
        yield strip[:, :, :left, :width].div_(2).add_(0.5).clamp_(0, 1)
        left -= strip.shape[2]
