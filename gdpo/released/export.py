"""Export our model folders for diffusers, peft and the released code.

    export_merged("models/gdpo", "out")   a pipeline of diffusers, every adapter merged in fp32
    export_lora("models/gdpo", "out")     the last adapters, in the files of diffusers and of peft

    out/  model_index.json  pipeline.py  unet/  vae/  text_encoder/  tokenizer/  scheduler/
          model.json        (merged: the folder is also a model folder and its own base)
    out/  pytorch_lora_weights.safetensors  adapter_config.json  adapter_model.safetensors    (LoRA)

A LoRA names the model that it belongs on by a hash (`lineage`): of the base's weights and of the
adapters merged before it. The pipeline of that model knows the hash and refuses other LoRAs.
All checks precede the first write, and existing files are never replaced.
"""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file

from gdpo.files import check_writable, sha256, written_aside
from gdpo.model.base import base_hashes
from gdpo.model.card import NAME, AdapterFile, Card, Identity, read_card, read_json, unnamed
from gdpo.model.checkpoints import Hashes, Tensors, read_adapters, read_folder
from gdpo.model.naosd import NAOSD

REST = ("text_encoder", "tokenizer", "scheduler")
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
# The names that peft looks for.
PEFT_CONFIG, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"
INDEX = "model_index.json"


def lineage(base_sha256: Hashes, adapters: list[tuple[str, AdapterFile]]) -> str:
    """The hash of a model: of its base's weights and its adapters, (SHA-256, entry) in order."""
    # The scaling as well as the bytes: the same file merged with another alpha is another model.
    merged = [[digest, entry.alpha / entry.rank] for digest, entry in adapters]
    return hashlib.sha256(json.dumps([sorted(base_sha256.items()), merged]).encode()).hexdigest()


def _of_folder(folder: Path, card: Card, entries: list[AdapterFile]) -> str:
    hashed = [(sha256(folder / entry.file), entry) for entry in entries]
    return lineage(card.base_sha256, hashed)


def export_merged(folder: Path, target: Path) -> None:
    """Write `folder` with every adapter merged in fp32 as the diffusers folder `target`.

    `DiffusionPipeline.from_pretrained(target, trust_remote_code=True)` and the released test script
    load it. Text encoder, tokenizer and scheduler are copied from the base.
    Errors: ValueError naming the file.
    """
    refuse_existing(target)
    if (folder / NAME).exists():
        source = read_folder(folder)
        known = _of_folder(folder, source.card, source.card.adapters)
        save_merged(target, NAOSD.from_folder(source), source.base, source.card, known)
    else:
        save_merged(target, NAOSD.from_base(folder), folder, unnamed(folder))


def save_merged(
    target: Path, model: NAOSD, base: Path, identity: Identity, known: str | None = None
) -> None:
    """Write a merged model as the diffusers folder `target`.

    base: where its text encoder, tokenizer and scheduler are. known: the hash by which a LoRA names
    the model, if it is merged from adapters.
    """
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
        # Of the files just written: a LoRA for this folder is checked against its bytes.
        hashes = base_hashes(part)
        own = lineage(hashes, [])
        _write_pipeline(part, model, sorted({own, known or own}))
        Card(
            kind="naosd",
            label=identity.label,
            role=identity.role,
            format=1,
            base=".",
            base_sha256=hashes,
            t_add=model.t_add,
            t_diff=model.t_diff,
            prompt=model.prompt,
            adapters=[],
        ).write(part)


def _write_pipeline(folder: Path, model: NAOSD, lora_base: list[str]) -> None:
    """model_index.json, as `NAOSDPipeline.save_pretrained` writes it, and pipeline.py."""
    from gdpo.upscale import diffusers_pipeline

    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    index = {
        "_class_name": [diffusers_pipeline.CODE, diffusers_pipeline.NAOSDPipeline.__name__],
        "_diffusers_version": version("diffusers"),
        "lora_base": lora_base,
        "prompt": model.prompt,
        "scale": 4.0,
        "scheduler": ["diffusers", scheduler.get("_class_name", "DDPMScheduler")],
        "t_add": model.t_add,
        "t_diff": model.t_diff,
        "text_encoder": ["transformers", type(model.text_encoder).__name__],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", type(model.unet).__name__],
        "vae": ["diffusers", type(model.vae).__name__],
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    shutil.copyfile(diffusers_pipeline.__file__, folder / f"{diffusers_pipeline.CODE}.py")


def export_lora(folder: Path, target: Path) -> None:
    """Write the last adapters of `folder` as a LoRA, in the files of diffusers and of peft.

    It belongs on the UNet with all earlier adapters merged; for GDPO that is the merged NAOSD.
    `pipe.load_lora_weights`, `unet.load_lora_adapter` (prefix "unet") and
    `PeftModel.from_pretrained` load it. B includes the LoRA scaling, because no field
    for it is read by every loader.
    Errors: ValueError when the adapters are not only LoRA on the UNet, like those of NAOSD
    (`conv_in` trained in full, VAE adapters).
    """
    refuse_existing(target)
    if not (folder / NAME).exists():
        raise ValueError(
            f"{folder / NAME}: no such file, so there are no adapters to export; use --format "
            "merged"
        )
    card, chain = read_card(folder), read_adapters(folder)
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
    tensors: Tensors = {
        f"{name}.weight": (
            tensor * adapters.scaling if name.endswith(".lora_B") else tensor
        ).contiguous()
        for name, tensor in sorted(adapters.tensors.items())
    }
    config = _lora_config(card, _of_folder(folder, card, card.adapters[:-1]), tensors)
    # diffusers makes its LoRA configuration of this entry, and so learns the base's hash.
    stated = json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)
    with written_aside(target) as part:
        part.mkdir()
        save_file(
            tensors, part / LORA_FILE, metadata={"format": "pt", "lora_adapter_metadata": stated}
        )
        (part / PEFT_CONFIG).write_text(json.dumps({"peft_type": "LORA", **config}, indent=1))
        save_file(
            {f"base_model.model.{name[len('unet.') :]}": value for name, value in tensors.items()},
            part / PEFT_FILE,
            metadata={"format": "pt"},
        )


def _lora_config(card: Card, base: str, tensors: Tensors) -> dict[str, object]:
    """The arguments of peft's LoraConfig; alpha equals the rank, because B includes the scaling."""
    from gdpo.upscale.diffusers_pipeline import OF_BASE

    ends = [name for name in tensors if name.endswith(".lora_A.weight")]
    rank = card.adapters[-1].rank
    below = Path(card.adapters[-2].file).stem if len(card.adapters) > 1 else "base"
    return {
        "base_model_name_or_path": f"{below}{OF_BASE}{base}",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [
            name.removeprefix("unet.").removesuffix(".lora_A.weight") for name in ends
        ],
    }


def refuse_existing(target: Path) -> None:
    """ValueError if there is something at `target`, or nothing can be written there."""
    if target.exists():
        raise ValueError(f"{target}: already exists; remove it or choose another --output")
    check_writable(target)
