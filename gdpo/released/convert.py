"""Convert released files to our model folders.

    import_released("naosd.pkl", "models/naosd", base)           adapters on a base
    import_released("gdpo.pkl", "models/gdpo", "models/naosd")   a chain: base, adapters of NAOSD,
                                                                 adapters of GDPO
    import_released("merged/", "models/naosd", base)             a diffusers folder; text encoder,
                                                                 tokenizer and scheduler come from
                                                                 the base

A diffusers folder written here is also a model folder: its model.json names the folder itself as
the base, without adapters. All checks precede the first write, and existing files are never
replaced. gdpo/released/export.py goes the other way.
"""

from pathlib import Path

from gdpo.model.card import IDENTITIES, NAME, unnamed
from gdpo.model.checkpoints import read_folder, save_model
from gdpo.model.naosd import NAOSD
from gdpo.released.export import refuse_existing, save_merged
from gdpo.released.pickles import Released
from gdpo.released.read import Merged, check_against, load_released_checkpoint

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
    refuse_existing(target)
    released = load_released_checkpoint(source)
    if isinstance(released, Merged):
        plain = NAOSD.from_base(base)
        check_against(source, released, plain)
        merged = NAOSD(released.unet, released.vae, plain.text_encoder, plain.tokenizer)
        merged.t_add, merged.t_diff, merged.prompt = SETTINGS["merged"]
        save_merged(target, merged, base, unnamed(target))
        return ()
    _save_adapters(source, target, base, released)
    return released.notes


def _save_adapters(source: Path, target: Path, base: Path, released: Released) -> None:
    name = released.adapters.name
    t_add, t_diff, prompt = SETTINGS[name]
    chain, base_sha256 = [], None
    if not (base / NAME).exists():
        model = NAOSD.from_base(base)
    elif name == "gdpo":
        below = read_folder(base)
        model, base = NAOSD.from_folder(below), below.base
        chain, base_sha256 = below.adapters, below.card.base_sha256
        # A GDPO file states none of these; they are those of the model on which it was trained.
        t_add, t_diff, prompt = model.t_add, model.t_diff, model.prompt
    else:
        raise ValueError(
            f"{source}: {name.upper()} adapters belong on a diffusers folder, and {base} is a "
            "model folder"
        )
    # Two files of one name in a folder would overwrite each other.
    if name in [adapters.name for adapters in chain]:
        raise ValueError(f"{source}: its base already has adapters named {name}")
    check_against(source, released, model)
    save_model(
        target,
        base,
        [*chain, released.adapters],
        IDENTITIES[name],
        base_sha256=base_sha256,
        t_add=t_add,
        t_diff=t_diff,
        prompt=prompt,
    )
