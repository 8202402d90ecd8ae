"""Fabricated checkpoints of the Lumina-mGPT layout: names, norms, vocabulary, and errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import ChameleonConfig

from gdpo.vlcot.released import INDEX, load_released
from gdpo.vlcot.trunk import Trunk, fresh, tiny_config

WIDTH, HEADS, IDS = 16, 4, 40
CONFIG: dict[str, Any] = {
    # As in Lumina-mGPT's config.json: older keys, and two that transformers does not have.
    "architectures": ["ChameleonForConditionalGeneration"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dropout": 0.05,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "mask_image_logits": False,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_parallel_size": 2,
    "model_type": "chameleon",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "swin_norm": False,
    "torch_dtype": "bfloat16",
    "vocab_size": IDS,
    "vocabulary_map": {"<image>": 8711},
    "vq_config": {
        "model_type": "chameleon_vqgan",
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "n_embed": 8192,
    },
}


def trunk() -> Trunk:
    config = tiny_config(IDS, width=WIDTH, layers=2, heads=HEADS, positions=64)
    config.intermediate_size = 24
    return fresh(config, seed=1)


def state(model: Trunk, shards: int = 2) -> dict[str, torch.Tensor]:
    """Weights as released: one row of q and k norms per shard of the model-parallel training."""
    found = {}
    for name, tensor in model.state_dict().items():
        if "_norm." in name:
            generator = torch.Generator().manual_seed(len(name))
            rows = torch.randn(shards, tensor.shape[1], generator=generator)
            tensor.copy_(rows.repeat_interleave(HEADS // shards, 0))
            tensor = rows
        found[name] = tensor.contiguous().clone()
    return found


def write(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """Two shards with an index, as the 7B checkpoints have."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    names = sorted(tensors)
    placed = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_a_checkpoint_computes_what_its_weights_compute(tmp_path: Path) -> None:
    model = trunk()
    tensors = state(model)
    extra = {"model.vqmodel.encoder.conv_in.weight": torch.zeros(2, 2)}
    found = load_released(write(tmp_path / "m", {**tensors, **extra}), dtype=torch.float32)
    ids = torch.arange(12)[None] % IDS
    torch.testing.assert_close(found(ids), model(ids))
    assert found.config.max_position_embeddings == 11_776
    assert not any(parameter.is_meta for parameter in found.parameters())


def test_one_file_of_bfloat16_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", state(trunk(), shards=1))
    (folder / INDEX).unlink()
    whole = {name: tensor.bfloat16() for name, tensor in state(trunk(), shards=1).items()}
    save_file(whole, folder / "model.safetensors")
    assert load_released(folder).lm_head.weight.dtype == torch.bfloat16


def test_the_vocabulary_grows_as_pures_did(tmp_path: Path) -> None:
    model = trunk()
    folder = write(tmp_path / "m", state(model))
    found = load_released(folder, vocabulary=IDS + 8, dtype=torch.float32)
    ids = torch.arange(12)[None] % IDS
    logits = found(ids)
    torch.testing.assert_close(logits[..., :IDS], model(ids))
    assert not logits[..., IDS:].any()
    table = found.model.embed_tokens.weight.detach()
    assert len(torch.unique(table[IDS:], dim=0)) == 8
    assert float((table[IDS:] - table[:IDS].mean(0)).abs().max()) < float(table[:IDS].std())
    assert torch.equal(
        table,
        load_released(folder, vocabulary=IDS + 8, dtype=torch.float32).model.embed_tokens.weight,
    )
    with pytest.raises(ValueError, match="has 40 ids, more than the 39"):
        load_released(folder, vocabulary=IDS - 1)


def test_missing_and_surplus_tensors_are_named_in_one_line(tmp_path: Path) -> None:
    tensors = state(trunk())
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError) as error:
        load_released(write(tmp_path / "m", tensors))
    assert str(error.value).endswith(
        "m: tensors are 1 missing (model.layers.1.mlp.up_proj.weight) and 1 surplus "
        "(model.layers.2.mlp.up_proj.weight)"
    )


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.0.self_attn.q_norm.weight", torch.zeros(3, 4), "rows must divide 4 heads"),
        ("lm_head.weight", torch.zeros(IDS, 9), r"lm_head.weight has shape \(40, 9\)"),
        ("lm_head.weight", torch.zeros(IDS + 1, WIDTH), r"lm_head.weight has shape \(41, 16\)"),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_released(write(tmp_path / "m", {**state(trunk()), name: tensor}))


def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        load_released(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'llama'"):
        load_released(write(tmp_path / "a", state(trunk()), model_type="llama"))
    folder = write(tmp_path / "b", state(trunk()))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: unreadable"):
        load_released(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors: no such file"):
        load_released(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_released(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        load_released(folder)


def test_what_is_saved_is_loaded_by_transformers(tmp_path: Path) -> None:
    model = trunk().eval()
    model.save_pretrained(tmp_path)
    found = Trunk.from_pretrained(tmp_path).eval()
    ids = torch.arange(12)[None] % IDS
    torch.testing.assert_close(found(ids), model(ids))
    assert not hasattr(found.model, "vqmodel")


def test_the_full_architecture_on_the_meta_device() -> None:
    with torch.device("meta"):
        full = Trunk(
            ChameleonConfig(vocab_size=73_728, vocabulary_map={}, max_position_embeddings=11_776)
        )
    names = full.state_dict()
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(7.08e9, rel=2e-3)
    assert names["model.layers.31.self_attn.q_norm.weight"].shape == (32, 128)
    assert not any("vqmodel" in name for name in names)
