"""Our LR images are distributed like those of the published recipe
(benchmarks/published_recipe.py), which shares no code.

Figures of 200 patches: PSNR of the enlarged image, gradient energy, noise and blockiness, as in
benchmarks/degrade.py. With draws of its own on each side, the deciles must agree within the error
of sampling; with the same draws, far closer.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scipy import stats

from benchmarks import published_recipe as published
from benchmarks.degrade import LABELS, cut_patches, figures_of_ours, figures_of_published
from gdpo.config import Degradation
from gdpo.data.degrade import draw
from gdpo.data.kernels import Draw, kernel
from gdpo.data.operations import jpeg
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


def test_jpeg_has_the_published_error_in_luma_and_a_smaller_one_in_chroma():
    """libjpeg interpolates the halved colours where the released code repeats them."""
    rng = np.random.default_rng(0)
    to_ycc = published.TO_YCC.numpy().T
    errors: dict[str, list[np.ndarray]] = {"ours": [], "theirs": []}
    for patch in _patches()[:60]:
        quality = rng.uniform(60, 95)
        image = torch.from_numpy(patch).permute(2, 0, 1)[None]
        theirs = published.through_jpeg(image, quality)[0].permute(1, 2, 0).numpy() * 255
        ours = jpeg(patch * 255, round(quality))
        for name, result in (("ours", ours), ("theirs", theirs)):
            error = (result - patch * 255) @ to_ycc
            errors[name].append(np.sqrt((error**2).mean(axis=(0, 1))))
    luma, cb, cr = np.mean(errors["ours"], axis=0) / np.mean(errors["theirs"], axis=0)
    assert abs(luma - 1) < 0.03
    assert 0.85 < cb < 0.97 and 0.85 < cr < 0.97


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


DRAWS = 4000


def _leaves(drawn: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything drawn; the seed of the noise apart, which has no published law.

    Values of the two kinds of noise and of each kind of kernel have paths of their own.
    """
    kind = f"{drawn['kind']}/" if "kind" in drawn else ""
    for name, value in drawn.items():
        at = f"{path}/{kind}{name}" if name != "kind" else f"{path}/kind"
        if isinstance(value, dict):
            yield from ((f"{at}?", True), *_leaves(value, at))
        elif name in ("blur", "sinc"):
            yield f"{at}?", value is not None
        elif name != "seed":
            values = value if isinstance(value, tuple | list | np.ndarray) else [value]
            yield from ((at, float(v) if not isinstance(v, bool | str) else v) for v in values)


def _columns(draws: Iterable[Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for drawn in draws:
        for path, value in _leaves(drawn):
            columns.setdefault(path, []).append(value)
    return columns


@pytest.mark.parametrize("name", ["released", "real-esrgan"])
def test_everything_drawn_has_the_published_law(name):
    """The default configuration against the released values, the profile against the full ones:
    frequencies of choices within 4.5 standard errors, ranges within 3 %, distributions by
    Kolmogorov and Smirnov.
    """
    values = published.RELEASED if name == "released" else published.REAL_ESRGAN
    config = _config(name)
    ours = _columns(draw(config, numpy_generator("law", i)) for i in range(DRAWS))
    rng = np.random.default_rng(5)
    theirs = _columns(published.draw(values, rng) for _ in range(DRAWS))
    assert ours.keys() == theirs.keys()
    for path, mine in ours.items():
        other = theirs[path]
        error = np.sqrt(2 / min(len(mine), len(other)) / 4)
        for choice in {*mine, *other} if isinstance(mine[0], bool | str) else ():
            gap = mine.count(choice) / len(mine) - other.count(choice) / len(other)
            assert abs(gap) < 4.5 * error, (path, choice, gap)
        # How often a kind of noise or kernel is drawn is the frequency of its column.
        assert abs(len(mine) - len(other)) < 4.5 * np.sqrt(len(mine) + len(other)), path
        if not isinstance(mine[0], bool | str) and len(mine) > 100:
            assert stats.ks_2samp(mine, other).pvalue > 1e-5, path
            span = max(other) - min(other) + 1e-9
            slack = 0.03 + 10 / len(mine)
            assert abs(min(mine) - min(other)) < slack * span, path
            assert abs(max(mine) - max(other)) < slack * span, path
