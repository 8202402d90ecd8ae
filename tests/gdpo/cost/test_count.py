"""The counts against the published figures, and the calls of the step tables against the code that
makes them.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gdpo.cost import architectures
from gdpo.cost import count as cost
from gdpo.cost.architectures import Networks
from gdpo.cost.count import CACHED, CACHED_LR, ONLINE, ONLINE_LR, RELEASED, Macs, Part
from gdpo.hooks import Hooks
from gdpo.preference.loop import _Run, finetune
from gdpo.preference.rollout import rollout
from tests import tiny


@pytest.fixture(scope="module")
def sd21() -> Networks:
    return architectures.sd21()


@pytest.fixture(scope="module")
def rl_step() -> dict[str, Part]:
    """SD2.1's step at 512 pixels, with adapters put on networks of its own."""
    return {part.name: part for part in cost.rl_step(architectures.sd21(), 512)}


@pytest.fixture
def step_calls(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, int]]:
    """Calls per LR image, by part and column. They do not depend on the networks, so that small
    ones serve and nothing is counted.
    """
    monkeypatch.setattr(cost, "count", lambda run: Macs(0))
    identities = {"MUSIQ": nn.Identity(), "MANIQA": nn.Identity()}
    monkeypatch.setattr(cost, "reward_networks", lambda: identities)
    parts = cost.rl_step(architectures.from_folder(tiny_base), 256)
    return {part.name: part.calls for part in parts}


def total(parts: dict[str, Part], column: str) -> float:
    """TMAC per LR image."""
    return sum(part.macs.total * part.calls[column] for part in parts.values()) / 1e12


def test_a_convolution_a_linear_layer_and_attention_by_hand() -> None:
    x = torch.empty(2, 3, 8, 8, device="meta")
    with torch.device("meta"):
        conv, linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(8, 7)
    assert cost.count(lambda: conv(x)) == Macs(2 * 5 * 64 * 3 * 9)
    assert cost.count(lambda: linear(x)) == Macs(2 * 3 * 8 * 8 * 7)
    assert cost.count(lambda: x.flatten(0, 1) @ x.flatten(0, 1)) == Macs(0, 6 * 8 * 8 * 8)
    query = torch.empty(2, 4, 16, 8, device="meta")
    attend = cost.count(lambda: nn.functional.scaled_dot_product_attention(query, query, query))
    assert attend == Macs(0, 2 * 2 * 4 * 16 * 16 * 8)


def test_backward_of_a_frozen_layer_costs_one_product() -> None:
    with torch.device("meta"):
        linear = nn.Linear(8, 7).requires_grad_(False)
    x = torch.empty(4, 8, device="meta", requires_grad=True)
    assert cost.count(lambda: linear(x).sum().backward()) == Macs(2 * 4 * 8 * 7)


def test_parameters_are_the_published_ones(sd21: Networks) -> None:
    assert cost.parameters(sd21.unet) == 865_910_724
    assert cost.parameters(sd21.vae) == 83_653_863
    assert cost.parameters(sd21.vae.encoder) == 34_163_592
    assert cost.parameters(sd21.vae.decoder) == 49_490_179
    assert cost.parameters(sd21.text_encoder) == 340_387_840
    assert sd21.tagger is not None
    tagger = {part.name: part.parameters for part in cost.inference(sd21, 64)}
    assert tagger["tagger (RAM, DAPE)"] == 212_739_637
    assert tagger["tagger (RAM, DAPE)"] + tagger["RAM, never run"] == 470_926_449


def test_macs_are_the_published_ones_and_sum_up_to_table_4(sd21: Networks) -> None:
    parts = cost.inference(sd21, 512)
    found = {part.name: part for part in parts}
    expected = {  # GMAC with and without attention
        "UNet": (402.1, 339.1),
        "VAE encoder": (558.3, 541.1),
        "VAE decoder": (1257.3, 1240.1),
        "text encoder": (22.6, 22.3),
        "tagger (RAM, DAPE)": (162.2, 156.2),
        "RAM, never run": (0.0, 0.0),
    }
    for name, (whole, linear) in expected.items():
        macs = found.pop(name).macs
        assert (macs.total / 1e9, macs.linear / 1e9) == pytest.approx((whole, linear), abs=0.06), (
            name
        )
    assert not found
    assert sum(part.parameters for part in parts) == pytest.approx(
        cost.PUBLISHED_PARAMETERS, rel=0.01
    )
    linear = sum(part.macs.linear for part in parts)
    assert linear == pytest.approx(cost.PUBLISHED_MACS, rel=0.013)
    assert linear - cost.dape_macs(sd21) == pytest.approx(cost.PUBLISHED_MACS, rel=0.001)


