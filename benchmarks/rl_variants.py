"""What `benchmarks/rl_step.py` compares: models of two sizes with random weights, and the three
ways to do a step on them.

half       SD2.1-base with every width halved, on images of 128 px; fp32; reward PSNR and NIQE
sd2.1      SD2.1-base on images of 512 px, on a GPU; ours with its base in bf16; reward PSNR, MUSIQ
           and MANIQA
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.released_step import Released
from gdpo.config import Config
from gdpo.cost import architectures
from gdpo.cost.architectures import Networks
from gdpo.data.shards import Box, Pair, enlarge
from gdpo.data.sources import photographs
from gdpo.images import to_tensor
from gdpo.metrics.networks import offline
from gdpo.metrics.score import network
from gdpo.metrics.table import metric
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Group, from_row, schema, to_row
from gdpo.preference.loop import _Run
from gdpo.preference.rollout import rollout
from gdpo.prior.architecture import tiny_tokenizer
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_share

GROUP = 6
VARIANTS = ("released", "online", "cached", "online-lr", "cached-lr")
PHOTOGRAPHS = ("astronaut", "hubble_deep_field", "ihc", "retina")


@dataclass(frozen=True)
class Size:
    """SD2.1-base with its widths divided, on images of `side` pixels. base: type of the frozen
    weights of ours. layers: per block, and of the text encoder; None: SD2.1-base's.
    """

    divisor: int
    side: int
    perception: list[str]
    precision: str
    base: torch.dtype
    device: str
    layers: int | None = None


SIZES = {
    "half": Size(2, 128, ["niqe"], "fp32", torch.float32, "cpu"),
    "sd2.1": Size(1, 512, ["musiq", "maniqa_koniq"], "bf16", torch.bfloat16, "cuda"),
}


def networks(divisor: int, layers: int | None = None) -> Networks:
    """UNet, VAE and text encoder of SD2.1-base with every width divided, as their libraries
    initialise them. layers: as in Size.
    """

    def narrow(config: dict[str, Any], *names: str) -> dict[str, Any]:
        wide = {name: config[name] for name in names}
        return {
            n: tuple(x // divisor for x in w) if isinstance(w, tuple) else w // divisor
            for n, w in wide.items()
        }

    unet = architectures.UNET | narrow(
        architectures.UNET, "block_out_channels", "cross_attention_dim"
    )
    vae = architectures.VAE | narrow(architectures.VAE, "block_out_channels")
    text = architectures.TEXT | narrow(architectures.TEXT, "hidden_size", "intermediate_size")
    for config in (unet, vae):
        config["norm_num_groups"] = math.gcd(32, config["block_out_channels"][0])
    if layers is not None:
        unet["layers_per_block"] = vae["layers_per_block"] = text["num_hidden_layers"] = layers
    return Networks(
        UNet2DConditionModel(**unet),
        AutoencoderKL(**vae),
        CLIPTextModel(CLIPTextConfig(**text)),
        None,
    )


def model(size: Size) -> NAOSD:
    """A NAOSD of that size on its device, in fp32; always the same weights."""
    torch.manual_seed(0)
    parts = networks(size.divisor, size.layers)
    return NAOSD(parts.unet, parts.vae, parts.text_encoder, tiny_tokenizer()).to(size.device)


def configured(
    size: Size, *, batch: int = 1, online: bool = False, own_input: bool = False
) -> Config:
    """The paper's values, our defaults, and the size's reward; own_input: `rollout.input: lr`."""
    own = {"input": "lr", "noise": "shared", "target": "consistent"}
    nowhere = [{"path": "-"}]
    return Config.model_validate(
        {
            "model": {
                "base": "",
                "training_prompt": "clean, high-resolution, 8k",
                "negative_prompt": "blurring, dirty",
            },
            "degrade": {"train": nowhere, "evaluation": nowhere},
            "pretrain": {},
            "select": {},
            "evaluate": {},
            "reward": {"perception": size.perception},
            "rollout": {
                "group": GROUP,
                "metrics": ["psnr_y", *size.perception],
                "precision": size.precision,
                **(own if own_input else {}),
            },
            "finetune": {"batch": batch, "rollouts": "online" if online else "cached"},
        }
    )


def pairs(side: int) -> list[Pair]:
    """Two corners of each photograph, reduced by block means."""
    images = []
    for photo in photographs("scikit-image", "train"):
        if photo.name not in PHOTOGRAPHS:
            continue
        pixels = photo.load()
        down, right = (length - side for length in pixels.shape[:2])
        for name, top, left in (("first", 0, 0), ("last", down, right)):
            hr = np.ascontiguousarray(pixels[top : top + side, left : left + side])
            lr = cv2.resize(hr, (side // 4, side // 4), interpolation=cv2.INTER_AREA)
            share = float(detail_share(to_tensor(hr)[None], PIPELINE_GRAYSCALE)[0])
            drawn, box = {"enlarge": "bicubic"}, Box(top, left, side, side)
            images.append(Pair(f"{photo.name}-{name}", photo.name, box, hr, lr, drawn, share))
    return images


def write_rollouts(size: Size, file: Path) -> None:
    """The rollouts of all pairs, as the stage writes them; those at z_LR beside it (`at_lr`)."""
    base = model(size).to(size.base)
    for path, own_input in ((file, False), (at_lr(file), True)):
        config = configured(size, own_input=own_input)
        groups = [
            group
            for pair in pairs(size.side)
            for group in rollout(base, [pair], config)
            if isinstance(group, Group)
        ]
        described = schema(config.rollout, "")
        pq.write_table(pa.Table.from_pylist([to_row(g) for g in groups], described), path)


def at_lr(file: Path) -> Path:
    """The file of the same groups with `rollout.input: lr`."""
    return file.with_stem(f"{file.stem}-lr")


@dataclass(frozen=True)
class Variant:
    """One way to do the step, ready: step(i) runs it on the i-th image; and what it keeps in memory
    between steps.
    """

    step: Callable[[int], object]
    held: list[nn.Module]
    optimizer: torch.optim.Optimizer

    def static(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state, a shared tensor counted once."""
        tensors = [tensor for part in self.held for tensor in (*part.parameters(), *part.buffers())]
        tensors += [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def prepare(name: str, size: Size, file: Path, batch: int = 1) -> Variant:
    """A variant by its name. file: the rollouts; batch: LR images per step of ours."""
    if name == "released":
        return released(size, pairs(size.side))
    how, _, own_input = name.partition("-")
    if how == "online":
        return ours(size, pairs(size.side), batch, own_input=bool(own_input))
    rows = pq.read_table(at_lr(file) if own_input else file).to_pylist()
    return ours(size, [from_row(row) for row in rows], batch, own_input=bool(own_input))


def released(size: Size, given: list[Pair]) -> Variant:
    """As released; images, and the detail share that its data set computes, are there already."""
    config = configured(size)
    stage = Released(model(size), config.reward, config.finetune, group=GROUP)
    both = [
        [to_tensor(x)[None] for x in (enlarge(p.lr, p.hr.shape[:2], "bicubic"), p.hr)]
        for p in given
    ]
    images = [[x.to(size.device) * 2 - 1 for x in one] for one in both]
    prompts = config.model.training_prompt, config.model.negative_prompt

    def step(i: int) -> float:
        lr, hr = images[i % len(given)]
        return stage.step(lr, hr, given[i % len(given)].detail_share, *prompts)

    return Variant(step, list(stage.held()), stage.optimizer)


def ours(size: Size, source: list[Pair] | list[Group], batch: int, *, own_input: bool) -> Variant:
    """The step of the finetune loop: online from pairs, cached from groups."""
    online = isinstance(source[0], Pair)
    config = configured(size, batch=batch, online=online, own_input=own_input)
    base = model(size).to(size.base)
    run = _Run(base, source, config, False)
    rewards = [
        network(name, size.device)
        for name in config.rollout.metrics
        if online and metric(name).pyiqa
    ]
    return Variant(run.step, [base, *rewards], run.optimizer)


def random_rewards(folder: Path) -> None:
    """MUSIQ and MANIQA with random weights, where the metrics look for theirs from now on."""
    from pyiqa.archs.maniqa_arch import MANIQA
    from pyiqa.archs.musiq_arch import MUSIQ

    os.environ["TORCH_HOME"] = str(folder)
    (folder / "hub/pyiqa").mkdir(parents=True)
    with offline("maniqa_arch"):
        nets = {"musiq": MUSIQ(pretrained=False), "maniqa_koniq": MANIQA(pretrained=False)}
    for name, net in nets.items():
        torch.save(net.state_dict(), folder / "hub" / metric(name).weights[0])
