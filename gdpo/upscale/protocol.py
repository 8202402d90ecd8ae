"""The interface of a super-resolver of either system: pictures in, pictures out, with a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from numpy.typing import NDArray

from gdpo.config.fields import ColorFix, Precision
from gdpo.model.card import Identity
from gdpo.seeds import Key
from gdpo.upscale.pipeline import TILE

if TYPE_CHECKING:
    from gdpo.tagger.tagger import Tagger


@dataclass(frozen=True)
class Settings:
    """How a model runs.

    color_fix: colour correction against the enlarged input. precision: of `batch`; `photo` runs in
    fp32. tagger: gives tags of the enlarged input for the prompt. words, t_add, tile: of `photo`,
    as in `gdpo.upscale.pipeline.upscale`.
    """

    color_fix: ColorFix = "wavelet"
    precision: Precision = "fp32"
    tagger: "Tagger | None" = None
    words: str = ""
    t_add: int | None = None
    tile: int = TILE


@dataclass(frozen=True)
class UpscaledPhoto:
    """A super-resolved photograph, HWC RGB, and the text that the model was given or has written:
    the prompt, for NAOSD; the chain of thought, for RealSR-R1.
    """

    image: NDArray[Any]
    text: str


class SuperResolver(Protocol):
    """A model of any kind, ready to run: pictures in, pictures out, with a seed."""

    @property
    def identity(self) -> Identity:
        """Kind, label and role, from the model's card."""

    @property
    def scale(self) -> float:
        """The enlargement that the model is trained for."""

    def batch(self, enlarged_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """image_BCHW in [0, 1] of one LR image, repeated once per key, which seeds the sample.

        enlarged_BCHW: in [0, 1], the LR image at the size of the result.
        """

    def photo(
        self,
        photo: NDArray[Any],
        *,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> UpscaledPhoto:
        """The photograph, HWC RGB of uint8 or uint16, enlarged; same type.

        scale: None: the model's own. size: (height, width) of the result; replaces `scale`.
        on_tile: called with (done, total).
        Errors: ValueError naming the argument.
        """