@pytest.mark.processes  # 18 s of processor time: the backward passes of SD2.1, operator by operator
def test_the_released_step_costs_what_was_derived_from_its_code(rl_step: dict[str, Part]) -> None:
    expected = {
        "LR image, VAE encoder": 0.56,
        "candidates, UNet": 2.41,
        "candidates, VAE decoder": 7.54,
        "reward, MUSIQ": 0.11,
        "reward, MANIQA": 18.17,
        "candidates again, VAE encoder": 3.35,
        "policy, UNet forward": 2.43,
        "policy, VAE decoder, unused": 7.54,
        "reference, UNet": 2.41,
        "reference, VAE decoder, unused": 7.54,
        "policy, UNet backward": 2.81,
    }
    for name, tmac in expected.items():
        part = rl_step[name]
        assert part.macs.total * part.calls[RELEASED] / 1e12 == pytest.approx(tmac, abs=0.011), name
    assert total(rl_step, RELEASED) == pytest.approx(55.4, abs=0.2)
    assert total(rl_step, CACHED) == pytest.approx(5.24, abs=0.05)
    assert total(rl_step, CACHED) < total(rl_step, ONLINE) < total(rl_step, RELEASED)
    assert total(rl_step, CACHED_LR) == pytest.approx(0.90, abs=0.01)
    assert total(rl_step, ONLINE_LR) == pytest.approx(30.1, abs=0.1)


def test_a_pretraining_step_of_a_small_model(tmp_path: Path) -> None:
    networks = architectures.from_folder(tiny.write_base(tmp_path / "base"))
    forward = cost.forward_macs(networks, 32)
    rows = {part.name: part for part in cost.pretrain_step(networks, 32)}
    assert rows["tags of the HR image, twice"].macs == Macs(0)
    assert rows["VSD, real score with guidance"].macs == forward["unet"]
    assert rows["VSD, real score with guidance"].calls == {RELEASED: 2, "ours": 2}
    generator = rows["generator, UNet forward"].macs.total
    assert forward["unet"].total < generator < rows["generator, UNet backward"].macs.total
    assert rows["VAE decoder, both ways"].macs.total > 1.5 * forward["decoder"].total
    assert rows["LR image, VAE encoder, both ways"].macs.total > 1.5 * forward["encoder"].total
    assert (
        rows["LPIPS of the result, both ways"].macs.linear
        == 2 * rows["LPIPS of the HR image"].macs.linear
    )


def test_sizes_that_do_not_fit_are_refused(sd21: Networks, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^--size must be a positive multiple of 64 for this model, got 100$"
    ):
        cost.inference(sd21, 100)
    with pytest.raises(ValueError, match=r"^--size must be at least 224 for --step rl"):
        cost.rl_step(sd21, 192)
    with pytest.raises(
        ValueError,
        match=r"unet/config\.json: no such file; --model is sd2\.1 or a diffusers folder$",
    ):
        architectures.from_folder(tmp_path)


def calls_of(model: Any, run: Any) -> Counter[str]:
    """How many images, latents or prompts go through each network while `run` runs."""
    seen: Counter[str] = Counter()
    networks = {
        "UNet": model.unet,
        "encoder": model.vae.encoder,
        "decoder": model.vae.decoder,
        "text": model.text_encoder,
    }

    def count(name: str) -> Any:
        return lambda module, args, kwargs, out: seen.update(
            {name: len(out[0] if name in ("UNet", "text") else out)}
        )

    handles = [
        net.register_forward_hook(count(name), with_kwargs=True) for name, net in networks.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("input_", "online", "cached"),
    [("reencoded", ONLINE, CACHED), ("lr", ONLINE_LR, CACHED_LR)],
)
def test_the_calls_of_our_columns_are_those_of_the_code(
    step_calls: dict[str, dict[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    input_: str,
    online: str,
    cached: str,
) -> None:
    # One forward per checkpoint, not per LR image.
    monkeypatch.setattr(_Run, "verify", lambda self: None)
    settings = {"group": 6, "noises": 1, "input": input_, **tiny.SHARED}
    config = tiny.settings(rollout=settings, finetune={"steps": 1, "batch": 1})
    model = tiny.model()
    groups: list[Any] = []
    made = calls_of(model, lambda: groups.extend(rollout(model, [tiny.pair(0)], config)))

    def train() -> None:
        finetune(
            model, groups, config, control=False, folder=tmp_path, fingerprint="", hooks=Hooks()
        )

    trained = calls_of(model, train)

    def calls(column: str, *names: str) -> int:
        return sum(step_calls[name][column] for name in names)

    policy, text = "policy, UNet forward", "text encoder"
    assert trained == {"UNet": calls(cached, policy), "text": calls(cached, text)}
    assert made["UNet"] == calls(online, "candidates, UNet", "reference, UNet")
    assert made["encoder"] == calls(
        online, "LR image, VAE encoder", "candidates again, VAE encoder"
    )
    assert made["decoder"] == calls(online, "candidates, VAE decoder")
    assert made["text"] + trained["text"] == calls(online, text)
