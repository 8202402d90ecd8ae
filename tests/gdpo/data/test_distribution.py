"""Our LR images are distributed like those of the published recipe
(benchmarks/published_recipe.py), which shares no code.

Figures of 200 patches: PSNR of the enlarged image, gradient energy, noise and blockiness, as in
benchmarks/degrade.py. With draws of its own on each side, the deciles must agree within the error
of sampling; with the same draws, far closer.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from benchmarks import published_recipe as published
from benchmarks.degrade import LABELS, cut_patches, figures_of_ours, figures_of_published
from gdpo.config import Degradation
from gdpo.data.degrade import draw
from gdpo.data.kernels import Draw, kernel
from gdpo.seeds import numpy_generator

PATCHES, SIDE = 200, 128
DECILES = np.arange(10, 100, 10)
FULL = Path(__file__).parents[3] / "profiles/real-esrgan.yaml"


@cache
def _patches() -> list[np.ndarray]:
    return cut_patches(PATCHES, SIDE)


def _config(name: str) -> Degradation:
    values = YAML(typ="safe").load(FULL)["degrade"]["degradation"] if name == "real-esrgan" else {}
    return Degradation.model_validate(values)


def _draws(config: Degradation) -> list[Draw]:
    return [draw(config, numpy_generator("distribution", i)) for i in range(PATCHES)]


@cache
def _ours(name: str) -> np.ndarray:
    """Figures (PATCHES, 4) of our degradation of every patch."""
    return np.array(
        [figures_of_ours(*both) for both in zip(_patches(), _draws(_config(name)), strict=True)]
    )


def _deciles(figures: np.ndarray) -> np.ndarray:
    deciles: np.ndarray = np.percentile(figures, DECILES, axis=0)
    return deciles


@pytest.mark.parametrize("name", ["released", "real-esrgan"])
def test_deciles_agree_within_the_sampling_error(name):
    """Draws and images of both sides are independent; the error is that of the difference, by
    bootstrap over the patches.
    """
    values = published.RELEASED if name == "released" else published.REAL_ESRGAN
    draws = [published.draw(values, np.random.default_rng((7, i))) for i in range(PATCHES)]
    theirs = np.array([figures_of_published(*both) for both in zip(_patches(), draws, strict=True)])
    ours = _ours(name)
    rng = np.random.default_rng(0)
    again = [rng.integers(PATCHES, size=PATCHES) for _ in range(300)]
    error = np.std([_deciles(ours[chosen]) - _deciles(theirs[chosen]) for chosen in again], axis=0)
    distance = (_deciles(ours) - _deciles(theirs)) / error
    assert np.abs(distance).max() < 3.5, dict(
        zip(LABELS, np.round(distance.T, 1).tolist(), strict=True)
    )


def test_deciles_nearly_agree_for_the_same_draws():
    """What is left: other noise, and real JPEG in place of one in floats."""
    draws = _draws(_config("released"))
    theirs = _deciles(
        np.array([figures_of_published(*both) for both in zip(_patches(), draws, strict=True)])
    )
    difference = np.abs(_deciles(_ours("released")) - theirs)
    assert difference[:, 0].max() < 0.15  # dB
    assert np.all(difference[:, 1:] < 0.06 * theirs[:, 1:] + 0.03 * theirs[4, 1:])


def test_the_test_can_fail():
    """The full-strength values are not taken for the released ones."""
    distance = np.abs(_deciles(_ours("real-esrgan")) - _deciles(_ours("released"))) / _deciles(
        _ours("released")
    )
    assert np.all(distance.max(axis=0) > 0.08)


def test_kernels_are_those_of_the_recipe():
    """Ours, padded to 21x21, and theirs, from the same drawn parameters."""
    for i in range(100):
        drawn = draw(Degradation(), numpy_generator("kernels", i))["first"]["blur"]
        pad = (21 - drawn["size"]) // 2
        np.testing.assert_allclose(np.pad(kernel(drawn), pad), published.kernel21(drawn), atol=1e-7)


def _fields(drawn: Any) -> Any:
    """The names of all fields, without those that may be None."""
    return (
        {k: _fields(v) for k, v in drawn.items() if k not in ("blur", "sinc")}
        if isinstance(drawn, dict)
        else None
    )


def test_both_draw_the_same_fields():
    """So that either draw goes through either rendering."""
    assert _fields(draw(Degradation(), numpy_generator(0))) == _fields(
        published.draw(published.RELEASED, np.random.default_rng(0))
    )
