"""The base model: a diffusers folder, read from safetensors only, checked and hashed.

    unet/  vae/  text_encoder/  tokenizer/  scheduler/

Every file is checked before it is used: noise schedule, types, missing tensors, values that are not
finite.
"""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gdpo.errors import one_line
from gdpo.files import sha256
from gdpo.model.card import read_json
from gdpo.model.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS

FLOATS = ("F16", "BF16", "F32", "F64")  # dtype names in the header of a safetensors file
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")


def base_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet and VAE weights of a diffusers folder, by relative path.

    Errors: ValueError naming a missing file.
    """
    # Adapters change the UNet and the VAE alone, so these two files decide whether they fit.
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
        stated = config.get(key, defaults.get(key))
        if stated != value:
            raise ValueError(
                f"{path}: {key} is {stated!r}, NAOSD needs {value!r} (an SD2.1-base model, not the "
                "768-v one)"
            )


def check_weight(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Reject integers, NaN and infinity, which a damaged or quantised file may hold."""
    if not tensor.is_floating_point():
        raise ValueError(f"{path}: {name} is of type {tensor.dtype}, weights are floating-point")
    # The two ends suffice, since a NaN anywhere makes both NaN. isfinite() would allocate a mask as
    # large as the UNet.
    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor.detach())):
        raise ValueError(f"{path}: {name} has values that are NaN or infinite")


def check_types(folder: Path) -> None:
    """Reject safetensors files with integer weights, which the libraries would cast silently."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                kind = file.get_slice(name).get_dtype()
                # Older CLIP files hold position_ids: whole numbers, but no weights.
                if kind not in FLOATS and not name.endswith("position_ids"):
                    raise ValueError(
                        f"{path.name}: {name} is of type {kind}, weights are floating-point"
                    )


def read_base(folder: Path) -> dict[str, Any]:
    """UNet, VAE, text encoder and tokenizer of a diffusers folder; the networks in fp32 on the CPU.

    Errors: ValueError naming the folder or file, and the tensor if one is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    check_scheduler(folder)
    # These classes cost three CPU seconds, which an import alone or a wrong path need not wait for.
    with _no_collection():
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the stages show their own, and loading is quick
    kinds = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }
    return {
        name: _read_part(folder / name, kind, network=name != "tokenizer")
        for name, kind in kinds.items()
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection inside: of 3000 modules, which stay, it takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_part(folder: Path, kind: Any, *, network: bool) -> Any:
    """One part of a diffusers folder, in fp32, complete and finite.

    Errors: ValueError naming the folder and the tensor.
    """
    try:
        check_types(folder)
        if not network:
            return kind.from_pretrained(folder, local_files_only=True)
        # use_safetensors: where the safetensors file is missing, the libraries would read a pickle
        # instead.
        loaded, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be loaded ({one_line(error, first=True)})") from error
    if info.get("missing_keys"):  # the libraries would initialise them at random
        raise ValueError(f"{folder}: its weights lack {min(info['missing_keys'])}")
    for name, weight in loaded.named_parameters():
        check_weight(folder, name, weight)
    return loaded
