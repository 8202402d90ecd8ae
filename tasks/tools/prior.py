"""Tool `prior`: trains the tiny prior, its NIQE statistics and its NAOSD from photographs.

    photographs    split per folder, ordered by the hash of the file name: 1/7 for choices, 1/7 for
                   evidence, the rest for training
    vae/, unet/    autoencoder, denoiser and decoder, trained by gdpo/prior/train.py
    niqe.mat       statistics of the training photographs
    naosd/         from the stages index, degrade and pretrain: a long training from new adapters
                   (profiles/prior.yaml)
    card.json      data, steps, seconds, held-out figures; README.md beside it is written by hand

Every part keeps its checkpoint in work/prior and is skipped once it is finished, so a killed run
resumes where it stopped.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.images import read_photo
from gdpo.model.checkpoints import read_adapters, save_model
from gdpo.seeds import torch_generator
from gdpo.train.loop import Hooks, Loop, Stateful, Tensors
from tasks.params import load
from tasks.run.recorder import Recorder

EXAMPLE = "gdpo-sr prior photos/ -o assets/tiny-sd"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
AUTOENCODER = {"steps": 7000, "batch": 8, "size": 64, "lr": 1e-3, "kl_weight": 2e-4}
DENOISER = {"steps": 2600, "batch": 16, "lr": 1.5e-3}
DECODER = {"steps": 4000, "batch": 8, "size": 64, "lr": 8e-4, "adversarial": 0.5}
BANK = {"size": 96, "clean": 5000, "bad": 1200}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `gdpo-sr prior`."""
    parser.add_argument(
        "photos", type=Path, help="a folder of photographs (its sub-folders are sets of their own)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("assets/tiny-sd"), help="default: assets/tiny-sd"
    )


def split(folder: Path) -> dict[str, list[Path]]:
    """Split a folder tree's photographs into train, choice and evidence.

    Each folder is split on its own, in the order of the hashes of the file names.
    """
    parts: dict[str, list[Path]] = {"train": [], "choice": [], "evidence": []}
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder}: no photographs here")
    for parent in sorted({path.parent for path in files}):
        ordered = sorted(
            (path for path in files if path.parent == parent),
            key=lambda path: hashlib.sha256(path.name.encode()).hexdigest(),
        )
        share = math.ceil(len(ordered) / 7)
        parts["choice"] += ordered[:share]
        parts["evidence"] += ordered[share : 2 * share]
        parts["train"] += ordered[2 * share :]
    return parts


