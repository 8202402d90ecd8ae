"""Colour correction of a picture that is made in strips of rows, from top to bottom.

    none      each pixel by itself
    wavelet   a strip waits for the REACH rows below it, and keeps as many above it
    adain     needs the mean and deviation of the whole picture, which are known after its last
              strip; until then it is held as float32

The result has the bits of `color_fix` on the whole picture, wherever the strips begin and end.

Shapes: strips 1CHW in [0, 1], of one width.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from gdpo.color import REACH, apply_adain, color_fix, mean_and_std

# Rows corrected at once, for the correction holds several planes of floats of their size.
ROWS = 128
# (top, bottom) -> the rows of the enlarged input, 1CHW in [0, 1].
Rows = Callable[[int, int], torch.Tensor]


def corrected(
    kind: str, strips: Iterator[torch.Tensor], reference: Rows, shape: tuple[int, ...]
) -> Iterator[torch.Tensor]:
    """The strips of the corrected picture, clamped to [0, 1]; other strips than those that came.

    kind: as in `color_fix`. shape: of the whole picture, 1CHW.
    """
    height, width = shape[2:]
    if kind == "adain" and height * width > 1:
        yield from _by_statistics(strips, reference, shape)
    else:
        yield from _by_neighbours(kind, strips, reference, height)


def _by_neighbours(
    kind: str, strips: Iterator[torch.Tensor], reference: Rows, height: int
) -> Iterator[torch.Tensor]:
    """A correction that looks at most REACH rows up and down."""
    held, top, done = torch.empty(0), 0, 0  # `held` begins with row `top`; `done` rows are out
    reach = REACH if kind == "wavelet" else 0
    for strip in (part for whole in strips for part in whole.split(ROWS, 2)):
        held = torch.cat([held, strip], 2) if held.numel() else strip
        bottom = top + held.shape[2]
        ready = height if bottom == height else bottom - reach
        if ready <= done:
            continue
        fixed = color_fix(kind, held, reference(top, bottom))
        yield fixed[:, :, done - top : ready - top]
        done, above = ready, max(top, ready - reach)
        held, top = held[:, :, above - top :].clone(), above


def _by_statistics(
    strips: Iterator[torch.Tensor], reference: Rows, shape: tuple[int, ...]
) -> Iterator[torch.Tensor]:
    """AdaIN."""
    wanted = mean_and_std(reference(0, shape[2]))
    whole, ends = torch.empty(shape), [0]
    for strip in strips:
        ends.append(ends[-1] + strip.shape[2])
        whole[:, :, ends[-2] : ends[-1]] = strip
    own = mean_and_std(whole)
    for top, bottom in pairwise(ends):
        yield apply_adain(whole[:, :, top:bottom], own, wanted).clamp(0, 1)
