"""Model folders: a diffusers folder, or `model.json` with adapters over one.

    models/naosd/  model.json  naosd.safetensors                       base + NAOSD adapters
    models/gdpo/   model.json  naosd.safetensors  gdpo.safetensors     ... + GDPO adapters

Adapters are merged in order, in fp32. Weights are read as safetensors only; every file is checked against the base model,
whose own weights are named by their SHA-256, so adapters cannot land on another model unnoticed.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from gdpo.config import Lora
from gdpo.model.adapters import merge_adapters
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS
from gdpo.training import written_aside

disable_progress_bar()  # the stages have their own, and loading takes no time worth one

Tensors = dict[str, torch.Tensor]
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Adapters:
    """One adapter file: name, tensors `unet.<module>.lora_A|lora_B|weight|bias` and `vae....`, and its LoRA settings."""

    name: str
    tensors: Tensors
    lora: Lora

    def merge_into(self, model: NAOSD) -> None:
        """Merge into the plain weights of `model` (no roles added yet). Errors: as `merge_adapters`."""
        stray = [name for name in self.tensors if not name.startswith(("unet.", "vae."))]
        if stray:
            raise ValueError(f"adapter {stray[0]} belongs to neither the UNet nor the VAE")
        for prefix, network in (("unet.", model.unet), ("vae.", model.vae)):
            part = {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}
            merge_adapters(network, part, self.lora.alpha / self.lora.rank)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet and VAE weights of a diffusers folder, by relative path."""
    missing = [name for name in WEIGHTS if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder / missing[0]}: no such file; model.base must be a diffusers folder with safetensors")
    return {name: sha256(folder / name) for name in WEIGHTS}


def check_scheduler(folder: Path) -> None:
    """Refuse a base whose schedule is not SD2.1-base's: other betas, v-prediction, or clipped samples."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = _read_json(path)
    expected = {
        "prediction_type": "epsilon", "clip_sample": False, "beta_schedule": "scaled_linear", "beta_start": BETA_START,
        "beta_end": BETA_END, "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    }  # fmt: skip
    # diffusers' own defaults hold for a key that is absent, and its default clips.
    defaults = {"prediction_type": "epsilon", "clip_sample": True, "num_train_timesteps": 1000}
    for key, value in expected.items():
        found = config.get(key, defaults.get(key))
        if found != value:
            raise ValueError(f"{path}: {key} is {found!r}, NAOSD needs {value!r} (an SD2.1-base model, not the 768-v one)")


def _read_json(path: Path, *needed: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    missing = [key for key in needed if not isinstance(found, dict) or key not in found]
    if missing or not isinstance(found, dict):
        raise ValueError(f"{path}: {missing[0] if missing else 'a mapping'} is missing; fetch or make it again")
    return found


def load_base(folder: Path) -> NAOSD:
    """The NAOSD around a diffusers folder (unet, vae, text_encoder, tokenizer, scheduler), fp32 on the CPU, no adapters."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    check_scheduler(folder)
    kinds = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        network = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
        options = {} if name == "tokenizer" else network
        try:
            loaded = kind.from_pretrained(folder / name, local_files_only=True, **options)
            parts[name], info = loaded if options else (loaded, {})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder / name}: cannot be loaded ({str(error).splitlines()[0]})") from error
        if info.get("missing_keys"):  # the libraries would fill them with random numbers
            raise ValueError(f"{folder / name}: its weights lack {min(info['missing_keys'])}")
    return NAOSD(parts["unet"], parts["vae"], parts["text_encoder"], parts["tokenizer"])


def read_adapters(folder: Path) -> list[Adapters]:
    """The adapters of a model folder of ours, in merging order."""
    card = _read_json(folder / "model.json", "adapters")
    found = []
    for entry in card["adapters"]:
        path = folder / entry["file"]
        if path.parent != folder:
            raise ValueError(f"{folder / 'model.json'}: adapter file {entry['file']!r} is not inside the folder")
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: unreadable adapters ({error}); fetch or train the model again") from error
        found.append(Adapters(path.stem, tensors, Lora(rank=entry["rank"], alpha=entry["alpha"])))
    return found


def load_model(folder: Path, base: Path | None = None) -> NAOSD:
    """A model folder of ours, with every adapter merged, or a plain diffusers folder; fp32 on the CPU.

    Errors: ValueError naming the file when something is missing, unreadable, or made for another base model.
    """
    path = folder / "model.json"
    if not path.exists():
        return load_base(folder)
    card = _read_json(path, "base", "base_sha256", "t_add", "t_diff", "prompt")
    base = base or Path(os.path.normpath(folder / card["base"]))
    if not base.is_dir():
        raise ValueError(f"{path}: its base model {base} is not there; pass base=, or put the folder back")
    if base_hashes(base) != card["base_sha256"]:
        raise ValueError(f"{path}: made for another base model than {base} (SHA-256 differs)")
    model = load_base(base)
    for adapters in read_adapters(folder):
        adapters.merge_into(model)
    model.t_add, model.t_diff, model.prompt = card["t_add"], card["t_diff"], card["prompt"]
    return model


def save_model(folder: Path, base: Path, adapters: list[Adapters], *, t_add: int, t_diff: int, prompt: str) -> None:
    """Write a model folder of ours, aside and then renamed; `base` is remembered relative to the folder."""
    card = {
        "format": 1,
        "base": os.path.relpath(base, folder),
        "base_sha256": base_hashes(base),
        "t_add": t_add,
        "t_diff": t_diff,
        "prompt": prompt,
        "adapters": [{"file": f"{a.name}.safetensors", "rank": a.lora.rank, "alpha": a.lora.alpha} for a in adapters],
    }
    with written_aside(folder) as part:
        part.mkdir()
        for a in adapters:
            tensors = {name: a.tensors[name].detach().cpu().contiguous() for name in sorted(a.tensors)}
            save_file(tensors, part / f"{a.name}.safetensors")
        (part / "model.json").write_text(json.dumps(card, indent=1) + "\n")
