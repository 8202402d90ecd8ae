"""gdpo.data.degrade: what is drawn, and that drawn parameters alone make the image."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scipy import stats

from gdpo.config import Degradation, DegradationOrder
from gdpo.data.degrade import apply, degrade, draw, low_resolution, patch_generator
from gdpo.data.kernels import kernel
from gdpo.data.operations import blur, jpeg, resize_by, resize_to
from gdpo.seeds import numpy_generator

CONFIG = Degradation()


def _photo(height: int = 64, width: int = 48, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = (
        rng.random((channels, 8, 8), dtype=np.float32)
        .repeat(12, 1)
        .repeat(12, 2)[:, :height, :width]
    )
    return np.broadcast_to(coarse, (3, *coarse.shape[1:])).copy()


def _draws(count: int, config: Degradation = CONFIG) -> list[dict]:
    return [draw(config, numpy_generator(0, "test", i)) for i in range(count)]


@pytest.mark.parametrize("key", range(12))
def test_replay_gives_the_same_bytes(key):
    """degrade == apply(draw), also after the parameters went through JSON."""
    hr = _photo()
    lr = degrade(hr, CONFIG, numpy_generator(key))
    drawn = json.loads(json.dumps(draw(CONFIG, numpy_generator(key))))
    assert lr.tobytes() == apply(hr, drawn).tobytes()
    assert lr.shape == (3, 16, 12) and lr.dtype == np.float32
    assert lr.min() >= 0 and lr.max() <= 1
    np.testing.assert_allclose(lr * 255, np.round(lr * 255), atol=1e-4)


def test_a_patch_draws_by_version_id_and_epoch():
    """The same three, the same draw; another of any of them, another one. Epoch 0 is what it was
    before there were epochs.
    """
    keys = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", 2), (1, "a", 1)]
    drawn = [json.dumps(draw(CONFIG, patch_generator(*key))) for key in keys]
    assert drawn == [json.dumps(draw(CONFIG, patch_generator(*key))) for key in keys] and len(
        set(drawn)
    ) == len(keys)
    assert drawn[0] == json.dumps(draw(CONFIG, numpy_generator(0, "degrade", "a")))


def test_arrays_and_tensors_agree():
    """A tensor comes back as a tensor of its type, with the same values."""
    hr = _photo()
    drawn = draw(CONFIG, numpy_generator(7))
    tensor = apply(torch.from_numpy(hr).double(), drawn)
    assert tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor, apply(hr, drawn), atol=1e-7)


def test_different_patches_differ():
    """Another key, another degradation; the same photograph."""
    results = {degrade(_photo(), CONFIG, numpy_generator("patch", i)).tobytes() for i in range(20)}
    assert len(results) == 20


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5), (33, 47)])
def test_small_and_odd_sizes(size):
    """H // 4, at least one pixel, for whatever is drawn."""
    for drawn in _draws(40):
        lr = apply(_photo(*size), drawn)
        assert lr.shape == (3, max(1, size[0] // 4), max(1, size[1] // 4)) and np.isfinite(lr).all()


def test_gray_stays_gray_under_gray_noise():
    """With gray noise only, a gray photograph has (up to JPEG's rounding) equal channels."""
    config = Degradation.model_validate(
        {"first": {"gray_noise_prob": 1.0}, "second": {"gray_noise_prob": 1.0}}
    )
    for drawn in _draws(10, config):
        lr = low_resolution(_photo(channels=1).transpose(1, 2, 0), drawn)
        assert np.ptp(lr.astype(int), axis=-1).max() <= 2


@pytest.mark.parametrize("shape", [(64, 48, 3), (1, 64, 48), (3, 64)])
def test_wrong_shapes_are_refused(shape):
    """The message has the shape."""
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        degrade(np.zeros(shape, np.float32), CONFIG, np.random.default_rng(0))


@pytest.mark.parametrize("jpeg_last", [False, True])
def test_order_of_the_steps(jpeg_last):
    """The whole chain, written out for one set of parameters without noise."""
    blur1 = {"kind": "iso", "size": 7, "sigma": [1.0, 1.0], "theta": 0.0}
    blur2 = {"kind": "aniso", "size": 9, "sigma": [1.0, 0.5], "theta": 0.4}
    sinc = {"kind": "sinc", "size": 21, "cutoff": 2.0}
    silent = {"kind": "gaussian", "strength": 0.0, "gray": False, "seed": 1}
    drawn = {
        "scale": 4,
        "first": {
            "blur": blur1,
            "resize": {"scale": 0.7, "mode": "bilinear"},
            "noise": silent,
            "jpeg": 70,
        },
        "second": {"blur": blur2, "resize": {"scale": 1.1, "mode": "area"}, "noise": silent},
        "final": {"jpeg_last": jpeg_last, "mode": "bicubic", "sinc": sinc, "jpeg": 80},
    }
    hr = _photo().transpose(1, 2, 0)
    image = jpeg(resize_by(blur(hr * np.float32(255), kernel(blur1)), 0.7, "bilinear"), 70)
    # int(64 / 4 * 1.1), int(48 / 4 * 1.1).
    image = np.clip(resize_to(blur(image, kernel(blur2)), (17, 13), "area"), 0, 255)
    image = image if jpeg_last else jpeg(image, 80)
    image = blur(resize_to(image, (16, 12), "bicubic"), kernel(sinc))
    image = jpeg(image, 80) if jpeg_last else image
    np.testing.assert_array_equal(low_resolution(hr, drawn), np.round(np.clip(image, 0, 255)))


def _share(values: list[bool], expected: float) -> None:
    assert abs(np.mean(values) - expected) < 4 * math.sqrt(
        max(expected * (1 - expected), 1e-9) / len(values)
    )


def test_probabilities_of_the_draws():
    """Every coin lands as configured, within 4 standard errors."""
    drawn = _draws(3000)
    for name, stage in (("first", CONFIG.first), ("second", CONFIG.second)):
        parts = [d[name] for d in drawn]
        _share([p["blur"] is not None for p in parts], stage.blur_prob)
        scales = np.array([p["resize"]["scale"] for p in parts])
        for share, mask in zip(
            stage.resize_prob, (scales > 1, scales < 1, scales == 1), strict=True
        ):
            _share(mask.tolist(), share)
        _share([p["noise"]["kind"] == "gaussian" for p in parts], stage.gaussian_noise_prob)
        _share([p["noise"]["gray"] for p in parts], stage.gray_noise_prob)
        for mode in ("area", "bilinear", "bicubic"):
            _share([p["resize"]["mode"] == mode for p in parts], 1 / 3)
    _share([d["final"]["jpeg_last"] for d in drawn], 0.5)
    _share([d["enlarge"] == "area" for d in drawn], 1 / 3)


def test_strengths_are_uniform():
    """Noise strengths, scales and qualities fill their ranges evenly (Kolmogorov-Smirnov)."""
    drawn = _draws(3000)
    for name, stage in (("first", CONFIG.first), ("second", CONFIG.second)):
        noises = [d[name]["noise"] for d in drawn]
        for kind, (low, high) in (
            ("gaussian", stage.noise_range),
            ("poisson", stage.poisson_scale_range),
        ):
            strengths = [n["strength"] for n in noises if n["kind"] == kind]
            assert stats.kstest(strengths, stats.uniform(low, high - low).cdf).pvalue > 1e-3
        down = [s for d in drawn if (s := d[name]["resize"]["scale"]) < 1]
        assert (
            stats.kstest(
                down, stats.uniform(stage.resize_range[0], 1 - stage.resize_range[0]).cdf
            ).pvalue
            > 1e-3
        )
    for part, (low, high) in (
        ("first", CONFIG.first.jpeg_range),
        ("final", CONFIG.second.jpeg_range),
    ):
        qualities = [d[part]["jpeg"] for d in drawn]
        assert min(qualities) == low and max(qualities) == high
        assert abs(np.mean(qualities) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 3000)


def test_second_order_can_be_left_out():
    """`second_prob` 0: blur, noise and resize once, then the final JPEG as ever."""
    drawn = draw(Degradation(second_prob=0.0), np.random.default_rng(0))
    assert drawn["second"] is None
    assert apply(_photo(), drawn).shape == (3, 16, 12)


def test_defaults_are_the_released_values():
    """The GDPO release's params_GDPO.yml, and keys that are left out of a stage keep that stage's
    values.
    """
    assert CONFIG.first == DegradationOrder()
    assert CONFIG.second.model_dump() == {
        "blur_prob": 0.5,
        "sinc_prob": 0.1,
        "blur_sigma": [0.2, 1.5],
        "resize_prob": [0.3, 0.4, 0.3],
        "resize_range": [0.6, 1.2],
        "gaussian_noise_prob": 0.5,
        "noise_range": [1.0, 12.0],
        "poisson_scale_range": [0.05, 1.0],
        "gray_noise_prob": 0.4,
        "jpeg_range": [60.0, 100.0],
    }
    changed = Degradation.model_validate({"second": {"blur_prob": 0.8}})
    assert changed.second.blur_sigma == [0.2, 1.5] and changed.second.blur_prob == 0.8


def test_full_strength_profile():
    """profiles/real-esrgan.yaml gives Real-ESRGAN's table, and every key in it differs from the
    default.
    """
    path = Path(__file__).parents[3] / "profiles" / "real-esrgan.yaml"
    values = YAML(typ="safe").load(path)["degrade"]["degradation"]
    full = Degradation.model_validate(values)
    assert full.first.resize_range == [0.15, 1.5] and full.first.noise_range == [1, 30]
    assert full.first.poisson_scale_range == [0.05, 3] and full.first.jpeg_range == [30, 95]
    assert (
        full.second.blur_prob == 0.8
        and full.second.resize_range == [0.3, 1.2]
        and full.second.noise_range == [1, 25]
    )
    assert full.second.poisson_scale_range == [0.05, 2.5] and full.second.jpeg_range == [30, 95]
    assert full.second.blur_sigma == [0.2, 1.5] and full.second.resize_prob == [0.3, 0.4, 0.3]
    for name in ("first", "second"):
        for key, value in values[name].items():
            assert getattr(getattr(CONFIG, name), key) != value


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"first": {"jpeg_range": [0, 90]}}, "first.jpeg_range"),
        ({"second": {"resize_range": [0.5, 0.9]}}, "second.resize_range"),
        ({"kernel_sizes": [7, 8]}, "kernel_sizes"),
        ({"first": {"blur_sigma": [0.0, 1.0]}}, "first.blur_sigma"),
    ],
)
def test_impossible_ranges_are_refused(bad, key):
    """The error names the key."""
    with pytest.raises(ValueError, match=key):
        Degradation.model_validate(bad)
