"""Released files that are foreign, damaged or dangerous are refused by name."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gdpo.released.convert import import_released
from gdpo.released.export import export_lora, export_merged
from gdpo.released.read import load_released_checkpoint
from tests.gdpo.released.released_files import (
    write_base,
)

Change = Callable[[dict[str, Any]], object]
A, B = "conv_in.lora_A.default_encoder.weight", "conv_in.lora_B.default_encoder.weight"
LISTED = "unet_lora_encoder_modules"


def put(content: dict[str, Any], part: str, key: str, value: object) -> None:
    content[part] = {**content[part], key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop("rank_vae"),
            "key 'rank_vae' is missing; nearest to the released layout of NAOSD",
        ),
        (
            lambda c: c.update(optimizer={}),
            "key 'optimizer' is extra; nearest to the released layout of NAOSD",
        ),
        (lambda c: c.update(rank_unet="4"), "rank_unet is '4', not a positive whole number"),
        (lambda c: c.update(rank_vae=8), "has rank 4, and rank_vae is 8"),
        (lambda c: c.update(state_dict_vae=[]), "state_dict_vae is a list, not a dict"),
        (lambda c: c.update({LISTED: "conv_in"}), f"{LISTED} is not a list of module names"),
        (lambda c: c[LISTED].append("conv_in"), f"{LISTED} lists conv_in, which is listed before"),
        (
            lambda c: c[LISTED].append("nothing"),
            "'nothing.lora_A.default_encoder.weight' is missing from state_dict_unet",
        ),
        (
            lambda c: c[LISTED].remove("conv_in"),
            f"tensor '{A}' is extra in state_dict_unet according to the module lists",
        ),
        (lambda c: c["state_dict_unet"].pop(B), f"tensor '{B}' is missing from state_dict_unet"),
        (
            lambda c: c["state_dict_unet"].pop("conv_in.base_layer.bias"),
            "'conv_in.base_layer.bias' is missing from",
        ),
        (
            lambda c: put(c, "state_dict_vae", "skip.weight", torch.ones(2)),
            "'skip.weight' is extra in state_dict_vae",
        ),
        (
            lambda c: put(c, "state_dict_unet", A, torch.ones(3, 4, 3, 3)),
            f"[{A!r}] has rank 3, and rank_unet is 4",
        ),
        (
            lambda c: put(c, "state_dict_unet", A, torch.full((4, 4, 3, 3), float("nan"))),
            "NaN or infinite",
        ),
        (
            lambda c: put(c, "state_dict_unet", A, torch.ones(4, 4, 3, 3).int()),
            "not a tensor of floating-point numbers",
        ),
        (lambda c: put(c, "state_dict_unet", A, [1.0]), "not a tensor of floating-point numbers"),
        (
            lambda c: put(c, "state_dict_unet", A, torch.ones(4, 4, 3, 3).to(torch.float8_e5m2)),
            "not a tensor of floating",
        ),
        (
            lambda c: put(c, "state_dict_unet", A, torch.ones(4, 4, 3, 3, device="meta")),
            "not a tensor of floating-point",
        ),
        (
            lambda c: put(c, "state_dict_unet", A, torch.ones(4, 5, 3, 3)),
            "conv_in.lora_A is (4, 5, 3, 3), this base needs",
        ),
        (
            lambda c: put(c, "state_dict_unet", "conv_in.base_layer.bias", torch.ones(9)),
            "unet conv_in.bias is (9,), this",
        ),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_left(
    files: Path, tmp_path: Path, change: Change, message: str
) -> None:
    content = torch.load(files / "naosd.pkl", weights_only=True)
    change(content)
    bad = tmp_path / "bad.pkl"
    torch.save(content, bad)
    with pytest.raises(ValueError) as caught:
        import_released(bad, tmp_path / "x", files / "base")
    assert (
        message in str(caught.value)
        and str(caught.value).startswith(f"{bad}: ")
        and "\n" not in str(caught.value)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pkl"]


def test_a_file_without_one_of_the_modules_of_the_base_is_refused(
    files: Path, tmp_path: Path
) -> None:
    content = torch.load(files / "naosd.pkl", weights_only=True)
    content["unet_lora_others_modules"].remove("conv_out")
    for side in "AB":
        del content["state_dict_unet"][f"conv_out.lora_{side}.default_others.weight"]
    torch.save(content, tmp_path / "bad.pkl")
    with pytest.raises(
        ValueError, match=r"unet conv_out.lora_A is absent, this base needs \(0, 8, 3, 3\)"
    ):
        import_released(tmp_path / "bad.pkl", tmp_path / "x", files / "base")


class Command:
    """Unpickling this with Python's own pickle runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_command_in_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int | None) -> None:
    path, mark = tmp_path / "evil.pkl", tmp_path / "mark"
    content = {"rank_unet": Command(f"touch {mark}")}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    reason = (
        "it is no pickle of tensors and lists"
        if protocol == 4
        else "it names the global posix.system"
    )
    with pytest.raises(ValueError, match=rf"evil.pkl: refused, {reason}; only tensors"):
        load_released_checkpoint(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Command(f"touch {mark}")))
    assert mark.exists(), "the command of this test does nothing"


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 cut short"])
def test_what_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x.pkl: (refused, it is no pickle|not a file that torch.save wrote)"
    ):
        load_released_checkpoint(tmp_path / "x.pkl")


