"""Tiles cover an axis, their weights sum to one, and they meet without a step."""

import numpy as np
import pytest
import torch

from gdpo.tiling import Window, blend, split_axis


@pytest.mark.parametrize(
    ("length", "tile", "overlap"),
    [(8, 8, 2), (24, 12, 4), (100, 12, 4), (50, 48, 12), (74, 24, 8), (160, 128, 32), (26, 24, 6)],
)
def test_tiles_cover_the_axis_and_their_weights_sum_to_one(
    length: int, tile: int, overlap: int
) -> None:
    axis = split_axis(length, tile, overlap, 2)
    assert axis.length == length and axis.side <= tile
    fewest = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
    assert len(axis.starts) == fewest
    assert axis.side * fewest <= length + (fewest - 1) * overlap + 2 * fewest
    assert all(start % 2 == 0 for start in axis.starts)
    steps = np.diff(axis.starts)
    assert len(steps) == 0 or (steps.max() <= axis.side - overlap and steps.min() > 0)
    for factor in (1, 4):
        total = torch.zeros(length * factor)
        for index, start in enumerate(axis.starts):
            weight = axis.weight(index, factor)
            assert weight.min() >= 0
            total[start * factor : (start + axis.side) * factor] += weight
        torch.testing.assert_close(total, torch.ones_like(total))


def test_tiles_that_disagree_meet_without_a_step() -> None:
    rows, columns = split_axis(40, 16, 4, 2), split_axis(16, 16, 4, 2)
    assert len(rows.starts) == 3
    out = blend(rows, columns, 4, lambda window: torch.full((1, 1, 64, 64), float(window.top)))
    largest = max(np.diff(rows.starts))
    assert float(out.diff(dim=2).abs().max()) <= largest / (rows.ramp * 4) + 1e-4
    assert float(out[0, 0, 0, 0]) == 0 and float(out[0, 0, -1, 0]) == rows.starts[-1]


def test_a_window_cuts_pixels_by_its_factor() -> None:
    plane = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(Window(1, 2, 2, 1).cut(plane, 2), plane[:, :, 2:6, 4:6])
