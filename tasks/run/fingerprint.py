"""What a run depends on: its settings, its input folders, its code and the libraries."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gdpo.files import sha256
from gdpo.model.card import stated_hashes
from gdpo.walk import Tree, walk
from tasks.run.code import code_hash

# Those that compute or decode: a result depends on their versions.
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
)
# Those that the report and `doctor` name. A result depends on pyiqa only through its metrics, whose
# versions `gdpo.metrics.score.versions` tells.
REPORTED = (*LIBRARIES, "pyiqa")
# Keys of a training section that change no byte of the result but rounding (gpus, nodes).
NO_EFFECT = {"checkpoint_every", "gpus", "nodes", "keep_every"}


def fingerprint(
    settings: dict[str, Any], inputs: list[Path], known: Mapping[str, str] | None = None
) -> str:
    """A SHA-256 that is equal only for equal settings and equal input folders (every file's path
    and bytes). A link that leads nowhere, or again to a folder of the tree, counts by its target.

    known: SHA-256 of files by their path in the folder, which are then not read.
    Shards and rollouts may hold half a terabyte and are not hashed here: put their own
    `fingerprint()`, which reads the hashes of their rows, into `settings`.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in inputs:
        tree = walk(folder) if folder.is_dir() else Tree([], [], {})
        for path in tree.files:
            # Relative to the folder, so that the same files elsewhere have the same fingerprint.
            name = path.relative_to(folder)
            digest.update(os.fsencode(name))
            # The hash of each file and not its bytes, so that the end of one file and the start of
            # the next cannot change places.
            digest.update(bytes.fromhex((known or {}).get(name.as_posix()) or sha256(path)))
        # A link that is entered only once still counts: moving it would change what a reader of the
        # folder finds.
        for link, again in tree.repeated.items():
            digest.update(
                os.fsencode(f"{link.relative_to(folder)} {os.path.relpath(again, folder)}")
            )
        for link in tree.broken:
            digest.update(os.fsencode(f"{link.relative_to(folder)} {os.readlink(link)}"))
    return digest.hexdigest()


def model_fingerprint(folder: Path) -> str:
    """`fingerprint` of a model folder, with the hashes that its card states: loading the model
    verifies them, so no file is hashed twice.

    Errors: ValueError naming the card and the key that is wrong.
    """
    return fingerprint({}, [folder], stated_hashes(folder) if folder.is_dir() else None)


def prompts_of(base: Path) -> str:
    """A hash of a base's text encoder and tokenizer; cards have those of UNet and VAE only."""
    return fingerprint({}, [base / name for name in ("text_encoder", "tokenizer")])


@cache  # hashing the code of a stage parses a hundred modules
def made_by(module: str) -> dict[str, str]:
    """What computes a result: the hash of the code of `module`, and the versions of libraries."""
    return {"code": code_hash(module), **versions(LIBRARIES)}


def inputs_of(module: str, settings: dict[str, Any]) -> str:
    """The inputs of a run of `module` as a JSON object, for gdpo.items and checkpoints.

    settings: all that its result depends on, hashes of data included; nested names are joined by
    dots.
    """
    return json.dumps({**made_by(module), **dict(_flat(settings))}, sort_keys=True, indent=1)


def training(section: Any) -> dict[str, Any]:
    """The keys of a training section that a checkpoint depends on.

    The number of steps is one of them where the learning rate follows from it; a run of constant
    rate may go on to more steps.
    """
    constant = section.optimizer.schedule == "constant"
    return dict(section.model_dump(exclude=NO_EFFECT | ({"steps"} if constant else set())))


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """The installed version of each library, by its name; `unknown` of one that is not there."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # another distribution of it, such as opencv-python
        return "unknown"


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return pairs
