"""Released files, fabricated in their layout on peft's own layers: read, refused, converted there
and back.
"""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import gdpo
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.checkpoints import read_adapters
from gdpo.model.naosd import NAOSD
from gdpo.released.convert import import_released
from gdpo.released.export import LORA_FILE, PEFT_CONFIG, PEFT_FILE, export_lora, export_merged
from gdpo.released.pickles import Released
from gdpo.released.read import Merged, load_released_checkpoint
from tests.gdpo.released.released_files import (
    fabricate,
    output,
    unet_modules,
    vae_modules,
    write_base,
)

KINDS = ["naosd", "gdpo", "osediff"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, naosd.pkl and osediff.pkl over it; ours naosd/, merged to merged/; gdpo.pkl over that;
    ours gdpo/.
    """
    root = tmp_path_factory.mktemp("released")
    write_base(root / "base")
    for kind in ("naosd", "osediff"):
        fabricate(root / f"{kind}.pkl", root / "base", kind)
    import_released(root / "naosd.pkl", root / "naosd", root / "base")
    export_merged(root / "naosd", root / "merged")
    fabricate(root / "gdpo.pkl", root / "merged", "gdpo", seed=2)
    import_released(root / "gdpo.pkl", root / "gdpo", root / "naosd")
    return root


def same(a: NAOSD, b: NAOSD) -> bool:
    return bool((output(a) - output(b)).abs().max() < 1e-5)


def test_our_rule_selects_the_released_modules(files: Path) -> None:
    model = NAOSD.from_pretrained(files / "base")
    assert sorted(name for place in unet_modules(model.unet) for name in place) == sorted(
        unet_targets(model.unet)
    )
    assert vae_modules(model.vae)[0] == vae_targets(model.vae)


@pytest.mark.parametrize("ranks", [(4, 4), (8, 4), (3, 5)])
def test_naosd_output_equals_that_of_the_peft_model(
    files: Path, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "naosd", ranks=ranks)
    import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert same(ours, theirs)
    assert not same(ours, NAOSD.from_pretrained(files / "base"))
    assert (ours.t_add, ours.t_diff, ours.prompt) == (250, 100, "clean, high-resolution, 8k,")


@pytest.mark.parametrize("below", ["naosd", "merged"])
def test_gdpo_over_a_chain_or_a_merged_base_equals_the_peft_model(
    files: Path, tmp_path: Path, below: str
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "merged", "gdpo", seed=3)
    import_released(tmp_path / "x.pkl", tmp_path / "x", files / below)
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert same(ours, theirs)
    assert not same(ours, NAOSD.from_pretrained(files / "naosd"))
    names = [adapters.name for adapters in read_adapters(tmp_path / "x")]
    assert names == (["naosd", "gdpo"] if below == "naosd" else ["gdpo"])


def test_osediff_output_equals_that_of_the_peft_model(files: Path, tmp_path: Path) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "osediff")
    notes = import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    ours = NAOSD.from_pretrained(tmp_path / "x")
    assert notes == ()
    assert (ours.t_add, ours.t_diff, ours.prompt) == (None, 999, "")
    theirs.t_add, theirs.t_diff = None, 999  # OSEDiff's own forward pass
    assert same(ours, theirs)
    export_merged(tmp_path / "x", tmp_path / "out")
    again = NAOSD.from_pretrained(tmp_path / "out")
    assert again.t_add is None and same(again, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_settings_of_what_is_read(files: Path, kind: str) -> None:
    found = gdpo.load_released_checkpoint(str(files / f"{kind}.pkl"))
    assert isinstance(found, Released)
    adapters = found.adapters
    assert (adapters.name, adapters.lora.rank, adapters.lora.alpha) == (kind, 4, 8)
    assert adapters.tensors["unet.conv_in.lora_A"].shape == (4, 4, 3, 3)
    assert adapters.tensors["unet.conv_in.lora_B"].shape == (8, 4, 1, 1)
    assert ("unet.conv_in.weight" in adapters.tensors) == (kind != "gdpo")
    assert ("vae.quant_conv.lora_A" in adapters.tensors) == (kind != "gdpo")
    assert not [name for name in adapters.tensors if "decoder" in name]
    assert found.frozen.keys() == ({"conv_in.weight", "conv_in.bias"} if kind == "gdpo" else set())


@pytest.mark.parametrize("trained", [False, True])
def test_the_vae_decoder_adapter_is_left_out_with_a_reason(
    files: Path, tmp_path: Path, trained: bool
) -> None:
    theirs = fabricate(tmp_path / "x.pkl", files / "base", "naosd", decoder_trained=trained)
    (note,) = import_released(tmp_path / "x.pkl", tmp_path / "x", files / "base")
    assert note.startswith(
        "left out 20 modules of the VAE decoder's adapter, which the release never activates"
    )
    assert ("not zero" in note) == trained
    assert same(NAOSD.from_pretrained(tmp_path / "x"), theirs)


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


@pytest.mark.parametrize("name", ["naosd", "gdpo"])
def test_merged_export_loads_in_diffusers_and_gives_the_same_image(
    files: Path, tmp_path: Path, name: str
) -> None:
    export_merged(files / name, tmp_path / "out")
    chained = NAOSD.from_pretrained(files / name)
    again = NAOSD.from_pretrained(tmp_path / "out")
    assert (again.t_add, again.t_diff, again.prompt) == (
        chained.t_add,
        chained.t_diff,
        chained.prompt,
    )
    # what the released test script loads, everything else from its base
    plain = NAOSD.from_pretrained(files / "base")
    unet, unet_info = UNet2DConditionModel.from_pretrained(
        tmp_path / "out", subfolder="unet", output_loading_info=True
    )
    vae, vae_info = AutoencoderKL.from_pretrained(
        tmp_path / "out", subfolder="vae", output_loading_info=True
    )
    assert not any([*unet_info.values(), *vae_info.values()])
    assert unet.dtype == vae.dtype == torch.float32
    theirs = NAOSD(unet, vae, plain.text_encoder, plain.tokenizer)
    assert same(theirs, chained) and same(again, chained) and not same(theirs, plain)
    assert str(files) not in (tmp_path / "out/unet/config.json").read_text()


def test_lora_export_loads_in_diffusers_over_the_merged_naosd(files: Path, tmp_path: Path) -> None:
    export_lora(files / "gdpo", tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {LORA_FILE, PEFT_CONFIG, PEFT_FILE}
    model = NAOSD.from_pretrained(files / "merged")
    before = output(model)
    model.unet.load_lora_adapter(tmp_path / "out", prefix="unet", weight_name=LORA_FILE)
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    assert float((output(model) - before).abs().max()) > 1e-3


def test_lora_export_loads_in_a_pipeline_of_diffusers(files: Path, tmp_path: Path) -> None:
    """By the name of the folder alone, as `load_lora_weights` does for anybody's LoRA."""
    export_lora(files / "gdpo", tmp_path / "out")
    model = NAOSD.from_pretrained(files / "merged")
    pipeline = StableDiffusionPipeline(
        model.vae,
        model.text_encoder,
        model.tokenizer,
        model.unet,
        DDPMScheduler.from_pretrained(files / "base/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    before = output(model)
    pipeline.load_lora_weights(tmp_path / "out")
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert same(model, NAOSD.from_pretrained(files / "gdpo"))
    assert float((output(model) - before).abs().max()) > 1e-3


def test_what_lora_cannot_say_is_not_exported_as_lora(files: Path, tmp_path: Path) -> None:
    refused = {
        "naosd": r"naosd.safetensors: unet.conv_in.bias has no LoRA form on the UNet; use "
        r"--format merged",
        "base": r"model.json: no such file, so there are no adapters",
        "merged": r"model.json: lists no adapters to export",
    }
    for name, message in refused.items():
        with pytest.raises(ValueError, match=message):
            export_lora(files / name, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_merged_folder_of_two_networks_becomes_a_model_folder_and_a_base(
    files: Path, tmp_path: Path
) -> None:
    found = load_released_checkpoint(files / "merged")
    assert isinstance(found, Merged)
    for name in ("unet", "vae"):
        (tmp_path / "merged" / name).mkdir(parents=True)
        for file in (files / "merged" / name).iterdir():
            (tmp_path / "merged" / name / file.name).write_bytes(file.read_bytes())
    assert import_released(tmp_path / "merged", tmp_path / "x", files / "base") == ()
    assert same(NAOSD.from_pretrained(tmp_path / "x"), NAOSD.from_pretrained(files / "naosd"))
    import_released(
        files / "gdpo.pkl", tmp_path / "y", tmp_path / "x"
    )  # and GDPO's adapters go on it
    assert same(NAOSD.from_pretrained(tmp_path / "y"), NAOSD.from_pretrained(files / "gdpo"))


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
