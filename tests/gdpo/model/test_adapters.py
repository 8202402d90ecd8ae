"""LoRA roles: the released placement on SD2.1-base, switching, and merging."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from gdpo.config import Lora
from gdpo.cost.architectures import UNET
from gdpo.model import steps
from gdpo.model.adapters import RoleConv, Roles, merge_adapters, unet_targets, vae_targets
from gdpo.model.naosd import NAOSD
from gdpo.seeds import torch_generator
from tests import tiny

LORA = Lora(rank=2, alpha=4)


@pytest.fixture(scope="module")
def sd_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )


@pytest.fixture(scope="module")
def sd_vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )


def lora_parameters(network: nn.Module, names: list[str], rank: int) -> int:
    """Of A (rank, in, k, k) and B (out, rank, 1, 1) on every layer, counted by hand."""
    weights = [network.get_parameter(f"{name}.weight") for name in names]
    return sum(rank * (w[0].numel() + w.shape[0]) for w in weights)


def place(name: str) -> str:
    if "down_blocks" in name or "conv_in" in name:
        return "encoder"
    return "decoder" if "up_blocks" in name else "others"


def test_unet_targets_of_sd21_base_are_the_released_ones(sd_unet: UNet2DConditionModel) -> None:
    names = unet_targets(sd_unet)
    assert sum(p.numel() for p in sd_unet.parameters()) == 865_910_724
    assert Counter(place(name) for name in names) == {"encoder": 94, "decoder": 147, "others": 17}
    assert lora_parameters(sd_unet, names, 4) == 4_055_712
    parts = {"encoder": 1_253_776, "decoder": 2_413_568, "others": 388_368}
    for part, count in parts.items():
        assert lora_parameters(sd_unet, [name for name in names if place(name) == part], 4) == count
    assert not [name for name in names if "time_emb" in name or "norm" in name]


def test_vae_targets_of_sd21_base_are_the_released_ones(sd_vae: AutoencoderKL) -> None:
    names = vae_targets(sd_vae)
    assert sum(p.numel() for p in sd_vae.parameters()) == 83_653_863
    assert len(names) == 32
    assert lora_parameters(sd_vae, names, 4) == 369_356
    assert "quant_conv" in names and "post_quant_conv" not in names


def test_roles_on_sd21_base_hold_what_the_targets_say(
    sd_unet: UNet2DConditionModel, monkeypatch: Any
) -> None:
    """peft must put adapters on exactly the targets, although it matches names by their ends."""
    # Four million normal numbers are of no use on the meta device.
    monkeypatch.setattr(
        "gdpo.model.adapters.torch.randn",
        lambda shape, generator: torch.empty(shape, device="meta"),
    )
    roles = Roles(sd_unet, unet_targets(sd_unet), full="conv_in")
    with torch.device("meta"):
        roles.add("policy", Lora(), seed=0, train_full=True)
    parameters = roles.parameters("policy")
    loras = {name: p for name, p in parameters.items() if ".lora_" in name}
    assert sorted({name.rpartition(".")[0] for name in loras}) == sorted(roles.targets)
    assert (len(loras), sum(p.numel() for p in loras.values())) == (2 * 258, 4_055_712)
    assert sum(p.numel() for name, p in parameters.items() if name not in loras) == 11_840
    assert sum(p.numel() for p in sd_unet.parameters() if p.requires_grad) == 4_055_712 + 11_840


def outputs(model: NAOSD) -> torch.Tensor:
    z = torch.randn(2, 4, 8, 8, generator=torch_generator("z"))
    prompt = torch.randn(1, 5, tiny.WIDTH, generator=torch_generator("prompt"))
    with torch.no_grad():
        return model.predict_noise(z, prompt)


def latents(model: NAOSD) -> torch.Tensor:
    x = torch.rand(1, 3, 32, 32, generator=torch_generator("x")) * 2 - 1
    with torch.no_grad():
        return torch.cat(steps.posterior(model, x))


def disturb(parameters: dict[str, nn.Parameter], key: str) -> None:
    """As if trained: every tensor moves, so B is no longer zero."""
    with torch.no_grad():
        for name, p in parameters.items():
            p.add_(0.1 * torch.randn(p.shape, generator=torch_generator(key, name)))


@pytest.fixture
def model() -> NAOSD:
    return tiny.model()


def test_a_fresh_role_changes_no_bit(model: NAOSD) -> None:
    plain, plain_latents = outputs(model), latents(model)
    model.unet_roles.add("policy", LORA, seed=0, train_full=True)
    model.vae_roles.add("policy", LORA, seed=0)
    with model.unet_roles.use("policy"), model.vae_roles.use("policy"):
        assert torch.equal(outputs(model), plain)
        assert torch.equal(latents(model), plain_latents)
    assert torch.equal(outputs(model), plain)


def test_each_role_has_its_own_output_and_none_is_the_base(model: NAOSD) -> None:
    plain = outputs(model)
    for role in ("policy", "fake"):
        model.unet_roles.add(role, LORA, seed=0, train_full=role == "policy")
    found = {}
    for role in ("policy", "fake"):
        disturb(model.unet_roles.parameters(role), role)
        with model.unet_roles.use(role):
            found[role] = outputs(model)
            with model.unet_roles.use(None):
                assert torch.equal(outputs(model), plain)
            assert torch.equal(outputs(model), found[role])
    assert torch.equal(outputs(model), plain)
    different = [(found["policy"], plain), (found["fake"], plain), (found["policy"], found["fake"])]
    assert all((a - b).abs().max() > 1e-2 for a, b in different)


def test_the_role_before_comes_back_after_an_error(model: NAOSD) -> None:
    model.unet_roles.add("policy", LORA, seed=0)
    with pytest.raises(RuntimeError), model.unet_roles.use("policy"):
        raise RuntimeError
    assert model.unet_roles.active == []


def test_switching_changes_no_trainability_and_gradients_reach_the_active_role_alone(
    model: NAOSD,
) -> None:
    for role in ("policy", "fake"):
        model.unet_roles.add(role, LORA, seed=0, train_full=role == "policy")
        disturb(model.unet_roles.parameters(role), role)
    policy, fake = (model.unet_roles.parameters(role) for role in ("policy", "fake"))
    trainable = {id(p) for p in model.unet.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in (*policy.values(), *fake.values())}
    for role, moved, still in (("fake", fake, policy), ("policy", policy, fake)):
        model.zero_grad(set_to_none=True)
        with model.unet_roles.use(role):
            assert {id(p) for p in model.unet.parameters() if p.requires_grad} == trainable
            z = torch.randn(1, 4, 8, 8, generator=torch_generator("z"))
            model.predict_noise(z, torch.ones(1, 3, tiny.WIDTH)).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in moved.values())
        assert all(p.grad is None for p in still.values())
    assert all(
        p.grad is None for name, p in model.unet.named_parameters() if id(p) not in trainable
    )


def test_adapters_are_drawn_from_seed_role_and_name(model: NAOSD) -> None:
    model.unet_roles.add("policy", LORA, seed=0)
    torch.manual_seed(1234)  # global state plays no part
    again = tiny.model()
    again.unet_roles.add("policy", LORA, seed=0)
    again.unet_roles.add("fake", LORA, seed=0)
    other = tiny.model()
    other.unet_roles.add("policy", LORA, seed=1)
    first, second, fake, third = (
        m.unet_roles.parameters(role)
        for m, role in ((model, "policy"), (again, "policy"), (again, "fake"), (other, "policy"))
    )
    assert first.keys() == second.keys() == fake.keys()
    for name, p in first.items():
        assert torch.equal(p, second[name])
        if name.endswith("lora_A"):
            assert not torch.equal(p, fake[name]) and not torch.equal(p, third[name])
        else:
            assert not p.any()
    drawn = torch.cat(
        [p.detach().flatten() for name, p in first.items() if name.endswith("lora_A")]
    )
    assert float(drawn.std()) == pytest.approx(1 / LORA.rank, rel=0.02)


def test_adding_a_role_leaves_the_trained_one_alone(model: NAOSD) -> None:
    model.unet_roles.add("policy", LORA, seed=0, train_full=True)
    disturb(model.unet_roles.parameters("policy"), "policy")
    before = {name: p.detach().clone() for name, p in model.unet_roles.parameters("policy").items()}
    with model.unet_roles.use("policy"):
        out = outputs(model)
    model.unet_roles.add("fake", LORA, seed=0)
    after = model.unet_roles.parameters("policy")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with model.unet_roles.use("policy"):
        assert torch.equal(outputs(model), out)


def test_role_conv_uses_the_weights_of_the_active_role() -> None:
    base = nn.Conv2d(3, 5, 3, stride=2, padding=1).requires_grad_(False)
    active: list[str] = []
    conv = RoleConv(base, active)
    conv.own("policy")
    assert [name for name, p in conv.named_parameters() if p.requires_grad] == [
        "weights.policy",
        "biases.policy",
    ]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        conv.weights["policy"].mul_(2)
        conv.biases["policy"].add_(1)
        assert torch.equal(conv(x), base(x))
        active[:] = ["fake"]  # owns nothing: the base
        assert torch.equal(conv(x), base(x))
        active[:] = ["policy"]
        wanted = nn.functional.conv2d(x, 2 * base.weight, conv.biases["policy"], 2, 1)
        assert torch.equal(conv(x), wanted)


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_merged_equals_unmerged(model: NAOSD, network: str) -> None:
    roles, run = (model.unet_roles, outputs) if network == "unet" else (model.vae_roles, latents)
    base = run(model)
    roles.add("policy", LORA, seed=0, train_full=network == "unet")
    disturb(roles.parameters("policy"), "policy")
    with roles.use("policy"):
        unmerged = run(model)
    tensors = {name: p.detach() for name, p in roles.parameters("policy").items()}
    merged_model = tiny.model()
    merge_adapters(getattr(merged_model, network), tensors, LORA.alpha / LORA.rank)
    merged = run(merged_model)
    assert torch.allclose(merged, unmerged, rtol=1e-5, atol=1e-5)
    assert (merged - base).abs().max() > 1e-2


def adapters(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A good pair on a linear layer of a tiny UNet, with tensors replaced (or left out, for
    None).
    """
    name = "mid_block.attentions.0.proj_in"
    good = {f"{name}.lora_A": torch.zeros(2, 16), f"{name}.lora_B": torch.zeros(16, 2)}
    renamed = {f"{name}.{key}": value for key, value in changes.items()}
    return {key: value for key, value in {**good, **renamed}.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (adapters(lora_B=None), "no layer mid_block.attentions.0.proj_in"),
        (adapters(lora_A=None), r"adapter mid_block.attentions.0.proj_in.lora_B: not a pair"),
        (
            adapters(lora_C=torch.zeros(1)),
            r"adapter mid_block.attentions.0.proj_in.lora_C: not a pair",
        ),
        (
            adapters(lora_A=torch.zeros(3, 16)),
            r"adapter mid_block.attentions.0.proj_in has shapes \(3, 16\), \(16, 2\)",
        ),
        (
            adapters(lora_A=torch.zeros(2, 8)),
            r"adapter mid_block.attentions.0.proj_in has shapes \(2, 8\), \(16, 2\)",
        ),
        (
            adapters(lora_A=torch.zeros(2, 32), lora_B=torch.zeros(8, 2)),
            r"proj_in has shapes \(2, 32\), \(8, 2\)",
        ),
        (
            {"conv_out2.lora_A": torch.zeros(2, 8), "conv_out2.lora_B": torch.zeros(4, 2)},
            "no layer conv_out2",
        ),
        (
            {"conv_norm_out.lora_A": torch.zeros(2, 8), "conv_norm_out.lora_B": torch.zeros(4, 2)},
            "no layer conv_norm_out",
        ),
        (
            {"conv_in.weight": torch.zeros(8, 3, 3, 3)},
            r"no parameter conv_in.weight of shape \(8, 3, 3, 3\)",
        ),
        ({"conv_up.bias": torch.zeros(8)}, "no parameter conv_up.bias"),
    ],
)
def test_a_merge_that_does_not_fit_names_the_module(
    tensors: dict[str, torch.Tensor], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        merge_adapters(tiny.unet(), tensors, 2.0)


def calls(run: Callable[[], object]) -> int:
    """How many Python functions and C functions are called while `run` runs."""
    seen = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


def test_switching_costs_the_same_for_258_modules_as_for_one(monkeypatch: Any) -> None:
    """A role is switched by one assignment to a list that all layers share: no walk, no copy, on
    SD2.1-base's UNet too.
    """

    def switch(roles: Roles) -> None:
        with roles.use("policy"), roles.use(None), roles.use("fake"):
            pass

    monkeypatch.setattr(
        "gdpo.model.adapters.torch.randn",
        lambda shape, generator: torch.empty(shape, device="meta"),
    )
    with torch.device("meta"):
        unet, linear = UNet2DConditionModel(**UNET), nn.ModuleDict({"to_q": nn.Linear(2, 2)})
    found = {}
    for network, targets in ((unet, unet_targets(unet)), (linear, ["to_q"])):
        roles = Roles(network, targets)
        with torch.device("meta"):
            for role in ("policy", "fake"):
                roles.add(role, Lora(), seed=0)
        assert len({id(layer._active_adapter) for layer in roles._layers.values()}) == 1
        found[len(targets)] = calls(lambda roles=roles: switch(roles))
    assert found.keys() == {258, 1}
    assert found[258] == found[1] < 60
