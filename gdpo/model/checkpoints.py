"""Model folders: a diffusers folder, or `model.json` with adapters on top of one.

    models/naosd/  model.json  naosd.safetensors                       base + NAOSD adapters
    models/gdpo/   model.json  naosd.safetensors  gdpo.safetensors     ... + GDPO adapters

Adapters are merged in order, in fp32. Weights are read from safetensors only, and every file is
checked against the base model. model.json has the SHA-256 of the base's weights, so adapters cannot
be merged into another base.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from gdpo.config import Lora
from gdpo.files import written_aside
from gdpo.model.adapters import merge_adapters
from gdpo.model.card import NAME, Card, Entry, base_of, read_card, read_json
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS

disable_progress_bar()  # the stages show their own, and loading is quick

Tensors = dict[str, torch.Tensor]
FLOATS = ("F16", "BF16", "F32", "F64")  # dtype names in the header of a safetensors file
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Adapters:
    """One adapter file.

    name: file name without suffix. tensors: `unet.<module>.lora_A|lora_B|weight|bias`, and likewise
    `vae....`. lora: rank and alpha.
    """

    name: str
    tensors: Tensors
    lora: Lora

    def merge_into(self, model: NAOSD) -> None:
        """Merge the adapters into the plain weights of `model`, which must not have roles yet.

        Errors: as `merge_adapters`.
        """
        stray = [name for name in self.tensors if not name.startswith(("unet.", "vae."))]
        if stray:
            raise ValueError(f"adapter {stray[0]} belongs to neither the UNet nor the VAE")
        for prefix, network in (("unet.", model.unet), ("vae.", model.vae)):
            part = {
                name.removeprefix(prefix): value
                for name, value in self.tensors.items()
                if name.startswith(prefix)
            }
            merge_adapters(network, part, self.lora.alpha / self.lora.rank)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet and VAE weights of a diffusers folder, by relative path.

    Errors: ValueError naming a missing file.
    """
    missing = [name for name in WEIGHTS if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder / missing[0]}: no such file; model.base must be a diffusers folder with "
            "safetensors"
        )
    return {name: sha256(folder / name) for name in WEIGHTS}


def check_scheduler(folder: Path) -> None:
    """Reject a base whose noise schedule is not that of SD2.1-base.

    Errors: ValueError for other betas, v-prediction or clipped samples.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    expected = {
        "prediction_type": "epsilon",
        "clip_sample": False,
        "beta_schedule": "scaled_linear",
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
    }
    # An absent key has the default of diffusers, which clips samples.
    defaults = {
        "prediction_type": "epsilon",
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "rescale_betas_zero_snr": False,
    }
    for key, value in expected.items():
        found = config.get(key, defaults.get(key))
        if found != value:
            raise ValueError(
                f"{path}: {key} is {found!r}, NAOSD needs {value!r} (an SD2.1-base model, not the "
                "768-v one)"
            )


def _check_weight(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Reject integers, NaN and infinity, which a damaged or quantised file may hold."""
    if not tensor.is_floating_point():
        raise ValueError(f"{path}: {name} is of type {tensor.dtype}, weights are floating-point")
    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor.detach())):
        raise ValueError(f"{path}: {name} has values that are NaN or infinite")


def check_types(folder: Path) -> None:
    """Reject safetensors files with integer weights, which the libraries would cast silently."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                kind = file.get_slice(name).get_dtype()
                if kind not in FLOATS and not name.endswith("position_ids"):
                    raise ValueError(
                        f"{path.name}: {name} is of type {kind}, weights are floating-point"
                    )


def load_base(folder: Path) -> NAOSD:
    """NAOSD built from a diffusers folder, without adapters, fp32 on the CPU.

    The folder holds unet, vae, text_encoder, tokenizer and scheduler.
    Errors: ValueError naming the folder or file, and the tensor if one is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    check_scheduler(folder)
    kinds = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }
    parts = {
        name: _load_part(folder / name, kind, network=name != "tokenizer")
        for name, kind in kinds.items()
    }
    return NAOSD(parts["unet"], parts["vae"], parts["text_encoder"], parts["tokenizer"])


