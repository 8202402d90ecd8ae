"""Checkpoints of the Lumina-mGPT family (Lumina-mGPT, PURE, RealSR-R1) as a `Trunk`.

    folder/config.json, model.safetensors or shards with model.safetensors.index.json
    names         transformers' own; `model.vqmodel.*`, if there, is the encoder: left out
    q/k norms     (model-parallel shards, head dimension) -> (heads, head dimension), rows repeated
    vocabulary    a smaller one grows: new embeddings around the mean of the present ones, new rows
                  of the output 0 (Lumina-mGPT starts the rows of image ids at 0)

Nothing is downloaded. Tested on fabricated checkpoints in this layout; no test machine has the real
files. Weights of this family come under Meta's Chameleon licence.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import ChameleonConfig

from gdpo.seeds import torch_generator
from gdpo.vlcot.llamagen import check_state
from gdpo.vlcot.trunk import Trunk

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
POSITIONS = 11_776  # of RealSR-R1's cold start; Chameleon's own 4096 hold no chain
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # one row per id
_IGNORED = (
    *("dropout", "mask_image_logits"),  # of the fork's training
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
)


def load_released(
    folder: Path, *, vocabulary: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> Trunk:
    """The trunk of a released folder.

    vocabulary: the number of ids; None: the checkpoint's. Errors: ValueError naming the file, and
    the tensor or key that is missing, surplus or of another shape.
    """
    config = read_config(folder)
    own = config.vocab_size
    if vocabulary is not None and vocabulary < own:
        raise ValueError(f"{folder}: has {own} ids, more than the {vocabulary} asked for")
    config.vocab_size = vocabulary or own
    config.max_position_embeddings = max(config.max_position_embeddings, POSITIONS)
    with torch.device("meta"):
        trunk = Trunk(config)
    state = {
        name: tensor.to(dtype)
        for name, tensor in _tensors(folder).items()
        if not name.startswith("model.vqmodel.")
    }
    for name, tensor in state.items():
        if "_norm." in name and name in trunk.state_dict():
            state[name] = _expanded(folder, name, tensor, trunk.state_dict()[name].shape[0])
    for name in TABLES:
        if name in state and len(state[name]) < config.vocab_size:
            state[name] = _grown(state[name], name, config.vocab_size)
    check_state(folder, state, trunk)
    trunk.load_state_dict(state, assign=True)
    # Not in the checkpoint: it was made on the meta device as well.
    trunk.model.rotary_emb = type(trunk.model.rotary_emb)(config)
    return trunk.eval()


def read_config(folder: Path) -> ChameleonConfig:
    """The configuration of a released folder, without the encoder's keys.

    Errors: ValueError naming the file if it is missing or not a Chameleon's.
    """
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError:
        raise ValueError(f"{path}: no such file; give the folder of a checkpoint") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if raw.get("model_type") != "chameleon":
        raise ValueError(f"{path}: model_type is {raw.get('model_type')!r}, must be 'chameleon'")
    # Newer keys of transformers, which older files lack, come from its defaults.
    kept = {name: value for name, value in raw.items() if name not in (*_IGNORED, "vq_config")}
    theta = kept.pop("rope_theta", None)
    kept.pop("rope_scaling", None)
    if theta is not None:
        # transformers 5 reads the base of the rotary embedding here only; the old key would be
        # ignored and 10,000 taken.
        kept["rope_parameters"] = {"rope_type": "default", "rope_theta": float(theta)}
    # Names of all ids, 1.7 MB; only the mapping's presence is needed.
    return ChameleonConfig(**{**kept, "vocabulary_map": {}})


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, from one file or from shards."""
    index = folder / INDEX
    names = [SINGLE]
    if index.is_file():
        try:
            placed = json.loads(index.read_text("utf-8"))["weight_map"]
            names = sorted({str(name) for name in placed.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error})") from None
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        # The index comes from outside: "../x" must not be read.
        if Path(name).name != name:
            raise ValueError(f"{index}: names a shard outside its folder ({name!r})")
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError:
            raise ValueError(
                f"{folder / name}: no such file; the checkpoint is not whole"
            ) from None
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name}: unreadable ({error})") from None
    return tensors


def _expanded(folder: Path, name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """A norm's rows, one per model-parallel shard, repeated for the heads of the shard."""
    rows = len(tensor)
    if tensor.ndim != 2 or heads % rows:
        raise ValueError(
            f"{folder}: {name} has shape {tuple(tensor.shape)}; its rows must divide {heads} heads"
        )
    return tensor.repeat_interleave(heads // rows, dim=0)


def _grown(tensor: torch.Tensor, name: str, ids: int) -> torch.Tensor:
    """A table with rows for new ids: outputs 0, embeddings near the mean of the others."""
    more = torch.zeros(ids - len(tensor), tensor.shape[1], dtype=tensor.dtype)
    if name != "lm_head.weight":
        present = tensor.float()
        drawn = torch.randn(more.shape, generator=torch_generator("vocabulary", name))
        # A tenth of the spread: the new ids differ, and none is far from what the layers know.
        more = (present.mean(0) + 0.1 * present.std(0) * drawn).to(tensor.dtype)
    return torch.cat([tensor, more])
