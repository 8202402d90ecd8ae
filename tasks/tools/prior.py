"""Train the tiny prior, its NIQE statistics and its NAOSD from photographs: `gdpo-sr prior`.

    photographs    split per folder, ordered by the hash of the file name: 1/10 for choices, the
                   rest for training; those that show a picture of --leave-out are in neither part
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from gdpo.config import Config
from gdpo.data.scan import Finding, examine
from gdpo.data.sources import Photo
from gdpo.files import check_writable, sha256, written_aside
from gdpo.hooks import Hooks
from gdpo.images import read_photo
from gdpo.model.base import base_hashes
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import read_adapters, save_model
from gdpo.model.naosd import NAOSD
from gdpo.seeds import torch_generator
from gdpo.train.loop import Loop, Stateful, Tensors
from gdpo.walk import walk
from tasks import paths
from tasks.params import load
from tasks.run.fingerprint import fingerprint, inputs_of
from tasks.run.recorder import Recorder
from tasks.tools.training_photos import SUFFIXES, link_with_grey_copies

AUTOENCODER: dict[str, Any] = {"steps": 4000, "batch": 8, "size": 64, "lr": 8e-4, "kl_weight": 2e-4}
DENOISER: dict[str, Any] = {"steps": 1200, "batch": 16, "lr": 1.2e-3}
DECODER: dict[str, Any] = {"steps": 1200, "batch": 8, "size": 64, "lr": 6e-4, "adversarial": 0.5}
LIGHT = "light"  # the part of the photographs that is hardly degraded
BANK = {"size": 96, "clean": 5000, "bad": 1200}


def split(folder: Path, leave_out: Sequence[Path] = ()) -> dict[str, list[Path]]:
    """Split a folder tree's photographs into train, choice and left out.

    Each folder is split on its own, in the order of the hashes of the file names. Left out is what
    shows the same picture as a photograph of `leave_out`, by `Finding.is_near_duplicate`, which
    does not recognise cropped copies.
    Errors: ValueError naming a folder without photographs, or a file that cannot be read.
    """
    parts: dict[str, list[Path]] = {"train": [], "choice": [], "left_out": []}
    files = _photographs(folder)
    if apart := [finding for other in leave_out for finding in _findings(_photographs(other))]:
        parts["left_out"] = [
            path
            for path, finding in zip(files, _findings(files), strict=True)
            if any(finding.is_near_duplicate(other) for other in apart)
        ]
    files = [path for path in files if path not in parts["left_out"]]
    for parent in sorted({path.parent for path in files}):
        ordered = sorted(
            (path for path in files if path.parent == parent),
            key=lambda path: hashlib.sha256(path.name.encode()).hexdigest(),
        )
        share = math.ceil(len(ordered) / 10)
        parts["choice"] += ordered[:share]
        parts["train"] += ordered[share:]
    return parts


def _photographs(folder: Path) -> list[Path]:
    files = [path for path in walk(folder).files if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder}: no photographs here")
    return files


def _findings(files: Sequence[Path]) -> list[Finding]:
    """What a scan finds of each file; ValueError naming the first that cannot be read."""
    findings = [examine(Photo(path.name, path), 1) for path in files]
    for finding in findings:
        if finding.reason:
            raise ValueError(finding.detail)
    return findings


def run(args: argparse.Namespace) -> None:
    """Train the missing parts and write the folder; args: of tasks/tools/prior_command.py."""
    from gdpo.metrics.niqe import fit_niqe, write_niqe

    _check_output(args.output)
    parts = split(args.photos, args.leave_out)
    photos = [read_photo(path) for path in parts["train"]]
    held_out = [read_photo(path) for path in parts["choice"]]
    started = time.monotonic()
    if not (args.output / "unet").is_dir():
        _train_prior(photos, args.output, args.start, _inputs(parts["train"], args.start))
    write_niqe(args.output / "niqe.mat", fit_niqe(photos))
    _train_naosd(args.output, parts["train"])
    card = {
        "start": None if args.start is None else base_hashes(args.start),
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


def _check_output(output: Path) -> None:
    """ValueError naming `output` if it holds anything but a prior, whose training may continue."""
    check_writable(output / "unet")
    if not (output / "unet").is_dir() and any(output.iterdir() if output.is_dir() else ()):
        raise ValueError(f"{output}: already exists and is not a prior; choose another --output")


def _inputs(photos: list[Path], start: Path | None) -> str:
    """Everything that the checkpoints depend on (gdpo.items)."""
    model = load(Path("params.yaml")).model
    hashes = [sha256(path) for path in photos]
    before = None if start is None else fingerprint({}, [start])
    prompts = [model.prompt, model.negative_prompt]
    return inputs_of(__name__, {"photographs": hashes, "prompts": prompts, "start": before})


def _train_prior(photos: list[np.ndarray], output: Path, start: Path | None, inputs: str) -> None:
    from gdpo.prior import architecture as tiny
    from gdpo.prior.train import autoencoder_step, denoiser_step, latent_bank

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)  # the initial weights of diffusers' and transformers' own constructors
    vae, tokenizer = tiny.tiny_autoencoder(), tiny.tiny_tokenizer()
    unet, text_encoder = tiny.tiny_unet(), tiny.tiny_text_encoder(tokenizer)
    if start is not None:
        old = NAOSD.from_base(start)
        for network, narrow in ((vae, old.vae), (unet, old.unet), (text_encoder, old.text_encoder)):
            tiny.widen(network, narrow.state_dict())
    vae.to(device, memory_format=torch.channels_last)
    unet.to(device)
    text_encoder.to(device)

    adam = torch.optim.AdamW(
        vae.parameters(), lr=AUTOENCODER["lr"], betas=(0.9, 0.99), weight_decay=1e-4
    )
    _run(
        "autoencoder",
        inputs,
        {"w": Tensors(dict(vae.named_parameters())), "o": adam},
        AUTOENCODER["steps"],
        autoencoder_step(vae, adam, photos, seed=0, **AUTOENCODER),
    )
    vae.requires_grad_(False)
    bank = latent_bank(vae, photos, seed=0, **BANK)
    # As Stable Diffusion's: its noise schedule is made for latents of unit variance.
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
    ).input_ids.to(device)
    scaled = (bank[0] * scaling, bank[1] * scaling)
    _run(
        "denoiser",
        inputs,
        {"w": Tensors(weights), "o": adam},
        DENOISER["steps"],
        denoiser_step(unet, text_encoder, ids, adam, scaled, seed=0, **DENOISER),
    )
    _sharpen_decoder(vae, photos, inputs)
    with written_aside(output) as part:
        part.mkdir()
        for name, network in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
            network.cpu().half().save_pretrained(part / name, safe_serialization=True)
        tokenizer.save_pretrained(part / "tokenizer")
        (part / "scheduler").mkdir()
        (part / "scheduler/scheduler_config.json").write_text(
            json.dumps(tiny.SCHEDULER, indent=1) + "\n"
        )


def _sharpen_decoder(vae: AutoencoderKL, photos: list[np.ndarray], inputs: str) -> None:
    from gdpo.prior.train import PatchDiscriminator, decoder_step

    # For the discriminator's own constructor, whatever was drawn before.
    torch.manual_seed(1)
    judge, betas = PatchDiscriminator().to(vae.device), (0.5, 0.99)
    decoder = {
        n: p for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))
    }
    for parameter in decoder.values():
        parameter.requires_grad_(True)
    adams = (
        torch.optim.AdamW(decoder.values(), lr=DECODER["lr"], betas=betas, weight_decay=1e-4),
        torch.optim.AdamW(judge.parameters(), lr=DECODER["lr"], betas=betas, weight_decay=1e-4),
    )
    state: dict[str, Stateful] = {
        "decoder": Tensors(decoder),
        "judge": judge,
        "adam": adams[0],
        "adam_judge": adams[1],
    }
    step_fn = decoder_step(vae, judge, adams, photos, seed=0, **DECODER)
    _run("decoder", inputs, state, DECODER["steps"], step_fn)


def _run(
    name: str,
    inputs: str,
    state: dict[str, Stateful],
    steps: int,
    step_fn: Callable[[int], dict[str, float]],
) -> None:
    """Train one part to its end. Its checkpoint stays, so a finished part is not trained again."""
    folder = paths.work(Path(), "prior", name)
    with Recorder(folder, name, steps) as recorder:
        loop = Loop(folder, steps, state, inputs, 500, Hooks(log=recorder.log))
        loop.run(step_fn)
        loop.save(steps)


def _train_naosd(output: Path, photos: list[Path]) -> None:
    from tasks.stages import degrade, index, pretrain

    root = paths.work(Path(), "prior", "naosd")
    full, light = _settings(output, root / "photos")
    if not (root / paths.TRAIN).is_dir():
        link_with_grey_copies(root / "photos", photos)
        index.run(full, root, Hooks())
        for part in full.degrade.parts:
            degrade.run(light if part == LIGHT else full, root, Hooks(), part)
    with Recorder(paths.work(root, "log"), "naosd", full.pretrain.steps) as recorder:
        pretrain.run(full, root, Hooks(log=recorder.log))
    halved = [
        replace(a, tensors={n: t.half() for n, t in a.tensors.items()})
        for a in read_adapters(root / paths.NAOSD)
    ]
    model = full.model
    save_model(
        output / "naosd",
        output,
        halved,
        IDENTITIES["naosd"],
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )


def _settings(output: Path, photos: Path) -> tuple[Config, Config]:
    """NAOSD's settings with the released degradation, and with hardly any: a part of the
    photographs shows the model clean pictures that were merely reduced.
    """
    plain = load(Path("params.yaml"), profile="prior").model_dump()
    plain["model"]["base"] = str(output.resolve())
    plain["degrade"]["train"] = [{"path": str(photos.resolve())}]
    plain["degrade"]["parts"] = ["full-0", "full-1", "full-2", LIGHT]
    order = {
        "blur_prob": 0.0,
        "resize_prob": [0.0, 0.0, 1.0],
        "gaussian_noise_prob": 1.0,
        "noise_range": [0.01, 3.0],
        "jpeg_range": [85.0, 100.0],
    }
    light = {**plain["degrade"], "degradation": {"second_prob": 0.0, "final_sinc_prob": 0.0}}
    light["degradation"].update(first=order, second=order)
    return Config.model_validate(plain), Config.model_validate({**plain, "degrade": light})


def held_out_figures(folder: Path, photos: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR-Y and SSIM-Y of the autoencoder on central 192-pixel squares of the photographs."""
    from gdpo.images import to_tensor
    from gdpo.metrics.score import score

    model = NAOSD.from_base(folder)
    crops = [p[(p.shape[0] - 192) // 2 :, (p.shape[1] - 192) // 2 :][:192, :192] for p in photos]
    x = torch.stack([to_tensor(crop) for crop in crops])
    noise = torch.randn(
        (len(x), *model.latent_shape(192, 192)), generator=torch_generator(0, "card")
    )
    with torch.no_grad():
        y = model.decode(model.encode(x * 2 - 1, noise)) * 0.5 + 0.5
    figures = score(["psnr_y", "ssim_y"], y, x)
    return {f"reconstruction_{name}": float(value.mean()) for name, value in figures.items()}
