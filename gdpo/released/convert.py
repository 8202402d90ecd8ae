"""Convert released files to our model folders, and our folders to files for the released code.

    import_released("naosd.pkl", "models/naosd", base)           adapters on a base
    import_released("gdpo.pkl", "models/gdpo", "models/naosd")   a chain: base, adapters of NAOSD,
                                                                 adapters of GDPO
    import_released("merged/", "models/naosd", base)             a diffusers folder; text encoder,
                                                                 tokenizer and scheduler come from
                                                                 the base
    export_merged("models/gdpo", "out")                          a diffusers folder, every adapter
                                                                 merged in fp32
    export_lora("models/gdpo", "out")                            the last adapters, as
                                                                 pytorch_lora_weights.safetensors

diffusers loads the exported files too. A diffusers folder written here is also a model folder: its
model.json names the folder itself as the base, without adapters. All checks precede the first
write, and existing files are never replaced.
"""

import shutil
from pathlib import Path

from safetensors.torch import save_file

from gdpo.files import written_aside
from gdpo.model.card import NAME, Card, base_of
from gdpo.model.checkpoints import (
    Tensors,
    base_hashes,
    load_base,
    load_model,
    read_adapters,
    save_model,
)
from gdpo.model.naosd import NAOSD
from gdpo.released.read import Merged, Released, check_against, load_released_checkpoint

REST = ("text_encoder", "tokenizer", "scheduler")
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
# t_add, t_diff and prompt suffix with which the published weights were trained and are run.
SETTINGS: dict[str, tuple[int | None, int, str]] = {
    "naosd": (250, 100, "clean, high-resolution, 8k,"),
    "gdpo": (250, 100, "clean, high-resolution, 8k,"),
    "merged": (250, 100, "clean, high-resolution, 8k,"),
    "osediff": (None, 999, ""),  # no noise is injected
}


def import_released(source: Path, target: Path, base: Path) -> tuple[str, ...]:
    """Write the model folder `target` from a released `.pkl` or merged folder.

    base: the model on which `source` was trained: a diffusers folder or, for a GDPO file, also one
    of our model folders, whose adapters are merged first. Returns notes for the user.
    Errors: ValueError naming the file and the mismatch; nothing is then left at `target`.
    """
    _refuse_existing(target)
    found = load_released_checkpoint(source)
    if isinstance(found, Merged):
        plain = load_base(base)
        check_against(source, found, plain)
        merged = NAOSD(found.unet, found.vae, plain.text_encoder, plain.tokenizer)
        merged.t_add, merged.t_diff, merged.prompt = SETTINGS["merged"]
        _save_merged(target, merged, base)
        return ()
    _save_adapters(source, target, base, found)
    return found.notes


def _save_adapters(source: Path, target: Path, base: Path, found: Released) -> None:
    name = found.adapters.name
    t_add, t_diff, prompt = SETTINGS[name]
    chain = []
    if not (base / NAME).exists():
        model = load_base(base)
    elif name == "gdpo":
        model, chain, base = load_model(base), read_adapters(base), base_of(base)
        t_add, t_diff, prompt = model.t_add, model.t_diff, model.prompt
    else:
        raise ValueError(
            f"{source}: {name.upper()} adapters belong on a diffusers folder, and {base} is a "
            "model folder"
        )
    if name in [adapters.name for adapters in chain]:
        raise ValueError(f"{source}: the model it is put on already has adapters called {name}")
    check_against(source, found, model)
    save_model(target, base, [*chain, found.adapters], t_add=t_add, t_diff=t_diff, prompt=prompt)


def export_merged(folder: Path, target: Path) -> None:
    """Write `folder` with every adapter merged in fp32 as the diffusers folder `target`.

    The released test script and `from_pretrained` load its unet/ and vae/. Text encoder, tokenizer
    and scheduler are copied from the base.
    Errors: ValueError naming the file.
    """
    _refuse_existing(target)
    _save_merged(target, load_model(folder), base_of(folder))


def _save_merged(target: Path, model: NAOSD, base: Path) -> None:
    with written_aside(target) as part:
        for name, network in (("unet", model.unet), ("vae", model.vae)):
            network.register_to_config(_name_or_path="")  # it would name a local folder
            network.save_pretrained(part / name, safe_serialization=True)
        for name in REST:
            shutil.copytree(
                base / name,
                part / name,
                ignore=shutil.ignore_patterns("*.bin", "*.ckpt", "*.fp16.*"),
            )
        Card(
            format=1,
            base=".",
            base_sha256=base_hashes(part),
            t_add=model.t_add,
            t_diff=model.t_diff,
            prompt=model.prompt,
            adapters=[],
        ).write(part)


def export_lora(folder: Path, target: Path) -> None:
    """Write the last adapters of `folder` as `target`/pytorch_lora_weights.safetensors.

    `unet.load_lora_adapter` loads the file onto the UNet with all earlier adapters merged; for GDPO
    that is the merged NAOSD. B includes the LoRA scaling, because no field of the file for it is
    read by every loader.
    Errors: ValueError when the adapters are not only LoRA on the UNet, like those of NAOSD
    (`conv_in` trained in full, VAE adapters).
    """
    _refuse_existing(target)
    if not (folder / NAME).exists():
        raise ValueError(
            f"{folder / NAME}: no such file, so there are no adapters to export; use --format "
            "merged"
        )
    chain = read_adapters(folder)
    if not chain:
        raise ValueError(f"{folder / NAME}: lists no adapters to export; use --format merged")
    adapters = chain[-1]
    odd = [
        name
        for name in adapters.tensors
        if not (name.startswith("unet.") and name.endswith((".lora_A", ".lora_B")))
    ]
    if odd:
        raise ValueError(
            f"{folder / adapters.name}.safetensors: {min(odd)} has no LoRA form on the "
            "UNet; use --format merged"
        )
    scaling = adapters.lora.alpha / adapters.lora.rank
    tensors: Tensors = {
        f"{name}.weight": (tensor * scaling if name.endswith(".lora_B") else tensor).contiguous()
        for name, tensor in sorted(adapters.tensors.items())
    }
    with written_aside(target) as part:
        part.mkdir()
        save_file(tensors, part / LORA_FILE, metadata={"format": "pt"})


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ValueError(f"{target}: is there already; remove it or choose another --output")