def _load_part(folder: Path, kind: Any, *, network: bool) -> Any:
    """One part of a diffusers folder, in fp32, complete and finite.

    Errors: ValueError naming the folder and the tensor.
    """
    try:
        check_types(folder)
        if not network:
            return kind.from_pretrained(folder, local_files_only=True)
        loaded, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    if info.get("missing_keys"):  # the libraries would initialise them at random
        raise ValueError(f"{folder}: its weights lack {min(info['missing_keys'])}")
    for name, weight in loaded.named_parameters():
        _check_weight(folder, name, weight)
    return loaded


def read_adapters(folder: Path) -> list[Adapters]:
    """The adapters of one of our model folders, in merging order.

    Errors: ValueError naming the file and the tensor.
    """
    found = []
    for entry in read_card(folder).adapters:
        path = folder / entry.file
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path}: unreadable adapters ({error}); fetch or train the model again"
            ) from error
        for name, tensor in tensors.items():
            _check_weight(path, name, tensor)
            # The card states the UNet's rank. VAE adapters may have another rank; their B then
            # includes the ratio of the two scalings.
            ranked = name.startswith("unet.") and name.endswith(".lora_A") and tensor.ndim
            rank = tensor.shape[0] if ranked else entry.rank
            if rank != entry.rank:
                raise ValueError(f"{path}: {name} has rank {rank}, and {NAME} says {entry.rank}")
        found.append(Adapters(path.stem, tensors, Lora(rank=entry.rank, alpha=entry.alpha)))
    return found


def load_model(folder: Path, base: Path | None = None) -> NAOSD:
    """NAOSD from one of our model folders, all adapters merged, or from a plain diffusers folder.

    The model is in fp32 on the CPU. base: replaces the base model that model.json names.
    Errors: ValueError naming the file that is missing, unreadable, or made for another base model.
    """
    if not (folder / NAME).exists():
        return load_base(folder)
    card, path = read_card(folder), folder / NAME
    base = base or base_of(folder)
    if not base.is_dir():
        raise ValueError(
            f"{path}: its base model {base} is not there; pass base=, or put the folder back"
        )
    if base_hashes(base) != card.base_sha256:
        raise ValueError(f"{path}: made for another base model than {base} (SHA-256 differs)")
    model = load_base(base)
    for adapters in read_adapters(folder):
        _check_complete(folder / f"{adapters.name}.safetensors", adapters, model)
        adapters.merge_into(model)
    model.t_add, model.t_diff, model.prompt = card.t_add, card.t_diff, card.prompt
    return model


def _check_complete(path: Path, adapters: Adapters, model: NAOSD) -> None:
    """Reject adapters that lack some of a network's layers.

    Without this check those layers would silently keep the weights of the base.
    """
    for network, roles in (("unet", model.unet_roles), ("vae", model.vae_roles)):
        there = {name for name in adapters.tensors if name.startswith(f"{network}.")}
        if not there and network == "vae":  # GDPO trains the UNet alone
            continue
        wanted = {f"{network}.{module}.lora_{side}" for module in roles.targets for side in "AB"}
        if network == "unet" and there & {"unet.conv_in.weight", "unet.conv_in.bias"}:
            wanted |= {"unet.conv_in.weight", "unet.conv_in.bias"}
        if wanted - there:
            raise ValueError(
                f"{path}: tensor {min(wanted - there)!r} is missing; fetch or train the model again"
            )


def save_model(
    folder: Path,
    base: Path,
    adapters: list[Adapters],
    *,
    t_add: int | None,
    t_diff: int,
    prompt: str,
) -> None:
    """Write a model folder: first under a temporary name, which is then renamed to `folder`.

    The card stores `base` relative to the folder.
    """
    entries = [
        Entry(file=f"{a.name}.safetensors", rank=a.lora.rank, alpha=a.lora.alpha) for a in adapters
    ]
    card = Card(
        format=1,
        base=os.path.relpath(base, folder),
        base_sha256=base_hashes(base),
        t_add=t_add,
        t_diff=t_diff,
        prompt=prompt,
        adapters=entries,
    )
    with written_aside(folder) as part:
        part.mkdir()
        for a in adapters:
            tensors = {
                name: a.tensors[name].detach().cpu().contiguous() for name in sorted(a.tensors)
            }
            save_file(tensors, part / f"{a.name}.safetensors")
        card.write(part)
