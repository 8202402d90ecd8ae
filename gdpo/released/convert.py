"""Released files -> our model folders, and our model folders -> what diffusers and the released
code load.

    import_released("naosd.pkl", "models/naosd", base)           adapters over a base
    import_released("gdpo.pkl", "models/gdpo", "models/naosd")   a chain: base, NAOSD's adapters,
                                                                 GDPO's
    import_released("merged/", "models/naosd", base)             a diffusers folder, text encoder
                                                                 and rest from the base
    export_merged("models/gdpo", "out")                          every adapter merged in fp32: a
                                                                 diffusers folder
    export_lora("models/gdpo", "out")                            the last adapter set:
                                                                 pytorch_lora_weights.safetensors

A diffusers folder written here is also a model folder: its model.json names itself as the base,
with no adapters. Nothing is written before everything is checked, and what exists is never
replaced.
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
# What the published weights were trained and are run with: t_add, t_diff, suffix of the prompt.
SETTINGS: dict[str, tuple[int | None, int, str]] = {
    "naosd": (250, 100, "clean, high-resolution, 8k,"),
    "gdpo": (250, 100, "clean, high-resolution, 8k,"),
    "merged": (250, 100, "clean, high-resolution, 8k,"),
    "osediff": (None, 999, ""),  # no noise is injected
}


def import_released(source: Path, target: Path, base: Path) -> tuple[str, ...]:
    """Write the model folder `target` from a released `.pkl` or merged folder, and return notes
    worth telling.

    base: what `source` belongs on: a diffusers folder, or for a GDPO file also a model folder of
    ours, whose adapters then come first. Errors: ValueError naming the file and what does not fit;
    then nothing is left at `target`.
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

    unet/ and vae/ are what the released test script and `from_pretrained` load; text encoder,
    tokenizer and scheduler are copied from the base. Errors: ValueError naming the file.
    """
    _refuse_existing(target)
    _save_merged(target, load_model(folder), base_of(folder))


def _save_merged(target: Path, model: NAOSD, base: Path) -> None:
    with written_aside(target) as part:
        for name, network in (("unet", model.unet), ("vae", model.vae)):
            network.register_to_config(_name_or_path="")  # a folder of this machine
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
    """Write the last adapter set of `folder` as `target`/pytorch_lora_weights.safetensors, for
    `unet.load_lora_adapter`.

    It belongs on the UNet with every earlier set merged: for GDPO that is the merged NAOSD. LoRA
    scaling is folded into B, as the file has no place for it that every loader reads. Errors:
    ValueError when the set is more than LoRA on the UNet, as NAOSD's is (`conv_in` trained in full,
    VAE adapters).
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
            f"{folder / adapters.name}.safetensors: {min(odd)} cannot be said as LoRA on the "
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
