"""Process an image in overlapping tiles and blend the results.

The memory needed on the device depends on the tile size, not on the image size. On the host,
`strips` holds one row of tiles.

    starts   evenly spaced over the axis; every overlap is at least the requested one
    weight   of tile i along one axis = rise_i - rise_(i+1)
             rise_i goes linearly from 0 to 1 in the middle of the overlap of tiles i-1 and i, over
             half the requested overlap

A tile has weight 0 near its own border, where it lacks context, and all weights sum to 1. A single
tile that covers the image has weight 1 everywhere, so the result equals the function's output bit
for bit.

Lengths are in latent cells; a factor converts them to pixels. Shapes: B batch, C channels, H W.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch


@dataclass(frozen=True)
class Axis:
    """The tiles of one axis, in latent cells.

    starts: start of each tile; side: length of every tile; ramp: width of the blend between
    neighbours.
    """

    starts: tuple[int, ...]
    side: int
    ramp: float

    @property
    def length(self) -> int:
        """The number of cells that the tiles cover."""
        return self.starts[-1] + self.side

    def weight(self, index: int, factor: int) -> torch.Tensor:
        """Blend weight of tile `index` at each of its side * factor points, in [0, 1]."""
        return self._rise(index, index, factor) - self._rise(index, index + 1, factor)

    def _rise(self, tile: int, edge: int, factor: int) -> torch.Tensor:
        """The rise from 0 to 1 across the overlap of tiles edge - 1 and edge, at `tile`'s points.

        For `edge` 0 the rise is 1, for the edge after the last tile 0: no blend at image borders.
        """
        # Centres of the points, in cells: latents and pixels then blend at the same place.
        points = (torch.arange(self.side * factor) + 0.5) / factor + self.starts[tile]
        if edge == 0:
            return torch.ones_like(points)
        if edge == len(self.starts):
            return torch.zeros_like(points)
        middle = (self.starts[edge] + self.starts[edge - 1] + self.side) / 2
        return ((points - middle) / self.ramp + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Window:
    """One tile of the plane, in latent cells."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, plane: torch.Tensor, factor: int) -> torch.Tensor:
        """The tile's part of plane (..., H * factor, W * factor)."""
        rows = slice(self.top * factor, (self.top + self.height) * factor)
        return plane[..., rows, self.left * factor : (self.left + self.width) * factor]


def split_axis(length: int, tile: int, overlap: int, unit: int) -> Axis:
    """The tiles of one axis of `length` latent cells.

    tile: greatest length of a tile; overlap: least overlap of neighbours, at most a third of
    `tile`; unit: length, tile, overlap and every start are multiples of it. The tiles are as few as
    the greatest length allows, and only as long as that number of tiles requires.
    """
    assert 0 < overlap <= tile // 3 and not any(
        value % unit for value in (length, tile, overlap)
    ), (
        tile,
        overlap,
        unit,
    )
    if length <= tile:
        return Axis((0,), length, overlap / 2)
    gaps = ceil((length - tile) / (tile - overlap))
    # Equal tiles that just cover the axis: a small last tile would lack context, and its UNet
    # another size.
    side = ceil((length + gaps * overlap) / (gaps + 1) / unit) * unit
    starts = tuple(index * (length - side) // gaps // unit * unit for index in range(gaps + 1))
    return Axis(starts, side, overlap / 2)


def strips(
    rows: Axis,
    columns: Axis,
    factor: int,
    run: Callable[[Window], torch.Tensor],
    on_tile: Callable[[], None] = lambda: None,
) -> Iterator[torch.Tensor]:
    """Run a function on every tile and blend its results; yields each row of tiles when finished.

    run: window -> tile (B, C, height * factor, width * factor); on_tile: called after each tile.
    Yields (B, C, rows that no later tile changes, columns.length * factor), float32 on the CPU.
    """
    below = torch.empty(0)  # what this row of tiles has added to the rows of the next
    for i, top in enumerate(rows.starts):
        out = torch.empty(0)
        for j, left in enumerate(columns.starts):
            window = Window(top, left, rows.side, columns.side)
            # Blended on the CPU in float32: the device holds one tile, and sums in bf16 would show
            # at the seams.
            tile = run(window).float().cpu()
            if not out.numel():
                # The first tile tells the number of channels, which differs between latents and
                # images.
                out = torch.zeros(*tile.shape[:3], columns.length * factor)
                if below.numel():
                    out[..., : below.shape[2], :] = below
            weight = rows.weight(i, factor)[:, None] * columns.weight(j, factor)
            Window(0, left, rows.side, columns.side).cut(out, factor).add_(tile * weight)
            on_tile()
        end = (*rows.starts[1:], rows.length)[i] - top
        yield out[..., : end * factor, :]
        below = out[..., end * factor :, :]


def blend(
    rows: Axis,
    columns: Axis,
    factor: int,
    run: Callable[[Window], torch.Tensor],
    on_tile: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """As `strips`, all at once: (B, C, rows.length * factor, columns.length * factor)."""
    whole, done = torch.empty(0), 0
    for strip in strips(rows, columns, factor, run, on_tile):
        if not whole.numel():
            whole = torch.empty(*strip.shape[:2], rows.length * factor, strip.shape[3])
        whole[:, :, done : done + strip.shape[2]] = strip
        done += strip.shape[2]
    return whole
