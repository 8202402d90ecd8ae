"""Parameters and multiply-accumulates (MACs) of inference and of one training step.

    count        runs networks on the meta device and adds up the multiplications of each operator
    linear       convolutions and matrix products with weights
    attention    products of activations with each other
    published    Table 4 of the paper: 1.77 B parameters and "2.27 T FLOPs". The latter are MACs
                 without attention and apparently without the tagger's layers that carry DAPE's
                 LoRA: with them our sum is 1.3 % higher, without them it is equal. (A counter by
                 layer class does not know the classes of loralib.)

    gdpo-sr cost --model sd2.1 --size 512 [--step rl]

A training step is a table with one row per part and one column per implementation; its entries are
calls per LR image. tests/gdpo/cost/test_count.py counts the calls of our columns in the code.
Legend: G candidates per LR image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gdpo.config import Lora
from gdpo.cost.architectures import RAM_NEVER_RUN, Networks, reward_networks
from gdpo.model.adapters import Roles, unet_targets, vae_targets
from gdpo.tagger.ram import PATCH, RAM, SIDE

PUBLISHED_PARAMETERS, PUBLISHED_MACS = 1.77e9, 2.27e12
RELEASED, ONLINE, CACHED = "as released", "ours, online", "ours, cached"
ONLINE_LR, CACHED_LR = "online, lr", "cached, lr"  # with rollout.input: lr
TOKENS = 77
LEAST_REWARD_SIDE = 224  # MANIQA scores crops of this side


@dataclass(frozen=True)
class Macs:
    """MACs of convolutions and linear layers (linear), and of products inside attention."""

    linear: int
    attention: int = 0

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class Component:
    """One network of inference: the number of its parameters, and its MACs for one image."""

    name: str
    parameters: int
    macs: Macs


@dataclass(frozen=True)
class Part:
    """One row of a training step: MACs of one call, and calls per LR image by column."""

    name: str
    macs: Macs
    calls: dict[str, int]


def count(run: Callable[[], Any]) -> Macs:
    """MACs of all that `run` computes on the meta device, including backward passes."""
    with FlopCounterMode(display=False) as counter:
        run()
    linear = attention = 0
    for operator, flops in counter.get_flop_counts()["Global"].items():
        # By operator and not by layer: fused attention and its backward pass are operators of their
        # own.
        if "bmm" in str(operator) or "attention" in str(operator):
            # The counter counts a multiplication and an addition as two operations; a MAC is both.
            attention += flops // 2
        else:
            linear += flops // 2
    return Macs(linear, attention)


def parameters(*networks: nn.Module) -> int:
    """Number of parameters of some networks; a shared parameter counts once."""
    # A ModuleList, because its parameters() counts what two networks share once.
    return sum(parameter.numel() for parameter in nn.ModuleList(networks).parameters())


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _inputs(networks: Networks, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(image, latent, prompt) of one image of `size` x `size` pixels."""
    factor = 2 ** (len(networks.vae.config.block_out_channels) - 1)
    multiple = factor * 2 ** (len(networks.unet.config.block_out_channels) - 1)
    if size < 1 or size % multiple:
        raise ValueError(
            f"--size must be a positive multiple of {multiple} for this model, got {size}"
        )
    latent = _meta(1, networks.vae.config.latent_channels, size // factor, size // factor)
    return (
        _meta(1, 3, size, size),
        latent,
        _meta(1, TOKENS, networks.unet.config.cross_attention_dim),
    )


@torch.no_grad()
def forward_macs(networks: Networks, size: int) -> dict[str, Macs]:
    """MACs of one forward pass of each network for one image of `size` x `size` pixels.

    Keys: tagger (0 MACs without a tagger), text, encoder, unet, decoder.
    Errors: ValueError when the networks cannot halve the size often enough.
    """
    image, latent, prompt = _inputs(networks, size)
    tagger = networks.tagger
    return {
        "tagger": Macs(0) if tagger is None else count(lambda: tagger(_meta(1, 3, SIDE, SIDE))),
        "text": count(
            lambda: networks.text_encoder(torch.zeros(1, TOKENS, dtype=torch.long, device="meta"))
        ),
        "encoder": count(lambda: networks.vae.encode(image)),
        "unet": count(lambda: networks.unet(latent, 100, prompt)),
        "decoder": count(lambda: networks.vae.decode(latent)),
    }


def inference(networks: Networks, size: int) -> list[Component]:
    """The components of one super-resolution, in the order in which they run.

    The last one holds RAM's parameters that tagging never uses. Errors: as in `forward_macs`.
    """
    macs = forward_macs(networks, size)
    vae, tagger = networks.vae, networks.tagger
    components = [
        Component("text encoder", parameters(networks.text_encoder), macs["text"]),
        Component("VAE encoder", parameters(vae.encoder, vae.quant_conv), macs["encoder"]),
        Component("UNet", parameters(networks.unet), macs["unet"]),
        Component("VAE decoder", parameters(vae.decoder, vae.post_quant_conv), macs["decoder"]),
    ]
    if tagger is None:
        return components
    used = parameters(tagger) + sum(math.prod(shape) for shape in RAM.lora_shapes().values())
    idle = Component("RAM, never run", RAM_NEVER_RUN, Macs(0))
    return [Component("tagger (RAM, DAPE)", used, macs["tagger"]), *components, idle]


@torch.no_grad()
def dape_macs(networks: Networks) -> int:
    """MACs of the tagger's layers with DAPE's LoRA; the published figure seems to omit them.

    In the released code they are loralib's: Swin's joint q, k and v, and the head's q and k.
    """
    tagger = networks.tagger
    assert tagger is not None
    # The projections of torch's attention are no modules: a query per tag, a key per token.
    tokens = (SIDE // (PATCH * 2 ** (len(RAM.depths) - 1))) ** 2 + 1
    macs = [RAM.layers * RAM.hidden * (RAM.tags * RAM.hidden + tokens * RAM.width)]

    def note(layer: nn.Linear, _: Any, out: torch.Tensor) -> None:
        macs.append(out.numel() * layer.in_features)

    joint = (".q_proj", ".k_proj", ".v_proj")
    layers = [layer for name, layer in tagger.swin.named_modules() if name.endswith(joint)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    tagger(_meta(1, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return sum(macs)


def training_macs(networks: Networks, size: int, *, whole: bool) -> dict[str, Macs]:
    """MACs of the passes with gradient, for one image, with rank-4 adapters.

    whole: as in pretraining, the gradient passes through the UNet's input into the adapters of the
    VAE encoder, and the result has the VAE's passes too. Otherwise only the UNet's forward and
    backward. Side effect: the networks keep their adapters.
    """
    image, latent, prompt = _inputs(networks, size)
    unet, vae = networks.unet, networks.vae.requires_grad_(False)
    _adapt(unet, unet_targets(unet), full="conv_in" if whole else None)
    start = latent.clone().requires_grad_(whole)
    out: list[torch.Tensor] = []
    macs = {
        "unet forward": count(lambda: out.append(unet(start, 100, prompt).sample.sum())),
        "unet backward": count(lambda: out[0].backward()),
    }
    if whole:
        end = latent.clone().requires_grad_()
        macs["decoder"] = count(lambda: vae.decode(end).sample.sum().backward())
        _adapt(vae, vae_targets(vae), full=None)
        macs["encoder"] = count(lambda: vae.encode(image).latent_dist.mean.sum().backward())
    return macs


def _adapt(network: nn.Module, targets: list[str], full: str | None) -> None:
    roles = Roles(network, targets, full=full)
    roles.add("policy", Lora(), seed=0, train_full=full is not None)
    roles.active.append("policy")
    network.to("meta")


@torch.no_grad()
def reward_macs(size: int) -> dict[str, Macs]:
    """MUSIQ and MANIQA (20 crops) of one image of `size` x `size` pixels."""
    image, macs = _meta(1, 3, size, size), {}
    for name, network in reward_networks().items():
        macs[name] = count(partial(network, image))
    return macs


def rl_step(networks: Networks, size: int, group: int = 6) -> list[Part]:
    """One GDPO step per LR image with the paper's reward: MUSIQ, MANIQA and PSNR (0 MACs).

    Columns: "as released", all computations within the step; "ours, online", our rollout and
    finetune stages together, without a cache; "ours, cached", our finetune stage, which reads the
    rollouts; and both with `rollout.input: lr`, where the candidates share their input. group: G.
    Errors: ValueError for a size that is too small or that the networks cannot halve.
    """
    if size < LEAST_REWARD_SIDE:
        raise ValueError(
            f"--size must be at least {LEAST_REWARD_SIDE} for --step rl: MANIQA scores crops of "
            "that side"
        )
    one = forward_macs(networks, size)
    reward = reward_macs(size)
    lora = training_macs(networks, size, whole=False)
    g = group
    rows = [
        ("tags of the HR image, twice", one["tagger"], 2, 0, 0, 0, 0),
        ("text encoder", one["text"], 1 + 2 * g, 3, 1, 3, 1),
        ("LR image, VAE encoder", one["encoder"], 1, 1, 0, 1, 0),
        ("candidates, UNet", one["unet"], g, g, 0, g, 0),
        ("candidates, VAE decoder", one["decoder"], g, g, 0, g, 0),
        *((f"reward, {name}", macs, g, g, 0, g, 0) for name, macs in reward.items()),
        ("candidates again, VAE encoder", one["encoder"], g, g, 0, 0, 0),
        ("reference, UNet", one["unet"], g, g, 0, 1, 0),
        ("reference, VAE decoder, unused", one["decoder"], g, 0, 0, 0, 0),
        ("policy, UNet forward", lora["unet forward"], g, g, g, 1, 1),
        ("policy, UNet backward", lora["unet backward"], g, g, g, 1, 1),
        ("policy, VAE decoder, unused", one["decoder"], g, 0, 0, 0, 0),
    ]
    columns = (RELEASED, ONLINE, CACHED, ONLINE_LR, CACHED_LR)
    return [Part(name, macs, dict(zip(columns, calls, strict=True))) for name, macs, *calls in rows]


def pretrain_step(networks: Networks, size: int) -> list[Part]:
    """One NAOSD pretraining step per image.

    The losses are pixel, LPIPS-VGG (convolutions of VGG16) and VSD with guidance.
    Errors: ValueError as in `forward_macs`.
    """
    one, lora = forward_macs(networks, size), training_macs(networks, size, whole=True)
    vgg = _vgg()
    with torch.no_grad():
        seen = count(lambda: vgg(_meta(1, 3, size, size)))
    learned = count(lambda: vgg(_meta(1, 3, size, size).requires_grad_()).sum().backward())
    rows = [
        ("tags of the HR image, twice", one["tagger"], 2, 0),
        ("text encoder", one["text"], 2, 1),
        ("LR image, VAE encoder, both ways", lora["encoder"], 1, 1),
        ("generator, UNet forward", lora["unet forward"], 1, 1),
        ("generator, UNet backward", lora["unet backward"], 1, 1),
        ("VAE decoder, both ways", lora["decoder"], 1, 1),
        ("LPIPS of the HR image", seen, 1, 1),
        ("LPIPS of the result, both ways", learned, 1, 1),
        ("VSD, fake score", lora["unet forward"], 1, 1),
        ("VSD, real score with guidance", one["unet"], 2, 2),
        ("fake score's own step, forward", lora["unet forward"], 1, 1),
        ("fake score's own step, backward", lora["unet backward"], 1, 1),
    ]
    return [
        Part(name, macs, {RELEASED: released, "ours": ours}) for name, macs, released, ours in rows
    ]


def _vgg() -> nn.Module:
    from torchvision.models import vgg16

    with torch.device("meta"):
        return vgg16().features[:30].requires_grad_(False)
