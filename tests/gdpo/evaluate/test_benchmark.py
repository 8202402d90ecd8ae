"""Outputs, noises and rewards of the evaluation, with upscalers that are plain functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gdpo.config import Reward
from gdpo.data.shards import Box, Pair, enlarge
from gdpo.evaluate.benchmark import Key, evaluate_image, noise_keys, rewards, stack
from gdpo.evaluate.statistics import within_image_std
from gdpo.seeds import seed_of, seeded_noise


@pytest.fixture
def pair() -> Pair:
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    hr = np.clip(enlarge(lr, (32, 48), "bicubic") + rng.normal(0, 9, (32, 48, 3)), 0, 255).astype(
        np.uint8
    )
    return Pair("rocket-00", "rocket", Box(0, 0, 32, 48), hr, lr, {}, 0.25)


def noisy(lr_up_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
    """A model: the input plus a little noise from the keys."""
    return (
        lr_up_BCHW
        + 0.02 * seeded_noise([seed_of(*key) for key in keys], tuple(lr_up_BCHW.shape[1:]))[0]
    ).clamp(0, 1)


def test_every_model_gets_the_same_input_and_noises_whatever_the_batch(pair: Pair) -> None:
    seen: dict[str, list[Key]] = {"naosd": [], "gdpo": []}

    def model(name: str, lr_up_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        assert torch.equal(lr_up_BCHW[-1], torch.from_numpy(bicubic).permute(2, 0, 1).float() / 255)
        seen[name] += keys
        return noisy(lr_up_BCHW, keys)

    bicubic = enlarge(pair.lr, (32, 48), "bicubic")
    models = {name: lambda x, keys, name=name: model(name, x, keys) for name in seen}
    found = evaluate_image(pair, models, ["psnr_y"], seed=7, noises=5, batch=2)
    assert seen["naosd"] == seen["gdpo"] == noise_keys(7, "rocket-00", 5)
    assert np.array_equal(found.outputs["bicubic"], bicubic[None])
    assert found.outputs["gdpo"].shape == (5, 32, 48, 3) and found.outputs["gdpo"].dtype == np.uint8
    assert np.array_equal(found.outputs["naosd"], found.outputs["gdpo"])
    whole = evaluate_image(pair, {"naosd": noisy}, ["psnr_y"], seed=7, noises=5, batch=5)
    assert np.array_equal(whole.outputs["naosd"], found.outputs["naosd"])
    assert len(np.unique(found.scores["naosd"]["psnr_y"])) == 5
    assert found.scores["bicubic"]["psnr_y"].shape == (1,)


@pytest.mark.parametrize("levels", [-0.4, 0.4])
def test_scores_are_of_the_eight_bit_output(pair: Pair, levels: float) -> None:
    """The nearest level, from below and from above."""

    def almost(lr_up_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        return lr_up_BCHW + levels / 255

    found = evaluate_image(pair, {"naosd": almost}, ["psnr_y"], seed=0, noises=2, batch=2)
    assert found.scores["naosd"]["psnr_y"][0] == found.scores["bicubic"]["psnr_y"][0]


def reward(fidelity: str, *perception: str) -> Reward:
    return Reward(fidelity=[fidelity], perception=list(perception))


def test_reward_by_hand() -> None:
    naosd = {
        "psnr_y": np.array([[20.0, 22.0], [30.0, 32.0]]),
        "niqe": np.array([[4.0, 5.0], [6.0, 6.0]]),
    }
    gdpo = {
        "psnr_y": np.array([[21.0, 23.0], [31.0, 31.0]]),
        "niqe": np.array([[4.0, 4.0], [5.0, 7.0]]),
    }
    found = rewards(
        {"naosd": naosd, "gdpo": gdpo}, np.array([0.25, 1.0]), reward("psnr_y", "niqe"), "naosd"
    )
    psnr_unit, niqe_unit = np.sqrt(2.0), np.sqrt(0.25)  # variances 2, 2 and 0.5, 0
    expected = [
        [
            0.75 * 0 / psnr_unit + 0.25 * 0.5 / niqe_unit,
            0.75 * 2 / psnr_unit + 0.25 * 0.5 / niqe_unit,
        ],
        [1 / niqe_unit, -1 / niqe_unit],
    ]
    np.testing.assert_allclose(found["gdpo"], expected)
    np.testing.assert_allclose(found["naosd"].mean(axis=1), 0, atol=1e-12)


def test_reward_of_one_metric_has_naosds_spread_as_its_unit() -> None:
    values = {"psnr_y": np.random.default_rng(0).normal(25, 0.3, (6, 8))}
    found = rewards({"naosd": values}, np.zeros(6), reward("psnr_y", "psnr_y"), "naosd")
    assert within_image_std(found["naosd"]) == pytest.approx(1)


def test_a_metric_without_spread_counts_nothing() -> None:
    flat = {"psnr_y": np.full((2, 3), 20.0), "niqe": np.full((2, 3), 4.0)}
    better = {"psnr_y": np.full((2, 3), 21.0), "niqe": np.full((2, 3), 3.0)}
    found = rewards(
        {"naosd": flat, "gdpo": better}, np.array([0.5, 0.5]), reward("psnr_y", "niqe"), "naosd"
    )
    assert not found["gdpo"].any()


def test_stack_keeps_the_order_of_images() -> None:
    results = [{"naosd": {"m": np.array([1.0, 2.0])}}, {"naosd": {"m": np.array([3.0, 4.0])}}]
    assert stack(results)["naosd"]["m"].tolist() == [[1, 2], [3, 4]]


def test_a_reward_may_have_one_side_alone() -> None:
    values = {
        "naosd": {"psnr_y": np.array([[20.0, 22.0]])},
        "gdpo": {"psnr_y": np.array([[21.0, 23.0]])},
    }
    found = rewards(values, np.array([0.25]), reward("psnr_y"), "naosd")
    unit = within_image_std(values["naosd"]["psnr_y"])
    assert found["gdpo"][0] == pytest.approx([0, 0.75 * 2 / unit])


@pytest.mark.parametrize("change", ["seed", "image"])
def test_seeds_and_images_have_noises_of_their_own(pair: Pair, change: str) -> None:
    other = replace(pair, id="rocket-01") if change == "image" else pair
    first, second = (
        evaluate_image(one, {"naosd": noisy}, ["psnr_y"], seed=seed, noises=3, batch=3)
        for one, seed in ((pair, 7), (other, 8 if change == "seed" else 7))
    )
    outputs = first.outputs["naosd"], second.outputs["naosd"]
    assert not any(np.array_equal(a, b) for a, b in zip(*outputs, strict=True))
    assert np.array_equal(first.outputs["bicubic"], second.outputs["bicubic"])
