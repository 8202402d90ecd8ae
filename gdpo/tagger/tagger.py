"""Tag images for their prompts with RAM, with or without DAPE's LoRA.

    image -> 384 x 384, bilinear -> ImageNet's mean and deviation -> RAM -> sigmoid
          -> "grass, sky, tree": the tags above their thresholds, in the order of the list

    # training: RAM on the HR patch (released code)
    Tagger.from_folder("models/tagger", dape=False).tags(hr)
    # inference: RAM + DAPE on the enlarged LR image
    Tagger.from_folder("models/tagger", dape=True).tags(enlarged_lr)

    models/tagger/  tagger.safetensors  dape.safetensors (RAM alone works without it)  tags.json

`import-weights` writes the folder. Images are tagged one at a time, so that tags do not depend on
batching.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from gdpo.checks import check_image
from gdpo.tagger.ram import DAPE_SCALING, SIDE, Layout, Network, Shape, Tensors, build

WEIGHTS, DAPE, TAGS = "tagger.safetensors", "dape.safetensors", "tags.json"
FILES = {WEIGHTS: 848_500_000, DAPE: 2_500_000, TAGS: 100_000}  # approximate bytes of the real ones
COMMAND = "gdpo-sr import-weights ram_swin_large_14m.pth -o {} --dape DAPE.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Tagger:
    """A network with the names and thresholds of its tags."""

    network: Network
    names: list[str]
    thresholds: torch.Tensor

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dape: bool,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Tagger":
        """Load a tagger folder.

        dape: merge DAPE's LoRA; the released code does so at inference, not in training.
        Errors: ValueError naming the file that is missing, damaged, or does not fit the others, and
        the command that makes it.
        """
        folder = Path(folder)
        card = _read_card(folder / TAGS, folder)
        state = _read(folder / WEIGHTS, folder)
        layout = layout_of(folder / WEIGHTS, state)
        if len(card["tags"]) != layout.tags:
            raise ValueError(
                f"{folder / TAGS}: lists {len(card['tags'])} tags, {WEIGHTS} has {layout.tags}; "
                "convert again"
            )
        # After the check of RAM's own shapes, so that a message about the LoRA is about the LoRA.
        if dape:
            lora = _read(folder / DAPE, folder)
            check_shapes(folder / DAPE, lora, layout.lora_shapes())
            merge_dape(state, lora)
        network = build(state).to(device=device, dtype=dtype)
        return cls(network, card["tags"], torch.tensor(card["thresholds"], dtype=torch.float32))

    @torch.no_grad()
    def probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """The probabilities of all tags, (B, tags), float32 on the CPU.

        image: BCHW in [0, 1], of any size.
        Errors: ValueError for a wrong shape or range, or NaN.
        """
        check_image("image", image)
        first = next(self.network.parameters())
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1).to(first.device) for values in (MEAN, STD)
        )
        rows = []
        # One image at a time: the matrix products of a batch round differently, and a probability
        # next to its threshold would then depend on the neighbours.
        for one in image.split(1):
            # Without antialiasing, as torchvision < 0.17 resizes tensors (the released code pins
            # 0.15).
            small = F.interpolate(
                one.float().to(first.device), (SIDE, SIDE), mode="bilinear", align_corners=False
            )
            rows.append(
                # Sigmoid in float32: in bf16 probabilities near 0.7, where the thresholds lie,
                # would be 0.004 apart.
                self.network(((small - mean) / std).to(first.dtype)).float().sigmoid().cpu()
            )
        return torch.cat(rows)

    def tags(self, image: torch.Tensor) -> list[str]:
        """The tags of each image of image_BCHW in [0, 1], joined by ", "; "" if there are none.

        Errors: as `probabilities`.
        """
        # Greater and not equal, as released: a threshold of 1 turns a tag off.
        on = self.probabilities(image) > self.thresholds
        return [", ".join(self.names[i] for i in above.nonzero()[:, 0].tolist()) for above in on]


def merge_dape(state: Tensors, lora: Tensors) -> None:
    """Merge DAPE's LoRA into tensors with released names, in place, in fp32: W + 0.125 B A.

    Of Swin's joint q, k, v it changes q and v only: the first halves of A and B belong to q, the
    second halves to v.
    """
    for name in sorted(lora):
        if not name.endswith(".lora_A"):
            continue
        layer = name.removesuffix(".lora_A")
        a, b = lora[name].float(), lora[f"{layer}.lora_B"].float()
        weight = state[f"{layer}.weight"].float().clone()
        if layer.endswith(".attn.qkv"):
            # Views of `weight`, so the additions below change it in place.
            q, _, v = weight.chunk(3)
            for rows, a_half, b_half in zip((q, v), a.chunk(2), b.chunk(2), strict=True):
                rows += DAPE_SCALING * (b_half @ a_half)
        else:
            weight += DAPE_SCALING * (b @ a)
        state[f"{layer}.weight"] = weight


def layout_of(path: Path, state: Tensors) -> Layout:
    """The layout of tensors with released names, after a check of all names and shapes.

    Errors: ValueError naming the tensor that is missing, extra or of another shape.
    """
    try:
        layout = Layout.of({name: tuple(tensor.shape) for name, tensor in state.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_shapes(path, state, layout.shapes())
    return layout


def check_shapes(path: Path, tensors: Tensors, expected: dict[str, Shape]) -> None:
    """Raise ValueError naming the tensor that is missing, of another shape or rank, or extra."""
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        theirs = tuple(tensors[name].shape)
        if theirs != shape:
            raise ValueError(
                f"{path}: tensor {name!r} has shape {theirs}, the other tensors imply {shape}"
            )
    extra = sorted(tensors.keys() - expected.keys())
    if extra:
        raise ValueError(f"{path}: tensor {extra[0]!r} is extra: this network has no such tensor")


def _read(path: Path, folder: Path) -> Tensors:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `{COMMAND.format(folder)}` makes it")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: unreadable ({error}); `{COMMAND.format(folder)}` writes it again"
        ) from error


def _read_card(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `{COMMAND.format(folder)}` makes a tagger folder")
    try:
        card = json.loads(path.read_text("utf-8"))
        names, thresholds = card["tags"], card["thresholds"]
        whole = len(names) == len(thresholds) and all(isinstance(name, str) for name in names)
        torch.tensor(thresholds, dtype=torch.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a list of tags and thresholds ({error}); make the folder again"
        ) from None
    if not whole:
        raise ValueError(
            f"{path}: lists {len(names)} tags and {len(thresholds)} thresholds; make the folder "
            "again"
        )
    return dict(card)
