"""Every public name (DESIGN: `from gdpo import ...`) against wrong shapes, types, ranges and NaN: a
ValueError that starts with the name of the argument. What is wrong with a *file* is tested beside
its loader (tests/gdpo/model)."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gdpo
from gdpo.config import Degradation
from gdpo.model.naosd import NAOSD
from tests import tiny

NAN, INFINITE = float("nan"), float("inf")
Arguments = dict[str, Any]


def values(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.linspace(low, high, int(np.prod(shape))).reshape(shape)


@cache
def model() -> NAOSD:
    return tiny.model()


IMAGE, LATENT, PROMPT = (
    values(1, 3, 16, 16, low=-1),
    values(1, 4, 4, 4, low=-2, high=2),
    values(1, 77, tiny.WIDTH),
)
LOSSES = {
    "policy_error_BG": values(2, 3),
    "reference_error_BG": values(2, 3),
    "advantage_BG": values(2, 3, low=-1),
}
SCORES = {
    "fidelity_BGF": values(2, 3, 1),
    "perception_BGN": values(2, 3, 2),
    "detail_share_B": values(2),
}
VSD = {
    "z": LATENT,
    "noise": LATENT,
    "t": torch.tensor([250]),
    "eps_fake": LATENT,
    "eps_real": -LATENT,
}
COLORS = {"image": values(1, 3, 8, 8), "reference": values(1, 3, 8, 8)}
# name -> the call, good arguments (all of which are attacked), and how the call's own signature
# must read
CALLS: dict[str, tuple[Callable[[], Callable[..., Any]], Arguments]] = {
    "NAOSD.encode": (lambda: model().encode, {"x_BCHW": IMAGE, "noise": LATENT}),
    "NAOSD.inject": (lambda: model().inject, {"z": LATENT, "noise": LATENT, "t_add": 250}),
    "NAOSD.denoise": (lambda: model().denoise, {"z": LATENT, "prompt_BLD": PROMPT}),
    "NAOSD.decode": (lambda: model().decode, {"z": LATENT}),
    "NAOSD.forward": (
        lambda: model().forward,
        {"x_BCHW": IMAGE, "prompt_BLD": PROMPT, "noise": LATENT, "posterior_noise": LATENT},
    ),
    "detail_share": (
        lambda: gdpo.detail_share,
        {"image_BCHW": values(1, 3, 20, 20), "grayscale": "bt601"},
    ),
    "attribute_aware_reward": (lambda: gdpo.attribute_aware_reward, SCORES),
    "group_advantage": (lambda: gdpo.group_advantage, {"reward_BG": values(2, 3)}),
    "gdpo_loss": (lambda: gdpo.gdpo_loss, {**LOSSES, "omega": 5000.0}),
    "vsd_loss": (lambda: gdpo.vsd_loss, VSD),
    "fake_score_loss": (lambda: gdpo.fake_score_loss, {"eps_fake": LATENT, "noise": -LATENT}),
    "degrade": (
        lambda: gdpo.degrade,
        {
            "hr_CHW": values(3, 16, 16).numpy(),
            "config": Degradation(),
            "rng": np.random.default_rng(0),
        },
    ),
    "adain_color_fix": (lambda: gdpo.adain_color_fix, COLORS),
    "wavelet_color_fix": (lambda: gdpo.wavelet_color_fix, COLORS),
}
# What an argument must not be beyond the attacks on every tensor below.
RANGES: list[tuple[str, str, Any]] = [
    ("NAOSD.encode", "x_BCHW", IMAGE * 1.1),
    ("NAOSD.encode", "x_BCHW", values(1, 3, 16, 20)),
    ("NAOSD.encode", "x_BCHW", values(1, 1, 16, 16)),
    ("NAOSD.encode", "noise", values(1, 4, 4, 5)),
    ("NAOSD.inject", "t_add", 1000),
    ("NAOSD.inject", "t_add", -1),
    ("NAOSD.inject", "t_add", 250.0),
    ("NAOSD.inject", "t_add", True),
    ("NAOSD.inject", "noise", values(1, 4, 4, 5)),
    ("NAOSD.denoise", "z", values(1, 3, 4, 4)),
    ("NAOSD.denoise", "prompt_BLD", values(2, 77, tiny.WIDTH)),
    ("NAOSD.denoise", "prompt_BLD", values(1, 77, tiny.WIDTH + 1)),
    ("NAOSD.decode", "z", values(1, 8, 4, 4)),
    ("NAOSD.forward", "x_BCHW", IMAGE - 0.1),
    ("NAOSD.forward", "prompt_BLD", values(3, 77, tiny.WIDTH)),
    ("NAOSD.forward", "noise", values(2, 4, 4, 4)),
    ("NAOSD.forward", "posterior_noise", values(1, 4, 8, 8)),
    ("detail_share", "image_BCHW", values(1, 3, 8, 8, low=-0.1)),
    ("detail_share", "image_BCHW", values(1, 3, 8, 8, high=255)),
    ("detail_share", "grayscale", "rgb"),
    ("attribute_aware_reward", "detail_share_B", torch.tensor([0.5, 1.5])),
    ("attribute_aware_reward", "detail_share_B", torch.tensor([-0.5, 0.5])),
    ("group_advantage", "reward_BG", values(2, 1)),
    ("gdpo_loss", "omega", 0.0),
    ("gdpo_loss", "omega", NAN),
    ("gdpo_loss", "omega", -5000.0),
    ("gdpo_loss", "omega", "5000"),
    ("vsd_loss", "t", torch.tensor([1000])),
    ("vsd_loss", "t", torch.tensor([-1])),
    ("vsd_loss", "t", torch.tensor([250.0])),
    ("vsd_loss", "t", torch.tensor([250, 250])),
    ("vsd_loss", "t", 250),
    ("vsd_loss", "eps_real", values(1, 4, 4, 5)),
    ("fake_score_loss", "eps_fake", values(2, 4, 4, 4)),
    ("degrade", "hr_CHW", values(3, 8, 8, high=255).numpy()),
    ("degrade", "hr_CHW", values(1, 8, 8)),
    ("degrade", "rng", 0),
    ("adain_color_fix", "image", COLORS["image"] * 1.1),
    ("wavelet_color_fix", "reference", COLORS["reference"] - 0.1),
]


def attacks(good: Any) -> dict[str, Any]:
    """What no tensor or array argument may be, whatever it is for."""
    if isinstance(good, np.ndarray):
        return {
            name: bad.numpy()
            for name, bad in attacks(torch.from_numpy(good)).items()
            if name != "kind"
        }
    if not good.is_floating_point():
        return {}
    holed, endless = good.clone(), good.clone()
    holed.view(-1)[-1], endless.view(-1)[0] = NAN, INFINITE
    return {
        "one dimension less": good[0],
        "one dimension more": good[None],
        "empty": good[:0],
        "whole numbers": good.round().int(),
        "truth values": good > 0,
        "NaN": holed,
        "infinite": endless,
        "kind": good.tolist(),
    }


EVERY = [
    pytest.param(call, name, bad, id=f"{call}-{name}-{what}")
    for call, (_, given) in CALLS.items()
    for name, good in given.items()
    if isinstance(good, torch.Tensor | np.ndarray)
    for what, bad in attacks(good).items()
]


def refuse(call: str, name: str, bad: Any) -> None:
    function, given = CALLS[call]
    with pytest.raises(ValueError) as caught:
        function()(**{**given, name: bad})
    said = str(caught.value)
    # Where two or three arguments disagree, all are named, in the order of the signature.
    assert (
        name
        in said.partition(" must ")[0]
        .partition(" disagree ")[0]
        .partition(" differ ")[0]
        .partition(" has ")[0]
    ), said
    assert "\n" not in said


@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_the_good_arguments_are_good(call: str) -> None:
    function, given = CALLS[call]
    out = torch.as_tensor(function()(**given))
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("call", CALLS)
def test_all_arguments_are_attacked(call: str) -> None:
    """No argument of a public name is left out of this file, except those that are no data."""
    function, given = CALLS[call]
    assert list(inspect.signature(function()).parameters) == list(given)
    attacked = {name for c, name, _ in RANGES if c == call} | {
        p.values[1] for p in EVERY if p.values[0] == call
    }
    assert given.keys() - attacked <= {"config"}


@pytest.mark.parametrize(("call", "name", "bad"), EVERY)
def test_a_wrong_shape_type_or_value_is_named(call: str, name: str, bad: Any) -> None:
    refuse(call, name, bad)


@pytest.mark.parametrize(("call", "name", "bad"), RANGES)
def test_what_is_out_of_range_is_named(call: str, name: str, bad: Any) -> None:
    refuse(call, name, bad)


@pytest.mark.parametrize(
    "call", [name for name in CALLS if name.startswith("NAOSD.") and name != "NAOSD.inject"]
)
def test_another_type_than_the_models_is_named(call: str) -> None:
    """Half the precision, or double, that no autocast takes care of."""
    function, given = CALLS[call]
    name = next(iter(given))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(
            ValueError, match=rf"^{name} must be of the model's type, torch.float32, got {dtype}"
        ):
            function()(**{**given, name: given[name].to(dtype)})
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        function()(**{**given, name: given[name].bfloat16()})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dtype": torch.int8}, "^dtype must be a floating-point type of torch, got torch.int8"),
        ({"dtype": "fp16"}, "^dtype must be a floating-point type of torch, got 'fp16'"),
        (
            {"device": "gpu"},
            "^device must be a device of torch such as 'cpu' or 'cuda:0', got 'gpu'",
        ),
        ({"device": None}, "^device must be a device of torch"),
        ({"device": "cuda:0"}, "^device is 'cuda:0', and torch finds no such device here"),
        ({"folder": "nowhere"}, "nowhere: no such model folder"),
        ({"folder": None}, "^folder must be a path, got None"),
        ({"base": 5}, "^base must be a path, got 5"),
    ],
)
def test_from_pretrained_names_what_it_cannot_use(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, arguments: Arguments, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        NAOSD.from_pretrained(**{"folder": tiny_base, **arguments})


def test_a_released_checkpoint_must_be_named_by_a_path() -> None:
    with pytest.raises(ValueError, match=r"^path must be a path, got 5"):
        gdpo.load_released_checkpoint(5)


def test_a_device_that_torch_was_built_without_is_named(tiny_base: Path) -> None:
    with pytest.raises(ValueError, match=r"^device is 'xpu', and torch finds no such device here"):
        NAOSD.from_pretrained(tiny_base, device="xpu")
