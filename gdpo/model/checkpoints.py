"""Our model folders: `model.json` with adapters on top of a base model.

    models/naosd/  model.json  naosd.safetensors                       base + NAOSD adapters
    models/gdpo/   model.json  naosd.safetensors  gdpo.safetensors     ... + GDPO adapters

A folder is read once: its card, the base's hashes, every adapter file. Adapters are merged in
order, in fp32 (`NAOSD.merge`). model.json has the SHA-256 of the base's weights, so adapters cannot
be merged into another base, and that of each adapter file, so a damaged one is refused.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gdpo.config import Lora
from gdpo.files import sha256, written_aside
from gdpo.model.base import base_hashes, check_weight
from gdpo.model.card import NAME, AdapterFile, Card, Identity, base_of, read_card

Tensors = dict[str, torch.Tensor]
Hashes = dict[str, str]  # SHA-256 of the base's weights by relative path


@dataclass(frozen=True)
class Adapters:
    """One adapter file.

    name: file name without suffix. tensors: `unet.<module>.lora_A|lora_B|weight|bias`, and likewise
    `vae....`. lora: rank and alpha.
    """

    name: str
    tensors: Tensors
    lora: Lora

    @property
    def scaling(self) -> float:
        """The factor of B A: alpha / rank."""
        return self.lora.alpha / self.lora.rank

    def parts(self) -> dict[str, Tensors]:
        """The tensors of `unet` and of `vae`, without these prefixes.

        Errors: ValueError naming a tensor of neither.
        """
        stray = [name for name in self.tensors if not name.startswith(("unet.", "vae."))]
        if stray:
            raise ValueError(f"adapter {stray[0]} belongs to neither the UNet nor the VAE")
        return {
            part: {
                name.removeprefix(f"{part}."): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(f"{part}.")
            }
            for part in ("unet", "vae")
        }


@dataclass(frozen=True)
class ModelFolder:
    """One of our model folders, read and checked: its card, its base's folder, its adapters."""

    path: Path
    card: Card
    base: Path
    adapters: list[Adapters]

    def check_complete(self, targets: dict[str, list[str]]) -> None:
        """Reject adapters that lack some of a network's layers, `targets` by network.

        Without this check those layers would silently keep the weights of the base.
        """
        for adapters in self.adapters:
            for network, modules in targets.items():
                present = {name for name in adapters.tensors if name.startswith(f"{network}.")}
                if not present and network == "vae":  # GDPO trains the UNet alone
                    continue
                wanted = {f"{network}.{module}.lora_{side}" for module in modules for side in "AB"}
                # Weight and bias of conv_in are trained together. With one of them alone, the other
                # would stay the base's.
                if network == "unet" and present & {"unet.conv_in.weight", "unet.conv_in.bias"}:
                    wanted |= {"unet.conv_in.weight", "unet.conv_in.bias"}
                if wanted - present:
                    raise ValueError(
                        f"{self.path / adapters.name}.safetensors: tensor "
                        f"{min(wanted - present)!r} is missing; fetch or train the model again"
                    )


def read_folder(
    folder: Path, base: Path | None = None, hashes: Callable[[Path], Hashes] = base_hashes
) -> ModelFolder:
    """One of our model folders, checked against its base.

    base: replaces the base model that model.json names. hashes: gives the hashes of a base, for
    callers that know them already.
    Errors: ValueError naming the file that is missing, unreadable, or made for another base model.
    """
    return open_folder(folder, read_card(folder), base, hashes)


def open_folder(
    folder: Path,
    card: Card,
    base: Path | None = None,
    hashes: Callable[[Path], Hashes] = base_hashes,
) -> ModelFolder:
    """As `read_folder`, of a folder whose card is already read."""
    path = folder / NAME
    base = base or base_of(folder, card)
    if not base.is_dir():
        raise ValueError(
            f"{path}: its base model {base} does not exist; give its folder by --base (base=)"
        )
    # Adapters are differences to one set of weights. On another fine-tune of SD they load without
    # an error and give plausible, wrong images.
    if hashes(base) != card.base_sha256:
        raise ValueError(f"{path}: trained on another base model than {base} (SHA-256 differs)")
    return ModelFolder(folder, card, base, _read_all(folder, card))


def read_adapters(folder: Path) -> list[Adapters]:
    """The adapters of one of our model folders, in merging order, whatever their base.

    Errors: ValueError naming the file and the tensor.
    """
    return _read_all(folder, read_card(folder))


def _read_all(folder: Path, card: Card) -> list[Adapters]:
    chain = []
    for entry in card.adapters:
        path = folder / entry.file
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path}: unreadable adapters ({error}); fetch or train the model again"
            ) from error
        for name, tensor in tensors.items():
            check_weight(path, name, tensor)
            # The card states the UNet's rank. VAE adapters may have another rank; their B then
            # includes the ratio of the two scalings.
            ranked = name.startswith("unet.") and name.endswith(".lora_A") and tensor.ndim
            rank = tensor.shape[0] if ranked else entry.rank
            if rank != entry.rank:
                raise ValueError(f"{path}: {name} has rank {rank}, and {NAME} says {entry.rank}")
        # After the other checks, because "rank 8 instead of 4" tells a person more than a hash that
        # differs.
        entry.check(folder)
        chain.append(Adapters(path.stem, tensors, Lora(rank=entry.rank, alpha=entry.alpha)))
    return chain


def save_model(
    folder: Path,
    base: Path,
    adapters: list[Adapters],
    identity: Identity,
    *,
    base_sha256: Hashes | None = None,
    t_add: int | None,
    t_diff: int,
    prompt: str,
) -> None:
    """Write a model folder: first under a temporary name, which is then renamed to `folder`.

    The card stores `base` relative to the folder. base_sha256: the hashes of the base that the
    adapters were trained on; None: the files are hashed here.
    """
    hashes = base_sha256 or base_hashes(base)
    with written_aside(folder) as part:
        part.mkdir()
        entries = [_save_adapters(part, a) for a in adapters]
        Card(
            kind="naosd",
            label=identity.label,
            role=identity.role,
            format=1,
            # Relative, so that clones in other places and copies in a bucket find their base.
            base=os.path.relpath(base, folder),
            base_sha256=hashes,
            t_add=t_add,
            t_diff=t_diff,
            prompt=prompt,
            adapters=entries,
        ).write(part)


def _save_adapters(folder: Path, adapters: Adapters) -> AdapterFile:
    """Write one adapter file; returns its entry in the card."""
    path = folder / f"{adapters.name}.safetensors"
    tensors = {
        name: adapters.tensors[name].detach().cpu().contiguous()
        # Sorted, so that equal adapters are equal bytes: DVC and the cards compare hashes.
        for name in sorted(adapters.tensors)
    }
    save_file(tensors, path)
    lora = adapters.lora
    return AdapterFile(file=path.name, rank=lora.rank, alpha=lora.alpha, sha256=sha256(path))
