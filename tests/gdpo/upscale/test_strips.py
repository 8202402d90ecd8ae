"""A picture made in strips has the bits of the whole, and no plane of floats of its size."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gdpo.color import color_fix
from gdpo.images import resize_bicubic, to_tensor
from gdpo.model.sampling import pad_to_multiple
from gdpo.tiling import Window, split_axis, strips
from gdpo.upscale import strips as module
from gdpo.upscale.pipeline import Enlarged, as_image, upscale
from gdpo.upscale.strips import corrected
from tests.gdpo.upscale.fake_model import FakeModel


def picture(seed: int, height: int = 150, width: int = 40) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def cut(image: torch.Tensor, ends: list[int]) -> Iterator[torch.Tensor]:
    for top, bottom in zip([0, *ends], [*ends, image.shape[2]], strict=True):
        yield image[:, :, top:bottom]


@pytest.mark.parametrize("kind", ["none", "adain", "wavelet"])
@pytest.mark.parametrize(
    "ends", [[], [75], [1, 2, 3], [30, 61, 93], [100, 149], list(range(7, 150, 7))]
)
def test_corrected_strips_are_the_corrected_picture(kind: str, ends: list[int]) -> None:
    image, reference = picture(0), picture(1)
    pieces = corrected(
        kind, cut(image, ends), lambda top, bottom: reference[:, :, top:bottom], tuple(image.shape)
    )
    assert torch.equal(torch.cat(list(pieces), 2), color_fix(kind, image, reference))


def test_a_high_strip_is_corrected_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The correction takes several times the memory of what it is given."""
    image, reference = picture(0, 700), picture(1, 700)
    whole, seen = color_fix("wavelet", image, reference), []

    def watched(kind: str, part: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[2])
        return color_fix(kind, part, low)

    monkeypatch.setattr(module, "color_fix", watched)
    pieces = corrected(
        "wavelet", iter([image]), lambda top, bottom: reference[:, :, top:bottom], (1, 3, 700, 40)
    )
    assert torch.equal(torch.cat(list(pieces), 2), whole)
    assert len(seen) > 3 and max(seen) < 200


@pytest.mark.parametrize("kind", ["none", "adain", "wavelet"])
@pytest.mark.parametrize("height", [1, 20])
def test_a_picture_lower_than_the_reach_of_the_correction(kind: str, height: int) -> None:
    image, reference = picture(0, height, 1), picture(1, height, 1)
    pieces = corrected(
        kind,
        cut(image, list(range(1, height))),
        lambda top, bottom: reference[:, :, top:bottom],
        tuple(image.shape),
    )
    assert torch.equal(torch.cat(list(pieces), 2), color_fix(kind, image, reference))


def test_rows_of_tiles_are_finished_one_after_the_other() -> None:
    """Their sum in the order of the tiles, as a plane of the whole picture would have it."""
    rows, columns = split_axis(40, 16, 4, 2), split_axis(30, 16, 4, 2)
    generator = torch.Generator().manual_seed(0)
    side = rows.side * 4, columns.side * 4
    tiles = {
        (top, left): torch.rand(1, 3, *side, generator=generator)
        for top in rows.starts
        for left in columns.starts
    }
    whole = torch.zeros(1, 3, 160, 120)
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            weight = rows.weight(i, 4)[:, None] * columns.weight(j, 4)
            window = Window(top, left, rows.side, columns.side)
            window.cut(whole, 4).add_(tiles[top, left] * weight)
    found = list(strips(rows, columns, 4, lambda window: tiles[window.top, window.left]))
    assert len(found) == len(rows.starts) > 2
    assert torch.equal(torch.cat(found, 2), whole)


@pytest.mark.parametrize("size", [(36, 30), (37, 41), (3, 50), (1, 1)])
def test_the_enlarged_photograph_is_cut_as_the_padded_plane_would_be(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    enlarged = Enlarged.of(photo, size, 8)
    plane = pad_to_multiple(to_tensor(resize_bicubic(photo, size))[None], 8)
    assert enlarged.padded == tuple(plane.shape[2:])
    window = Window(0, 0, plane.shape[2] // 4, plane.shape[3] // 4)
    assert torch.equal(enlarged.cut(window, 4), plane)
    lower = Window(plane.shape[2] // 8, 1, plane.shape[2] // 8, 1)
    assert torch.equal(enlarged.cut(lower, 4), lower.cut(plane, 4))
    assert enlarged.cut(window, 4).is_contiguous()  # else the VAE would compute in another layout


def test_every_level_becomes_the_same_float() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert torch.equal(as_image(levels)[0], to_tensor(levels))
    deep = np.arange(65536, dtype=np.uint16).repeat(3).reshape(256, 256, 3)
    assert np.array_equal(
        as_image(deep)[0, 0].numpy().ravel(), np.arange(65536, dtype=np.float32) / 65535
    )


class Largest(TorchDispatchMode):
    """The most elements that a tensor of floats had."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            self.numel = max(self.numel, made.untyped_storage().nbytes() // 4)
        return made


@pytest.mark.parametrize("kind", ["none", "wavelet"])
def test_no_tensor_of_floats_has_the_size_of_the_picture(kind: str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (400, 40, 3), dtype=np.uint8)
    with Largest() as mode:
        made = upscale(FakeModel(), photo, tile=128, color_fix=kind)
    assert mode.numel <= made.size / 4  # a row of tiles; the noise of both latents: an eighth


class Watched(FakeModel):
    """Counts the latents of the passes before that are in memory while it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: list[weakref.ref[torch.Tensor]] = []
        self.held = 0

    def inject(
        self, z: torch.Tensor, noise: torch.Tensor, t_add: int | None = None
    ) -> torch.Tensor:
        noisy = super().inject(z, noise, t_add)
        self.latents = [weakref.ref(latent) for latent in (z, noise, noisy)]
        return noisy

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        self.held = max(self.held, sum(latent() is not None for latent in self.latents))
        return super().decode(z)


def test_the_latents_of_a_pass_are_gone_before_the_next() -> None:
    model = Watched()
    upscale(model, np.zeros((40, 40, 3), np.uint8), tile=128)
    assert len(model.latents) == 3 and model.held == 0
