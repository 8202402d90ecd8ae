"""The vectorised map against the release's loop over cells."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from benchmarks.complexity import cell_by_cell
from gdpo.rewards import detail as complexity
from gdpo.rewards.detail import detail_map, detail_share


def _image(rgb: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None] / 255


def _same_as_loop(rgb: NDArray[np.uint8]) -> None:
    for grayscale, conversion in (("bt601", cv2.COLOR_RGB2GRAY), ("released", cv2.COLOR_BGR2GRAY)):
        expected = cell_by_cell(cv2.cvtColor(np.ascontiguousarray(rgb), conversion))
        found = detail_map(_image(rgb), grayscale)[0].numpy()
        np.testing.assert_array_equal(found, expected)
        assert float(detail_share(_image(rgb), grayscale)) == expected.mean()


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "retina"])
def test_photographs_give_the_map_of_the_loop(name: str) -> None:
    photo = getattr(skimage.data, name)()[:, :, :3]
    _same_as_loop(photo[60:272, 130:317])


@pytest.mark.parametrize(
    "size", [(10, 10), (20, 37), (31, 12), (9, 25), (25, 3), (1, 40), (1, 1), (19, 19)]
)
def test_strips_and_corner_of_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    _same_as_loop(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("contrast", [1, 2, 4, 8, 16, 64, 255])
def test_noise_of_every_contrast_around_the_threshold(contrast: int) -> None:
    rng = np.random.default_rng(contrast)
    sparse = rng.random((70, 90, 3)) < np.linspace(0, 0.3, 90)[None, :, None]
    _same_as_loop(np.where(sparse, contrast, 0).astype(np.uint8))


def test_stripes_and_ramps() -> None:
    row, column = np.mgrid[:60, :80]
    stripes = np.stack([column % 2 * 255, row % 3 * 85, column // 10 % 2 * 51], -1).astype(np.uint8)
    ramp = np.stack([column * 3, row * 4, column + row], -1).astype(np.uint8)
    _same_as_loop(stripes)
    _same_as_loop(ramp)


def test_flat_is_smooth_and_noise_is_detail() -> None:
    assert float(detail_share(torch.full((1, 3, 40, 40), 0.4))) == 0
    assert (
        float(detail_share(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))))
        == 1
    )


def test_the_released_gray_swaps_red_and_blue() -> None:
    red = torch.zeros(1, 3, 40, 40)
    red[:, 0, :, ::4] = 0.14
    assert float(detail_share(red, "bt601")) != float(detail_share(red, "released"))
    assert torch.equal(detail_map(red.flip(1), "released"), detail_map(red, "bt601"))


def test_a_batch_is_its_images() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.rand(3, 3, 33, 47, generator=generator)
        * torch.tensor([0.02, 0.05, 1.0])[:, None, None, None]
    )
    share = detail_share(batch)
    assert share.shape == (3,) and share.dtype == torch.float64
    assert torch.equal(share, torch.cat([detail_share(one[None]) for one in batch]))
    assert share[0] < share[2]


def test_eight_bit_levels_survive_the_truncation() -> None:
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    image = (levels / 255).expand(1, 3, 16, 16)
    assert torch.equal((image * 255).byte().long(), levels.expand(1, 3, 16, 16))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.full((1, 3, 8, 8), 2.0),
        torch.zeros(1, 3, 8, 8).byte(),
    ],
)
def test_a_bad_image_is_named(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^image_BCHW "):
        detail_share(bad)


def test_nan_and_an_unknown_grayscale_are_named() -> None:
    with pytest.raises(ValueError, match=r"^image_BCHW .*NaN"):
        detail_share(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match=r"^grayscale .*bt601"):
        detail_share(torch.zeros(1, 3, 8, 8), "rgb")


@pytest.mark.parametrize("size", [(10, 10), (10, 7), (6, 10), (10, 2), (2, 10), (4, 4)])
def test_every_test_is_right_where_it_is_sure(size: tuple[int, int]) -> None:
    """Flat, split and coarse decide cells of all contrasts as the whole histogram does, each many
    of them.
    """
    rng = np.random.default_rng(size)
    contrast = np.geomspace(1, 256, 300)[:, None, None]
    noise = (contrast * rng.random((300, *size))).astype(np.uint8)
    edges = np.where(rng.random((300, *size)) < 0.05, noise, 7).astype(np.uint8)
    cells = np.concatenate([noise, edges, np.sort(noise, axis=1)])
    bits = 50 / (size[0] * size[1])
    exact = complexity._entropy(cells)
    flat, split = complexity._surely_flat(cells, bits), complexity._surely_detail(cells, bits)
    low, high = complexity._entropy_bounds(cells).T
    assert np.all(exact[flat] <= bits) and np.all(exact[split] > bits)
    assert np.all(low <= exact + complexity.RECHECK) and np.all(exact <= high + complexity.RECHECK)
    assert flat.any() and (split.any() or bits > 0.5)
