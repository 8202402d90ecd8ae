"""Read a released `.pkl` without executing its content, and check all that needs no base model.

    NAOSD .pkl      a dict: module lists, rank_unet, rank_vae, state_dict_unet, state_dict_vae
    OSEDiff .pkl    the same with one VAE adapter, that of the encoder; the decoder list contains
                    the UNet's `conv_out`
    GDPO .pkl       only the part of the UNet; its base is the merged NAOSD, whose frozen `conv_in`
                    the file repeats

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

from gdpo.config import Lora
from gdpo.errors import one_line
from gdpo.model.checkpoints import Adapters, Tensors

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


def read_pickle(path: Path) -> Released:
    """The content of a released `.pkl`. Errors: as `load_released_checkpoint`."""
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
        raise ValueError(
            f"{path}: not a file that torch.save wrote ({one_line(error, first=True)})"
        ) from error
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
        # type() and not isinstance(): True is an int for the latter.
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
                    f"tensor {min(map(str, odd))!r} is {kind} state_dict_{name} "
                    "according to the module lists"
                )
        for key, tensor in state.items():
            self._check(f"state_dict_{name}[{key!r}]", tensor)
            own = _rank(names[key], tensor)
            if own not in (None, rank):
                self.fail(f"state_dict_{name}[{key!r}] has rank {own}, and rank_{name} is {rank}")
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
                # Read twice, the module's second adapter would silently replace its first.
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
    # B alone decides: A is random at the start of a training, B zero.
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