def test_what_is_not_a_dict_or_not_there_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"x.pkl: holds a list, not the dict"):
        load_released_checkpoint(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"y.pkl: no such file or folder"):
        load_released_checkpoint(tmp_path / "y.pkl")


def test_adapters_over_the_wrong_base_are_refused(files: Path, tmp_path: Path) -> None:
    write_base(tmp_path / "wide", width=12)
    refused = {
        (
            "naosd.pkl",
            tmp_path / "wide",
        ): r"unet conv_in.bias is \(8,\), this base needs \(12,\); name the right base",
        (
            "naosd.pkl",
            files / "naosd",
        ): "NAOSD adapters belong on a diffusers folder, and .* is a model folder",
        (
            "gdpo.pkl",
            files / "base",
        ): "its frozen conv_in.* is not that of this base; name the merged NAOSD",
        ("gdpo.pkl", files / "gdpo"): "already has adapters named gdpo",
        ("merged", tmp_path / "wide"): "unet .* this base needs",
    }
    for (name, base), message in refused.items():
        with pytest.raises(ValueError, match=message):
            import_released(files / name, tmp_path / "x", base)
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_an_existing_folder_is_not_replaced(files: Path, tmp_path: Path) -> None:
    for write in (
        lambda: import_released(files / "naosd.pkl", tmp_path, files / "base"),
        lambda: export_merged(files / "gdpo", tmp_path),
        lambda: export_lora(files / "gdpo", tmp_path),
    ):
        with pytest.raises(ValueError, match="already exists"):
            write()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("conv_in.bias"),
            "tensor 'conv_in.bias' is missing according to its config.json",
        ),
        (
            lambda t: t.update(more=torch.ones(1)),
            "tensor 'more' is unexpected according to its config.json",
        ),
        (
            lambda t: t["conv_in.bias"].fill_(float("inf")),
            "conv_in.bias has values that are NaN or infinite",
        ),
        (lambda t: t.update({"conv_in.bias": torch.ones(9)}), "unet: cannot be loaded"),
        (
            lambda t: t.update({"conv_in.bias": t["conv_in.bias"].to(torch.int8)}),
            "conv_in.bias is of type I8, weights are",
        ),
    ],
)
def test_a_wrong_merged_folder_is_refused(
    files: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = tmp_path / "merged"
    export_merged(files / "naosd", folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    weights.unlink()
    save_file(tensors, weights)
    with pytest.raises(ValueError) as caught:
        import_released(folder, tmp_path / "x", files / "base")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(
        ValueError,
        match=r"diffusion_pytorch_model.safetensors: no such file; a merged folder has unet/",
    ):
        import_released(folder, tmp_path / "x", files / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
