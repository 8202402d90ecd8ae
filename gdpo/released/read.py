"""Read and check the released files without executing their content.

`gdpo.released.convert` writes them as our model folders.

    NAOSD .pkl      a dict: module lists, rank_unet, rank_vae, state_dict_unet, state_dict_vae
    OSEDiff .pkl    the same with one VAE adapter, that of the encoder; the decoder list contains
                    the UNet's `conv_out`
    GDPO .pkl       only the part of the UNet; its base is the merged NAOSD, whose frozen `conv_in`
                    the file repeats
    merged folder   unet/ and vae/ in diffusers layout, as the released test script loads them

    released name   `<module>.lora_A.<adapter>.weight`, three adapters: encoder, decoder, others
    our name        `unet.<module>.lora_A`, one set of adapters

NAOSD's files also hold an adapter of the VAE decoder. The released forward pass never activates
that adapter, and the released merge omits it. It is therefore omitted here too, whatever its
values; a note tells whether they are zero.
"""

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard
from zipfile import is_zipfile

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn

from gdpo.checks import check_path
from gdpo.config import Lora
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.checkpoints import WEIGHTS, Adapters, Tensors, check_types
from gdpo.model.naosd import NAOSD

ALPHA = 8  # peft's default, which the released code uses at every rank: scaling 8 / rank
FULL = ("weight", "bias")  # parameters of the UNet's conv_in, trained in full
# key that lists modules -> adapter that holds them
UNET = {
    "unet_lora_encoder_modules": "default_encoder",
    "unet_lora_decoder_modules": "default_decoder",
    "unet_lora_others_modules": "default_others",
}
VAE = {"vae_lora_encoder_modules": "default_encoder"}
INACTIVE = {
    "vae_lora_decoder_modules": "default_decoder",
    "vae_lora_others_modules": "default_others",
}
GDPO_KEYS = {*UNET, "rank_unet", "state_dict_unet"}
OSEDIFF_KEYS = GDPO_KEYS | {*VAE, "rank_vae", "state_dict_vae"}
LAYOUTS = {"gdpo": GDPO_KEYS, "osediff": OSEDIFF_KEYS, "naosd": OSEDIFF_KEYS | {*INACTIVE}}


@dataclass(frozen=True)
class Released:
    """The content of a released `.pkl`.

    adapters: named "naosd", "gdpo" or "osediff". frozen: the `conv_in` that a GDPO file repeats,
    otherwise empty. notes: for the user.
    """

    adapters: Adapters
    frozen: Tensors
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """The networks of a merged folder, fp32 on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL


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
    return _File(path, unpickle(path)).read()


def unpickle(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, read weights-only.

    Tensors are memory-mapped if the format of the file allows it.
    Errors: ValueError naming the file, and the foreign global if there is one.
    """
    try:
        with warnings.catch_warnings():
            # Warnings about unusual pickle protocols, which are rejected below or harmless.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it names the global {name[1]}" if name else "it is no pickle of tensors and lists"
        raise ValueError(
            f"{path}: refused, {why}; only tensors, numbers, strings and lists are read"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a file that torch.save wrote ({why})") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds a {type(content).__name__}, not the dict of a released checkpoint"
        )
    return content


