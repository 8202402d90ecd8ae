"""Checkpoints, tag lists, folders and pictures that the tagger refuses by name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.released.tagger import import_tagger
from gdpo.tagger.tagger import Tagger
from tests.gdpo.tagger.released_tagger import checkpoint, dape, write


class Foreign:
    """What no weights file needs."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (print, ("run",))


FIRST = "visual_encoder.layers.0.blocks.0.attn.qkv"


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.pop(name)


def put(name: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.weight"), "tensor 'fc.weight' is missing"),
        (without("label_embed"), "tensor 'label_embed' is missing"),
        (without(f"{FIRST}.bias"), f"tensor '{FIRST}.bias' is missing"),
        (
            without("visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table"),
            "bias_table' is missing",
        ),
        (
            put("visual_encoder.absolute_pos_embed", torch.zeros(1)),
            "tensor 'visual_encoder.absolute_pos_embed' is extra",
        ),
        (put("reweight_scale", torch.zeros(1)), "tensor 'reweight_scale' is extra"),
        (
            put("vision_multi.encoder.layer.0.output.dense.bias", torch.zeros(16)),
            "another tensor that is renamed",
        ),
        (
            put("image_proj.weight", torch.zeros(8, 9)),
            r"'image_proj.weight' has shape \(8, 9\), .* imply \(8, 32\)",
        ),
        (
            put("fc.weight", torch.full((1, 16), math.nan)),
            "'fc.weight' has values that are NaN or infinite",
        ),
        (
            put("fc.weight", torch.ones((1, 16), dtype=torch.long)),
            "'fc.weight' is not a tensor of floating-point numbers",
        ),
        (put("fc.weight", "text"), "'fc.weight' is not a tensor"),
        (
            put(
                "visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table",
                torch.zeros(16, 1),
            ),
            "no square of an odd",
        ),
    ],
)
def test_a_checkpoint_that_is_not_rams_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    model = checkpoint()
    change(model["model"])
    source = write(tmp_path, model)
    with pytest.raises(ValueError, match=message) as caught:
        import_tagger(source, tmp_path / "tagger")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tagger").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{FIRST}.lora_A"), f"tensor '{FIRST}.lora_A' is missing"),
        (
            without("tagging_head.encoder.layer.1.crossattention.self.key.lora_B"),
            "self.key.lora_B' is missing",
        ),
        (
            put("visual_encoder.layers.0.blocks.0.mlp.fc1.lora_A", torch.zeros(8, 4)),
            "fc1.lora_A' is extra",
        ),
        (put("params", {}), "key 'params' is extra; DAPE's file holds LoRA only"),
        (put(f"{FIRST}.lora_A", torch.zeros(8, 4)), f"'{FIRST}.lora_A' has rank 4, DAPE's is 8"),
        (put(f"{FIRST}.lora_B", torch.zeros(8, 4)), f"'{FIRST}.lora_B' has rank 4, DAPE's is 8"),
        (
            put(f"{FIRST}.lora_B", torch.zeros(12, 8)),
            r"lora_B' has shape \(12, 8\), .* imply \(8, 8\)",
        ),
        (
            put(f"{FIRST}.lora_B", torch.full((8, 8), math.inf)),
            "lora_B' has values that are NaN or infinite",
        ),
    ],
)
def test_a_file_that_is_not_dapes_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    lora = dape()
    change(lora)
    source = write(tmp_path, lora=lora)
    with pytest.raises(ValueError, match=message) as caught:
        import_tagger(source, tmp_path / "tagger", dape=tmp_path / "DAPE.pth")
    assert str(tmp_path / "DAPE.pth") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tagger").exists()


@pytest.mark.parametrize("name", ["ram_swin_large_14m.pth", "DAPE.pth"])
def test_a_file_with_a_foreign_global_is_refused_and_not_run(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path)
    torch.save({"model": Foreign()}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: refused, .*print"):
        import_tagger(source, tmp_path / "tagger", dape=tmp_path / "DAPE.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ram_tag_list.txt", "grass\nsky\n", "has 2 lines, the checkpoint has 6 tags"),
        ("ram_tag_list.txt", "a\nb\n\nd\ne\nf\n", "line 3 is empty"),
        (
            "ram_tag_list.txt",
            None,
            "no such file; ram/data of the repository xinyu1205/recognize-anything has it",
        ),
        ("ram_tag_list_threshold.txt", None, "no such file"),
        (
            "ram_tag_list_threshold.txt",
            "0.5\n0.5\nhigh\n0.5\n0.5\n0.5\n",
            "line 3 is 'high', not a probability",
        ),
        (
            "ram_tag_list_threshold.txt",
            "0.5\n65\n0.5\n0.5\n0.5\n0.5\n",
            "line 2 is '65', not a probability",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    source = write(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        import_tagger(source, tmp_path / "tagger")


def damage(file: str, content: str | bytes | None) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return run


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tags.json", None, "tags.json: no such file; `gdpo-sr import-weights"),
        ("tagger.safetensors", None, "tagger.safetensors: no such file; `gdpo-sr"),
        ("tagger.safetensors", b"broken", "tagger.safetensors: unreadable"),
        ("dape.safetensors", b"", "dape.safetensors: unreadable"),
        ("tags.json", "{", "tags.json: not a list of tags and thresholds"),
        (
            "tags.json",
            '{"tags": ["a"], "thresholds": [0.5]}',
            "tags.json: lists 1 tags, tagger.safetensors has 6",
        ),
        (
            "tags.json",
            '{"tags": ["a", "b"], "thresholds": [0.5]}',
            "tags.json: lists 2 tags and 1 thresholds",
        ),
        ("tags.json", '{"tags": ["a"], "thresholds": ["high"]}', "tags.json: not a list of tags"),
        ("tags.json", "[]", "tags.json: not a list of tags"),
    ],
)
def test_a_damaged_folder_is_refused(
    slim: Path, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    for path in slim.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(file, content)(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Tagger.from_folder(tmp_path, dape=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 8, 8), "image must have shape BCHW"),
        (torch.rand(1, 1, 8, 8), "image must have 3 channels"),
        (torch.full((1, 3, 8, 8), 2.0), r"image must lie in \[0, 1\]"),
        (torch.full((1, 3, 8, 8), math.nan), "image has values that are NaN"),
        (torch.zeros((1, 3, 8, 8), dtype=torch.uint8), "image must be a floating-point tensor"),
        ("photo.jpg", "image must be a torch.Tensor"),
    ],
)
def test_bad_images_are_refused(slim: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tagger.from_folder(slim, dape=False).tags(bad)