def main(args: argparse.Namespace) -> int:
    """Train the missing parts and write the folder."""
    from gdpo.metrics.niqe import fit_niqe, write_niqe

    parts = split(args.photos)
    photos = [read_photo(path) for path in parts["train"]]
    held_out = [read_photo(path) for path in parts["choice"]]
    started = time.monotonic()
    if not (args.output / "unet").is_dir():
        _train_prior(photos, args.output)
    write_niqe(args.output / "niqe.mat", fit_niqe(photos))
    _train_naosd(args.output, parts["train"])
    card = {
        "photographs": {name: [path.name for path in paths] for name, paths in parts.items()},
        "autoencoder": AUTOENCODER,
        "denoiser": DENOISER,
        "decoder": DECODER,
        "latent_bank": BANK,
        "seed": 0,
        "seconds": round(time.monotonic() - started),
        "held_out": held_out_figures(args.output, held_out),
    }
    (args.output / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return 0


def _train_prior(photos: list[np.ndarray], output: Path) -> None:
    from gdpo.prior import architecture as tiny
    from gdpo.prior.train import autoencoder_step, denoiser_step, latent_bank

    torch.manual_seed(0)  # the initial weights of diffusers' and transformers' own constructors
    vae = tiny.tiny_autoencoder().to(memory_format=torch.channels_last)
    tokenizer = tiny.tiny_tokenizer()
    unet, text_encoder = tiny.tiny_unet(), tiny.tiny_text_encoder(tokenizer)

    adam = torch.optim.AdamW(
        vae.parameters(), lr=AUTOENCODER["lr"], betas=(0.9, 0.99), weight_decay=1e-4
    )
    _run(
        "autoencoder",
        {"w": Tensors(dict(vae.named_parameters())), "o": adam},
        int(AUTOENCODER["steps"]),
        autoencoder_step(vae, adam, photos, seed=0, **AUTOENCODER),  # type: ignore[arg-type]
    )
    vae.requires_grad_(False)
    bank = latent_bank(vae, photos, seed=0, **BANK)
    scaling = 1 / float(bank[0].std())
    vae.register_to_config(scaling_factor=scaling)
    weights = {
        **dict(unet.named_parameters()),
        **{f"text.{n}": p for n, p in text_encoder.named_parameters()},
    }
    adam = torch.optim.AdamW(
        weights.values(), lr=DENOISER["lr"], betas=(0.9, 0.99), weight_decay=1e-4
    )
    model = load(Path("params.yaml")).model
    prompts = [model.prompt, "", model.negative_prompt]
    ids = tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    scaled = (bank[0] * scaling, bank[1] * scaling)
    _run(
        "denoiser",
        {"w": Tensors(weights), "o": adam},
        int(DENOISER["steps"]),
        denoiser_step(unet, text_encoder, ids, adam, scaled, seed=0, **DENOISER),  # type: ignore[arg-type]
    )
    _sharpen_decoder(vae, photos)
    with written_aside(output) as part:
        part.mkdir()
        for name, network in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
            network.half().save_pretrained(part / name, safe_serialization=True)
        tokenizer.save_pretrained(part / "tokenizer")
        (part / "scheduler").mkdir()
        (part / "scheduler/scheduler_config.json").write_text(
            json.dumps(tiny.SCHEDULER, indent=1) + "\n"
        )


def _sharpen_decoder(vae: AutoencoderKL, photos: list[np.ndarray]) -> None:
    from gdpo.prior.train import PatchDiscriminator, decoder_step

    torch.manual_seed(1)
    judge = PatchDiscriminator()
    decoder = {
        n: p for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))
    }
    for parameter in decoder.values():
        parameter.requires_grad_(True)
    adams = tuple(
        torch.optim.AdamW(parameters, lr=DECODER["lr"], betas=(0.5, 0.99), weight_decay=1e-4)
        for parameters in (decoder.values(), judge.parameters())
    )
    state: dict[str, Stateful] = {
        "decoder": Tensors(decoder),
        "judge": judge,
        "adam": adams[0],
        "adam_judge": adams[1],
    }
    step_fn = decoder_step(vae, judge, adams, photos, seed=0, **DECODER)  # type: ignore[arg-type]
    _run("decoder", state, int(DECODER["steps"]), step_fn)


def _run(
    name: str, state: dict[str, Stateful], steps: int, step_fn: Callable[[int], dict[str, float]]
) -> None:
    """Train one part to its end. Its checkpoint stays, so a finished part is not trained again."""
    folder = Path("work/prior") / name
    with Recorder(folder, name, steps) as recorder:
        loop = Loop(folder, steps, state, f"prior-{name}", 500, Hooks(log=recorder.log))
        loop.run(step_fn)
        loop.save(steps)


def _train_naosd(output: Path, photos: list[Path]) -> None:
    from tasks.stages import degrade, index, pretrain

    root = Path("work/prior/naosd")
    links = root / "photos"
    links.mkdir(parents=True, exist_ok=True)
    for path in photos:
        link = links / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    plain = load(Path("params.yaml"), profile="prior").model_dump()
    plain["model"]["base"] = str(output.resolve())
    plain["degrade"]["train"] = [{"path": str(links.resolve())}]
    config = Config.model_validate(plain)
    if not (root / "data/shards/train").is_dir():
        index.run(config, root, Hooks())
        degrade.run(config, root, Hooks())
    pretrain.run(config, root, Hooks())
    halved = [
        replace(a, tensors={n: t.half() for n, t in a.tensors.items()})
        for a in read_adapters(root / "models/naosd")
    ]
    model = config.model
    save_model(
        output / "naosd",
        output,
        halved,
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )


def held_out_figures(folder: Path, photos: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR-Y and SSIM-Y of the autoencoder on central 192-pixel squares of the photographs."""
    from gdpo.images import to_tensor
    from gdpo.metrics.score import score
    from gdpo.model.checkpoints import load_base

    model = load_base(folder)
    crops = [p[(p.shape[0] - 192) // 2 :, (p.shape[1] - 192) // 2 :][:192, :192] for p in photos]
    x = torch.stack([to_tensor(crop) for crop in crops])
    noise = torch.randn(
        (len(x), *model.latent_shape(192, 192)), generator=torch_generator(0, "card")
    )
    with torch.no_grad():
        y = model.decode(model.encode(x * 2 - 1, noise)) * 0.5 + 0.5
    figures = score(["psnr_y", "ssim_y"], y, x)
    return {f"reconstruction_{name}": float(value.mean()) for name, value in figures.items()}
