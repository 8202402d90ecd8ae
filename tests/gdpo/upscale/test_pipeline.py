"""Sizes, seeds and seams: with a fake model that looks only at its neighbourhood, and once with the
real classes.
"""

from typing import Any

import numpy as np
import pytest
import torch

from gdpo.model.naosd import NAOSD
from gdpo.prior.architecture import tiny_autoencoder, tiny_text_encoder, tiny_tokenizer, tiny_unet
from gdpo.upscale.pipeline import upscale
from tests.gdpo.upscale.fake_model import FakeModel


def _photo(height: int, width: int) -> Any:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return np.kron(coarse, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (17, 1), (5, 7), (24, 16), (33, 50)])
@pytest.mark.parametrize("scale", [4, 2.5])
def test_the_output_has_exactly_the_scaled_size(size: tuple[int, int], scale: float) -> None:
    out = upscale(FakeModel(), _photo(*size), scale=scale)
    assert (
        out.shape == (round(size[0] * scale), round(size[1] * scale), 3) and out.dtype == np.uint8
    )


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_tiled_equals_untiled_and_the_tile_bounds_the_work(color_fix: str) -> None:
    photo, whole, tiled = _photo(60, 85), FakeModel(), FakeModel()
    expected = upscale(whole, photo, color_fix=color_fix, tile=2048)
    found = upscale(tiled, photo, color_fix=color_fix, tile=128)
    assert whole.largest == 344 and tiled.largest <= 128
    assert np.abs(expected.astype(int) - found.astype(int)).max() <= 1


def test_one_tile_is_the_model_alone() -> None:
    model, photo = FakeModel(), _photo(24, 32)
    exact = upscale(model, photo, tile=128)
    assert np.array_equal(exact, upscale(model, photo, tile=4096))


def test_the_seed_decides_the_noise() -> None:
    runs = [upscale(FakeModel(), _photo(24, 24), seed=seed) for seed in (3, 3, 4)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("t_add", [None, 0, 900])
def test_t_add_reaches_the_model(t_add: int | None) -> None:
    model, default = FakeModel(), FakeModel()
    found = upscale(model, _photo(24, 24), t_add=t_add, color_fix="none")
    assert model.seen_t_add == t_add
    expected = upscale(default, _photo(24, 24), color_fix="none")
    assert np.array_equal(found, expected) == (t_add is None)


def test_colours_follow_the_photograph() -> None:
    photo = np.full((20, 20, 3), (200, 80, 30), np.uint8)
    out = upscale(FakeModel(), photo, color_fix="wavelet")
    assert np.abs(out.mean((0, 1)) - (200, 80, 30)).max() < 3


def test_progress_counts_every_tile_of_three_passes() -> None:
    calls: list[tuple[int, int]] = []
    upscale(FakeModel(), _photo(60, 20), tile=128, on_tile=lambda *call: calls.append(call))
    assert calls == [(i, len(calls)) for i in range(1, len(calls) + 1)] and len(calls) == 9


class Words:
    """A tagger that says how large and how bright the image is that it gets."""

    def tags(self, image: torch.Tensor) -> list[str]:
        assert float(image.min()) >= 0 and float(image.max()) <= 1
        return [f"{one.shape[2]} by {one.shape[1]}" for one in image]


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, "sharp"),
        ({"words": "a lighthouse"}, "a lighthouse, sharp"),
        ({"tagger": Words()}, "40 by 24, sharp"),
        ({"tagger": Words(), "words": "a lighthouse,"}, "40 by 24, a lighthouse, sharp"),
    ],
)
def test_tags_are_of_the_enlarged_photograph_and_come_first(
    options: dict[str, Any], prompt: str
) -> None:
    seen: list[list[str]] = []
    told: list[str] = []
    model = FakeModel()
    model.embed = lambda texts: (seen.append(texts), torch.zeros(1, 2, 4))[1]
    upscale(model, _photo(6, 10), on_prompt=told.append, **options)
    assert seen == [[prompt]] and told == [prompt]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 0.0}, r"^scale "),
        ({"scale": float("nan")}, r"^scale "),
        ({"tile": 24}, r"^tile must be at least 32"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        upscale(FakeModel(), _photo(8, 8), **options)


def test_the_real_classes_run_tiled_and_whole_alike() -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = NAOSD(
        tiny_unet(), tiny_autoencoder(), tiny_text_encoder(tokenizer), tokenizer, prompt="sharp"
    )
    photo = _photo(9, 30)
    whole = upscale(model, photo, tile=512)
    assert whole.shape == (36, 120, 3)
    assert np.array_equal(whole, upscale(model, photo, tile=128))
    tiled = upscale(model, photo, tile=64)
    assert tiled.shape == whole.shape and np.abs(tiled.astype(int) - whole.astype(int)).mean() < 20
    assert upscale(model, _photo(3, 1)).shape == (12, 4, 3)


def test_a_size_replaces_the_scale() -> None:
    photo = _photo(24, 16)
    out = upscale(FakeModel(), photo, size=(50, 31))
    assert out.shape == (50, 31, 3)
    with pytest.raises(ValueError, match=r"^size must be at least one pixel"):
        upscale(FakeModel(), photo, size=(0, 31))


def test_16_bits_are_kept() -> None:
    """A ramp finer than 8 bits stays one; rounded, the result is that of 8 bits."""
    fine = np.linspace(20000, 22000, 40).astype(np.uint16)
    deep = np.broadcast_to(fine[:, None, None], (40, 24, 3)).copy()
    out = upscale(FakeModel(), deep)
    assert out.dtype == np.uint16 and len(np.unique(out[:, 48, 0])) > 100
    photo = _photo(24, 32)
    eight = upscale(FakeModel(), photo)
    wide = upscale(FakeModel(), photo.astype(np.uint16) * 257)
    assert np.abs(wide / 257 - eight).max() < 2.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_gives_nearly_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    parts = tiny_unet(), tiny_autoencoder(), tiny_text_encoder(tokenizer)
    model = NAOSD(*parts, tokenizer, prompt="sharp")
    photo = _photo(12, 20)
    expected = upscale(model, photo).astype(int)
    found = upscale(model.to(dtype), photo).astype(int)
    assert np.abs(found - expected).mean() < (4 if dtype == torch.bfloat16 else 0.1)


class Tinted(FakeModel):
    """A model whose output is too dark and too blue."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        tint = torch.tensor([-0.5, -0.4, 0.1]).view(1, 3, 1, 1)
        return (super().decode(z) + tint).clamp(-1, 1)


@pytest.mark.parametrize("color_fix", ["adain", "wavelet"])
def test_colours_of_another_tint_are_corrected_to_the_photographs(color_fix: str) -> None:
    photo = _photo(24, 24)
    means = [upscale(Tinted(), photo, color_fix=fix).mean((0, 1)) for fix in ("none", color_fix)]
    wanted = photo.mean((0, 1))
    assert np.abs(means[0] - wanted).max() > 20 and np.abs(means[1] - wanted).max() < 4
