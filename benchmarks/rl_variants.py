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
from gdpo.rewards.detail import detail_share

GROUP = 6
VARIANTS = ("released", "online", "cached")
PHOTOGRAPHS = ("astronaut", "hubble_deep_field", "ihc", "retina")


@dataclass(frozen=True)
class Size:
    """SD2.1-base with its widths divided, on images of `side` pixels. base: type of the frozen
    weights of ours.
    """

    divisor: int
    side: int
    perception: list[str]
    precision: str
    base: torch.dtype
    device: str


SIZES = {
    "half": Size(2, 128, ["niqe"], "fp32", torch.float32, "cpu"),
    "sd2.1": Size(1, 512, ["musiq", "maniqa_koniq"], "bf16", torch.bfloat16, "cuda"),
}


def networks(divisor: int) -> Networks:
    """UNet, VAE and text encoder of SD2.1-base with every width divided, as their libraries
    initialise them.
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
    return Networks(
        UNet2DConditionModel(**unet),
        AutoencoderKL(**vae),
        CLIPTextModel(CLIPTextConfig(**text)),
        None,
    )


def model(size: Size) -> NAOSD:
    """A NAOSD of that size on its device, in fp32; always the same weights."""
    torch.manual_seed(0)
    found = networks(size.divisor)
    return NAOSD(found.unet, found.vae, found.text_encoder, tiny_tokenizer()).to(size.device)


def configured(size: Size, *, batch: int = 1, online: bool = False) -> Config:
    """The defaults, which are the paper's, with the size's reward."""
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
            },
            "finetune": {"batch": batch, "rollouts": "online" if online else "cached"},
        }
    )


def pairs(side: int) -> list[Pair]:
    """Two corners of each photograph, reduced by block means."""
    found = []
    for photo in photographs("scikit-image", "train"):
        if photo.name not in PHOTOGRAPHS:
            continue
        pixels = photo.load()
        down, right = (length - side for length in pixels.shape[:2])
        for name, top, left in (("first", 0, 0), ("last", down, right)):
            hr = np.ascontiguousarray(pixels[top : top + side, left : left + side])
            lr = cv2.resize(hr, (side // 4, side // 4), interpolation=cv2.INTER_AREA)
            box = Box(top, left, side, side)
            found.append(
                Pair(f"{photo.name}-{name}", photo.name, box, hr, lr, {"enlarge": "bicubic"}, 0.5)
            )
    return found


def write_rollouts(size: Size, file: Path) -> None:
    """The rollouts of all pairs, as the stage writes them."""
    config, base = configured(size), model(size).to(size.base)
    groups = [
        group
        for pair in pairs(size.side)
        for group in rollout(base, [pair], config)
        if isinstance(group, Group)
    ]
    pq.write_table(
        pa.Table.from_pylist([to_row(group) for group in groups], schema(config.rollout, "")), file
    )


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
    if name == "online":
        return ours(size, pairs(size.side), batch)
    return ours(size, [from_row(row) for row in pq.read_table(file).to_pylist()], batch)


def released(size: Size, given: list[Pair]) -> Variant:
    """As released; images, and the detail share that its data set computes, are there already."""
    config = configured(size)
    stage = Released(model(size), config.reward, config.finetune, group=GROUP)
    both = [
        [to_tensor(x)[None] for x in (enlarge(p.lr, p.hr.shape[:2], "bicubic"), p.hr)]
        for p in given
    ]
    shares = detail_share(torch.cat([hr for _, hr in both]), "released").tolist()
    images = [[x.to(size.device) * 2 - 1 for x in one] for one in both]
    prompts = config.model.training_prompt, config.model.negative_prompt

    def step(i: int) -> float:
        lr, hr = images[i % len(given)]
        return stage.step(lr, hr, shares[i % len(given)], *prompts)

    return Variant(step, list(stage.held()), stage.optimizer)


def ours(size: Size, source: list[Pair] | list[Group], batch: int) -> Variant:
    """The step of the finetune loop: online from pairs, cached from groups."""
    online = isinstance(source[0], Pair)
    config, base = configured(size, batch=batch, online=online), model(size).to(size.base)
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
        found = {"musiq": MUSIQ(pretrained=False), "maniqa_koniq": MANIQA(pretrained=False)}
    for name, net in found.items():
        torch.save(net.state_dict(), folder / "hub" / metric(name).weights[0])
