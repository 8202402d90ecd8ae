"""Convert the released files of RAM and DAPE to the small folder that `gdpo.tagger.tagger` reads.

    released   ram_swin_large_14m.pth        {"model": ..., "optimizer": ..., ...}, 5.6 GB; "model"
                                             has 469 M parameters and buffers
               DAPE.pth                      {name: tensor}, only LoRA of loralib
               ram_tag_list.txt,             from RAM's repository, in no checkpoint; one line per
               ram_tag_list_threshold.txt    tag
    ours       tagger.safetensors            the 212.1 M parameters that tagging reads, with
                                             released names, fp32: 0.85 GB
               dape.safetensors              the LoRA on them, 0.6 M parameters
               tags.json                     names and thresholds

The weights stay in fp32, the precision of the released inference: rounding to fp16 would change
tags close to their thresholds. The checkpoint is memory-mapped, so only the tensors that are kept
are loaded into memory.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.interpolate import RectBivariateSpline

from gdpo.files import check_writable, written_aside
from gdpo.released.pickles import is_weight, unpickle
from gdpo.tagger.ram import ATTENTION, BIAS_ROWS, DAPE_RANK, HEAD, Layout, Tensors
from gdpo.tagger.tagger import DAPE, TAGS, WEIGHTS, check_shapes, layout_of

TAG_LIST, THRESHOLD_LIST = "ram_tag_list.txt", "ram_tag_list_threshold.txt"
LISTS_FROM = "ram/data of the repository xinyu1205/recognize-anything has it"
IDLE = ("tag_encoder.", "text_decoder.")  # they generate sentences; tagging never runs them
# DROPPED buffers are recomputed. RAM's code deletes the DELETED parts of the head, and the head's
# self-attention.
DROPPED = ("relative_position_index", "attn_mask")
DELETED = ("tagging_head.embeddings.", "tagging_head.pooler.")


def kind(path: Path) -> Literal["ram", "dape"] | None:
    """Whether the keys of a `.pth` or `.pkl` are those of RAM or DAPE; None for other files.

    Errors: ValueError naming the file if it cannot be read.
    """

    def names_swin(state: Any) -> bool:
        return isinstance(state, dict) and any(
            str(name).startswith("visual_encoder.") for name in state
        )

    content = unpickle(path)
    return "ram" if names_swin(content.get("model")) else "dape" if names_swin(content) else None


def import_tagger(
    source: Path,
    target: Path,
    *,
    dape: Path | None = None,
    tags: Path | None = None,
    thresholds: Path | None = None,
) -> tuple[str, ...]:
    """Write the tagger folder `target` from RAM's checkpoint `source`; return notes for the user.

    dape: DAPE.pth; without it the folder can tag HR images only. tags, thresholds: the two lists;
    default: the files with the released names in the folder of `source`.
    Errors: ValueError naming the file and its defect; nothing is then left at `target`.
    """
    if target.exists():
        raise ValueError(f"{target}: already exists; remove it or choose another --output")
    check_writable(target)
    state, layout = read_ram(source)
    lora: Tensors = {}
    notes: tuple[str, ...] = ("without DAPE this folder tags HR images only; inference needs it",)
    if dape is not None:
        lora, notes = read_dape(dape, layout)
    card = {
        "format": 1,
        "tags": _read_tags(tags or source.with_name(TAG_LIST), layout.tags),
        "thresholds": _read_thresholds(thresholds or source.with_name(THRESHOLD_LIST), layout.tags),
    }
    with written_aside(target) as part:
        part.mkdir()
        save_file(state, part / WEIGHTS)
        if lora:
            save_file(lora, part / DAPE)
        (part / TAGS).write_text(json.dumps(card, indent=0, ensure_ascii=False) + "\n", "utf-8")
    return notes


def read_ram(path: Path) -> tuple[Tensors, Layout]:
    """(tensors, layout) of the tagging path in RAM's checkpoint.

    Tensors have released names, fp32, and bias tables for window 12.
    Errors: ValueError naming the file and the key: foreign globals, or a tensor that is missing,
    extra, of another shape or not finite.
    """
    content = unpickle(path).get("model")
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: key 'model' is missing; the released checkpoint is a dict with the state "
            "under it"
        )
    state: Tensors = {}
    for key, tensor in content.items():
        # RAM's loader renames older checkpoints so.
        name = str(key).replace("vision_multi.", "tagging_head.", 1)
        attention = name.startswith(HEAD) and name.split(".")[4:5] == ["attention"]
        if name.startswith((*IDLE, *DELETED)) or name.endswith(DROPPED) or attention:
            continue
        if name in state:
            raise ValueError(
                f"{path}: has both {key!r} and another tensor that is renamed to {name!r}"
            )
        # The first time the tensor is read: before, it is a view of the mapped file.
        state[name] = _checked(path, str(key), tensor)
        if name.endswith(".relative_position_bias_table"):
            state[name] = interpolate_bias(path, name, state[name])
    return state, layout_of(path, state)


def interpolate_bias(path: Path, name: str, table: torch.Tensor) -> torch.Tensor:
    """Interpolate a relative position bias table ((2w - 1)^2, heads) of window w to window 12.

    As in RAM's loader (BEiT's method), a cubic spline passes through the known positions, which are
    spaced geometrically from the centre so that the outermost coincide with the new outermost.
    Errors: ValueError naming the file and a tensor of another shape.
    """
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    if side**2 != table.shape[0] or side % 2 == 0:
        raise ValueError(
            f"{path}: tensor {name!r} has shape {tuple(table.shape)}, no square of an odd number "
            "of rows"
        )
    if len(table) == BIAS_ROWS:
        return table
    new = math.isqrt(BIAS_ROWS)
    known = _geometric(side, new)
    wanted = np.arange(-(new // 2), new // 2 + 1, dtype=np.float64)
    columns = []
    for column in table.double().numpy().T:
        spline = RectBivariateSpline(
            # A spline of degree k needs k + 1 points, which the smallest windows do not have.
            known,
            known,
            column.reshape(side, side),
            kx=min(3, side - 1),
            ky=min(3, side - 1),
        )
        columns.append(spline(wanted, wanted).reshape(-1))
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _geometric(side: int, new: int) -> NDArray[np.float64]:
    """`side` positions around 0 with steps 1, q, q^2, ...

    Bisection chooses q such that the last position is near new // 2.
    """
    # The bounds and the end of the bisection are those of RAM's loader; its result is not exact,
    # and neither is ours.
    half, low, high, q = side // 2, 1.01, 1.5, 1.01
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**half) / (1 - q) > new // 2 else (q, high)
    right = np.cumsum(q ** np.arange(half))
    return np.concatenate([-right[::-1], [0.0], right])


def read_dape(path: Path, layout: Layout) -> tuple[Tensors, tuple[str, ...]]:
    """(tensors, notes): DAPE's LoRA on the tagging path, in released names.

    Errors: ValueError naming the file and the key.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lora: Tensors = {}
    idle: Tensors = {}
    for key, tensor in unpickle(path).items():
        if ".lora_" not in str(key):
            raise ValueError(
                f"{path}: key {str(key)!r} is extra; DAPE's file holds LoRA only, and no dict "
                "around it"
            )
        # DAPE's file also adapts the parts that write sentences; those layers are not in the tagger
        # at all.
        (idle if str(key).startswith(IDLE) else lora)[str(key)] = _checked(path, str(key), tensor)
    for name, tensor in lora.items():
        _check_rank(path, name, tensor)
    check_shapes(path, lora, layout.lora_shapes())
    return lora, _idle_notes(idle, layout)


