"""Read and check released files: `.pkl` (gdpo/released/pickles.py) and merged folders.

`gdpo.released.convert` writes them as our model folders.

    merged folder   unet/ and vae/ in diffusers layout, as the released test script loads them
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from gdpo.checks import check_path
from gdpo.errors import one_line
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.base import WEIGHTS, check_types
from gdpo.model.checkpoints import Tensors
from gdpo.model.naosd import NAOSD
from gdpo.released.pickles import FULL, Released, read_pickle

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class Merged:
    """The networks of a merged folder, fp32 on the CPU."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"


def load_released_checkpoint(path: str | Path) -> Released | Merged:
    """Read a released `.pkl` (weights only, without executing code) or a merged diffusers folder.

    Errors: ValueError naming the file and its defect: foreign globals, a missing or extra key or
    tensor, a rank other than the stated one, values that are not finite.
    """
    path = check_path("path", path)
    if path.is_dir():
        return _read_merged(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return read_pickle(path)


def _read_merged(folder: Path) -> Merged:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    networks = []
    for kind, file in zip((UNet2DConditionModel, AutoencoderKL), WEIGHTS, strict=True):
        part = (folder / file).parent
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder / file}: no such file; a merged folder has {' and '.join(WEIGHTS)}"
            )
        options: dict[str, Any] = {
            "use_safetensors": True,
            "torch_dtype": torch.float32,
            "local_files_only": True,
        }
        try:
            check_types(part)  # diffusers would cast integers silently
            network, info = kind.from_pretrained(part, output_loading_info=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{part}: cannot be loaded ({one_line(error, first=True)})") from error
        # diffusers would initialise a missing tensor at random and drop an extra one.
        for what in ("missing", "unexpected"):
            if info[f"{what}_keys"]:
                raise ValueError(
                    f"{folder / file}: tensor {min(info[f'{what}_keys'])!r} is {what} "
                    "according to its config.json"
                )
        odd = [
            name
            for name, tensor in network.state_dict().items()
            if not bool(torch.isfinite(tensor).all())
        ]
        if odd:
            raise ValueError(f"{folder / file}: {odd[0]} has values that are NaN or infinite")
        networks.append(network)
    return Merged(*networks)


def check_against(path: Path, content: Released | Merged, model: NAOSD) -> None:
    """Check that the content of `path` fits its base `model`, by names and shapes.

    Errors: ValueError naming the file and the tensor that does not fit.
    """
    networks = {"unet": model.unet, "vae": model.vae}
    if isinstance(content, Merged):
        for name, network in networks.items():
            _same_shapes(path, name, _shapes(getattr(content, name)), _shapes(network))
        return
    targets = {"unet": unet_targets(model.unet), "vae": vae_targets(model.vae)}
    for name, network in networks.items():
        part = {
            k.removeprefix(f"{name}."): v
            for k, v in content.adapters.tensors.items()
            if k.startswith(f"{name}.")
        }
        part |= content.frozen if name == "unet" else {}
        expected = {} if not part else _expected(network, targets[name], part)
        _same_shapes(
            path, name, {key: tuple(tensor.shape) for key, tensor in part.items()}, expected
        )
    for key, tensor in content.frozen.items():
        base = model.unet.get_parameter(key)
        # The tolerance admits a base stored in fp16, but not the conv_in of another training run.
        if float((base - tensor).abs().max()) > 1e-3 * float(base.abs().max()):
            raise ValueError(
                f"{path}: its frozen {key} is not that of this base; name the merged NAOSD that "
                "it was trained on"
            )


def _expected(network: nn.Module, targets: list[str], part: Tensors) -> dict[str, tuple[int, ...]]:
    """Expected shapes of the LoRA tensors of all targets, and of full replacements in `part`.

    The A in `part` gives the rank of a target.
    """
    shapes = {key: tuple(network.get_parameter(key).shape) for key in part if key.endswith(FULL)}
    for module in targets:
        out, *rest = network.get_parameter(f"{module}.weight").shape
        # Released files may have another rank than this project trains; only the sizes of the base
        # are given.
        rank = len(part[f"{module}.lora_A"]) if f"{module}.lora_A" in part else 0
        shapes |= {
            f"{module}.lora_A": (rank, *rest),
            f"{module}.lora_B": (out, rank, *[1] * (len(rest) - 1)),
        }
    return shapes


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _same_shapes(
    path: Path, network: str, released: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]]
) -> None:
    for key in sorted(released.keys() | base.keys()):
        if released.get(key) != base.get(key):
            theirs, ours = (str(shapes.get(key, "absent")) for shapes in (released, base))
            raise ValueError(
                f"{path}: {network} {key} is {theirs}, this base needs {ours}; name the right base"
            )
