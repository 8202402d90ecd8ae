"""Models of kind vlcot (RealSR-R1) as `SuperResolver`.

A module of its own, which gdpo/upscale/resolver.py imports when a card asks for it: GDPO-SR's
stages neither load this system nor depend on its code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from gdpo.color import color_fix as fix_color
from gdpo.model.card import Identity
from gdpo.seeds import Key
from gdpo.upscale.pipeline import as_image, as_photo, enlarge, size_of
from gdpo.upscale.protocol import Settings, SuperResolver, UpscaledPhoto
from gdpo.vlcot.folder import Model, load_model
from gdpo.vlcot.upscale import upscale


@dataclass(frozen=True)
class VlcotResolver:
    """A model of kind vlcot. It runs in the precision of its weights and takes no prompt."""

    model: Model
    settings: Settings

    @property
    def identity(self) -> Identity:
        """As in `SuperResolver`."""
        return self.model.card

    @property
    def scale(self) -> float:
        """As in `SuperResolver`."""
        return float(self.model.card.scale)

    def batch(self, enlarged_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """As in `SuperResolver`."""
        return torch.cat(self.pictures(enlarged_BCHW.split(1), keys))

    def pictures(self, enlarged: Sequence[torch.Tensor], keys: Sequence[Key]) -> list[torch.Tensor]:
        """As `batch`, of LR images 1CHW that may differ, also in size."""
        images = upscale(self.model, enlarged, keys)[0]
        return [
            fix_color(self.settings.color_fix, image, x.to(image))
            for image, x in zip(images, enlarged, strict=True)
        ]

    def photo(
        self,
        photo: NDArray[Any],
        *,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> UpscaledPhoto:
        """As in `SuperResolver`."""
        settings = self.settings
        given = {"words": settings.words, "tagger": settings.tagger}
        names = [name for name, value in given.items() if value]
        names += [] if settings.t_add is None else ["t_add"]
        if names:
            raise ValueError(f"{names[0]}: a model of kind vlcot takes none; leave it out")
        factor = self.scale if scale is None else scale
        enlarged = as_image(enlarge(photo, size_of(photo, factor, size)))
        images, texts = upscale(self.model, [enlarged], [("upscale", seed)], on_tile)
        result = fix_color(settings.color_fix, images[0], enlarged)[0]
        return UpscaledPhoto(as_photo(result, photo.dtype), texts[0])


def load_chains(
    folders: Mapping[str, Path],
    *,
    device: str,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
) -> dict[str, SuperResolver]:
    """Models of kind vlcot by name, ready to run on `device`. dtype: of the trunks.

    Errors: ValueError naming the file and its defect.
    """
    return {
        name: VlcotResolver(load_model(folder, device=device, dtype=dtype), settings)
        for name, folder in folders.items()
    }