def is_weight(tensor: object) -> TypeGuard[torch.Tensor]:
    """Whether `tensor` is a dense fp16, bf16, fp32 or fp64 tensor with data (not a meta tensor)."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class _File:
    """The dict in a `.pkl`, with every check that needs no base model."""

    path: Path
    content: dict[str, Any]

    def fail(self, why: str) -> NoReturn:
        raise ValueError(f"{self.path}: {why}")

    def read(self) -> Released:
        kind = self._kind()
        unet, rank = self._network("unet", UNET, {f"conv_in.base_layer.{part}" for part in FULL})
        full = {f"conv_in.{part}": unet.pop(f"conv_in.base_layer.{part}") for part in FULL}
        tensors = {f"unet.{name}": tensor for name, tensor in unet.items()}
        notes = []
        if kind != "gdpo":
            tensors |= {f"unet.{name}": tensor for name, tensor in full.items()}
            lists = VAE | INACTIVE if kind == "naosd" else VAE
            vae, vae_rank = self._network("vae", lists, set())
            active = {name for key in VAE for name in self.content[key]}
            left_out = {
                name: tensor
                for name, tensor in vae.items()
                if name.rpartition(".")[0] not in active
            }
            if left_out:
                notes.append(_left_out(left_out))
            # All adapters of a file have one scaling, so the B of a VAE adapter of another rank is
            # multiplied by the ratio.
            for name in vae.keys() - left_out.keys():
                tensors[f"vae.{name}"] = vae[name] * (
                    rank / vae_rank if name.endswith(".lora_B") else 1
                )
        adapters = Adapters(kind, tensors, Lora(rank=rank, alpha=ALPHA))
        return Released(adapters, full if kind == "gdpo" else {}, tuple(notes))

    def _kind(self) -> str:
        kind = min(LAYOUTS, key=lambda name: len(LAYOUTS[name] ^ self.content.keys()))
        missing, extra = LAYOUTS[kind] - self.content.keys(), self.content.keys() - LAYOUTS[kind]
        if missing or extra:
            what = (
                f"key {min(missing)!r} is missing"
                if missing
                else f"key {min(map(str, extra))!r} is extra"
            )
            self.fail(f"{what}; nearest to the released layout of {kind.upper()}")
        return kind

    def _network(self, name: str, lists: dict[str, str], also: set[str]) -> tuple[Tensors, int]:
        """(tensors, rank) of one network, in fp32: `<module>.lora_A|lora_B` and those in `also`."""
        rank, state = self.content[f"rank_{name}"], self.content[f"state_dict_{name}"]
        if type(rank) is not int or rank < 1:
            self.fail(f"rank_{name} is {rank!r}, not a positive whole number")
        if not isinstance(state, dict):
            self.fail(f"state_dict_{name} is a {type(state).__name__}, not a dict")
        names = {name: name for name in also} | self._names(lists)
        for kind, odd in (
            ("missing from", names.keys() - state.keys()),
            ("extra in", state.keys() - names.keys()),
        ):
            if odd:
                self.fail(
                    f"tensor {min(map(str, odd))!r} is {kind} state_dict_{name}, going by the "
                    "module lists"
                )
        for key, tensor in state.items():
            self._check(f"state_dict_{name}[{key!r}]", tensor)
            found = _rank(names[key], tensor)
            if found not in (None, rank):
                self.fail(f"state_dict_{name}[{key!r}] has rank {found}, and rank_{name} is {rank}")
        return {names[key]: tensor.detach().float() for key, tensor in state.items()}, rank

    def _names(self, lists: dict[str, str]) -> dict[str, str]:
        """Released tensor name -> our name, from the module lists."""
        names: dict[str, str] = {}
        for key, adapter in lists.items():
            modules = self.content[key]
            if not isinstance(modules, list) or not all(
                isinstance(module, str) for module in modules
            ):
                self.fail(f"{key} is not a list of module names")
            for module in modules:
                if f"{module}.lora_A" in names.values():
                    self.fail(f"{key} lists {module}, which is listed before")
                names |= {
                    f"{module}.lora_{side}.{adapter}.weight": f"{module}.lora_{side}"
                    for side in "AB"
                }
        return names

    def _check(self, name: str, tensor: object) -> None:
        if not is_weight(tensor):
            self.fail(f"{name} is not a tensor of floating-point numbers")
        if not bool(torch.isfinite(tensor).all()):
            self.fail(f"{name} has values that are NaN or infinite")


def _rank(name: str, tensor: torch.Tensor) -> int | None:
    """The rank given by the shape of A (rank, in, ...) or B (out, rank, ...); None for others."""
    axis = {"lora_A": 0, "lora_B": 1}.get(name.rpartition(".")[2])
    return None if axis is None else tensor.shape[axis] if tensor.ndim > 1 else 0


def _left_out(tensors: Tensors) -> str:
    zero = not any(
        bool(tensor.any()) for name, tensor in tensors.items() if name.endswith(".lora_B")
    )
    values = (
        "B is zero, so nothing is lost"
        if zero
        else "although its B is not zero: trained with --use_vae_decode_lora?"
    )
    return (
        f"left out {len(tensors) // 2} modules of the VAE decoder's adapter, which the release "
        f"never activates ({values})"
    )


def _read_merged(folder: Path) -> Merged:
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
            raise ValueError(f"{part}: cannot be loaded ({str(error).splitlines()[0]})") from error
        # diffusers would initialise a missing tensor at random and drop an extra one.
        for what in ("missing", "unexpected"):
            if info[f"{what}_keys"]:
                raise ValueError(
                    f"{folder / file}: tensor {min(info[f'{what}_keys'])!r} is {what}, going by "
                    "its config.json"
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


def check_against(path: Path, found: Released | Merged, model: NAOSD) -> None:
    """Check that the content of `path` fits its base `model`, by names and shapes.

    Errors: ValueError naming the file and the tensor that does not fit.
    """
    networks = {"unet": model.unet, "vae": model.vae}
    if isinstance(found, Merged):
        for name, network in networks.items():
            _same_shapes(path, name, _shapes(getattr(found, name)), _shapes(network))
        return
    targets = {"unet": unet_targets(model.unet), "vae": vae_targets(model.vae)}
    for name, network in networks.items():
        part = {
            k.removeprefix(f"{name}."): v
            for k, v in found.adapters.tensors.items()
            if k.startswith(f"{name}.")
        }
        part |= found.frozen if name == "unet" else {}
        expected = {} if not part else _expected(network, targets[name], part)
        _same_shapes(
            path, name, {key: tuple(tensor.shape) for key, tensor in part.items()}, expected
        )
    for key, tensor in found.frozen.items():
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
        rank = len(part[f"{module}.lora_A"]) if f"{module}.lora_A" in part else 0
        shapes |= {
            f"{module}.lora_A": (rank, *rest),
            f"{module}.lora_B": (out, rank, *[1] * (len(rest) - 1)),
        }
    return shapes


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _same_shapes(
    path: Path, network: str, found: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]]
) -> None:
    for key in sorted(found.keys() | base.keys()):
        if found.get(key) != base.get(key):
            theirs, ours = (str(shapes.get(key, "absent")) for shapes in (found, base))
            raise ValueError(
                f"{path}: {network} {key} is {theirs}, this base needs {ours}; name the right base"
            )