def _check_rank(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError for a wrong rank, which is clearer than an error about shapes.

    A is (rank, in) and B is (out, rank); A of Swin's joint q, k, v has twice the rank.
    """
    rank = tensor.shape[1 if name.endswith(".lora_B") else 0] if tensor.ndim == 2 else 0
    if name.endswith(".attn.qkv.lora_A"):
        rank //= 2
    if rank != DAPE_RANK:
        raise ValueError(f"{path}: {name!r} has rank {rank}, DAPE's is {DAPE_RANK}")


def _idle_notes(idle: Tensors, layout: Layout) -> tuple[str, ...]:
    """A note if the omitted LoRA of the tag encoder is not zero in layers shared with the head.

    RAM ties the head's layers to the lowest layers of the tag encoder, so in the released code such
    a LoRA would change the head.
    """
    tied = [
        name
        for name in idle
        if name.startswith(
            tuple(f"tag_encoder.encoder.layer.{i}.{ATTENTION}." for i in range(layout.layers))
        )
        if name.endswith(".lora_B") and bool(idle[name].any())
    ]
    if not tied:
        return ()
    return (
        f"left out {min(tied)}, which is not zero: in the release it would act on the tagging "
        "head too (tied weights)",
    )


def _checked(path: Path, key: str, tensor: object) -> torch.Tensor:
    """The tensor in fp32, contiguous.

    Errors: ValueError naming the key unless it is a finite floating-point tensor.
    """
    if not is_weight(tensor):
        raise ValueError(f"{path}: {key!r} is not a tensor of floating-point numbers")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{path}: {key!r} has values that are NaN or infinite")
    return tensor.detach().float().contiguous()


def _lines(path: Path, count: int) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {LISTS_FROM}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    if len(lines) != count:
        raise ValueError(f"{path}: has {len(lines)} lines, the checkpoint has {count} tags")
    return lines


def _read_tags(path: Path, count: int) -> list[str]:
    names = [line.strip() for line in _lines(path, count)]
    if "" in names:
        raise ValueError(f"{path}: line {names.index('') + 1} is empty; every tag needs a name")
    return names


def _read_thresholds(path: Path, count: int) -> list[float]:
    values = []
    for number, line in enumerate(_lines(path, count), start=1):
        try:
            values.append(float(line))
        except ValueError:
            values.append(math.nan)
        if not 0 <= values[-1] <= 1:
            raise ValueError(f"{path}: line {number} is {line!r}, not a probability")
    return values
