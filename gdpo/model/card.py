"""model.json, the card of one of our model folders; only this module reads and writes it. Here: of
kind naosd; kind vlcot: gdpo/vlcot/folder.py.

    {"kind": "naosd", "label": "NAOSD", "role": "baseline",
     "format": 1, "base": "../sd2.1-base", "base_sha256": {file: hex},
     "t_add": 250, "t_diff": 100, "prompt": "...",
     "adapters": [{"file": "naosd.safetensors", "rank": 4, "alpha": 8, "sha256": hex}]}

kind: the system that runs the model, and that owns the keys below `role`. base: path of the base
model relative to the folder; "." means that the folder is a diffusers folder and its own base;
"hf://owner/name@revision" means a repository of the hub, in the hub's cache on this machine.
t_add: null for a model that injects no noise (OSEDiff).

Cards of earlier versions lack kind, label and role; the name of the last adapters gives them. They
lack sha256 too: nothing can tell whether their adapters are damaged.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from gdpo.config import Section
from gdpo.config.fields import Count, Timestep
from gdpo.errors import one_line
from gdpo.files import sha256

NAME = "model.json"


class Identity(Section):
    """The keys of every model card, whatever its kind.

    label: the printed name. role: how the model was trained: "baseline" without a reward, "reward"
    with one, "control" with its rewards shuffled, so that they teach nothing.
    """

    kind: str
    label: str
    role: Literal["baseline", "reward", "control"]

    def write(self, folder: Path) -> None:
        """Write the card into `folder`, which must exist."""
        (folder / NAME).write_text(json.dumps(self.model_dump(), indent=1) + "\n")


Stated = TypeVar("Stated", bound=Identity)
# By the name of the training run and, but for the control, of the last adapters.
IDENTITIES = {
    "naosd": Identity(kind="naosd", label="NAOSD", role="baseline"),
    "gdpo": Identity(kind="naosd", label="GDPO-SR", role="reward"),
    "control": Identity(kind="naosd", label="Control", role="control"),
    "osediff": Identity(kind="naosd", label="OSEDiff", role="baseline"),
}


def unnamed(folder: Path) -> Identity:
    """The identity of a diffusers folder without a card: kind naosd, labelled by its name."""
    return Identity(kind="naosd", label=folder.name, role="baseline")


class AdapterFile(Section):
    """One adapter file, in merging order, and the SHA-256 of its bytes."""

    file: str
    rank: Count
    alpha: Count
    sha256: str | None = None

    def check(self, folder: Path) -> None:
        """ValueError naming the file in `folder` if its bytes are not those of the card."""
        if self.sha256 is None:
            return
        actual = sha256(folder / self.file)
        if actual != self.sha256:
            raise ValueError(
                f"{folder / self.file}: damaged: its SHA-256 is {actual[:12]}... and {NAME} says "
                f"{self.sha256[:12]}...; remove it, and from DVC's cache too, and fetch or train "
                "the model again"
            )


class Card(Identity):
    """The content of model.json; validation is strict, so a damaged card is rejected."""

    kind: Literal["naosd"]
    format: Literal[1]
    base: str
    base_sha256: dict[str, str]
    t_add: Timestep | None
    t_diff: Timestep
    prompt: str
    adapters: list[AdapterFile]


def read_card(folder: Path) -> Card:
    """The card of `folder`.

    Errors: ValueError naming the file and the key that is missing or wrong.
    """
    return _card(folder, _read(folder))


def _card(folder: Path, content: dict[str, object]) -> Card:
    card = _checked(Card, folder, content)
    for entry in card.adapters:
        # Cards come from outside: "../x" or an absolute path must not read another file.
        if (folder / entry.file).parent != folder:
            raise ValueError(
                f"{folder / NAME}: adapter file {entry.file!r} is not inside the folder"
            )
    return card


def read_identity(folder: Path) -> Identity:
    """Kind, label and role of a model folder of any kind; of kind naosd the whole `Card`.

    A diffusers folder without a card is a NAOSD without adapters; its label is the folder's name.
    Errors: ValueError naming the folder, or the card and the key that is missing or wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    if not (folder / NAME).exists():
        return unnamed(folder)
    content = _read(folder)
    if content.get("kind") == "naosd":
        return _card(folder, content)
    stated = {key: content[key] for key in Identity.model_fields if key in content}
    return _checked(Identity, folder, stated)


def stated_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a model folder as its card states them, by relative path; {} without
    a card. Loading the model compares them with the files.

    Errors: as `read_identity`.
    """
    if not (folder / NAME).is_file():
        return {}
    identity = read_identity(folder)
    stated: Any = _read(folder).get("sha256")  # of kind vlcot
    if isinstance(identity, Card):
        stated = {entry.file: entry.sha256 for entry in identity.adapters}
    pairs = stated.items() if isinstance(stated, dict) else ()
    return {name: value for name, value in pairs if re.fullmatch("[0-9a-f]{64}", str(value))}


def read_as(kind: type[Stated], folder: Path) -> Stated:
    """The card of `folder`, with the keys of its kind. Errors: as `read_card`."""
    return _checked(kind, folder, _read(folder))


def _read(folder: Path) -> dict[str, object]:
    """The content of model.json, with kind, label and role if it states none of them."""
    content = read_json(folder / NAME)
    # A card with one of these keys is of today's format. If another is missing, validation names
    # it; it must not be guessed as for old cards.
    if Identity.model_fields.keys() & content.keys():
        return content
    entries: Any = content.get("adapters")
    last = entries[-1] if isinstance(entries, list) and entries else {}
    name = str(last.get("file", "")) if isinstance(last, dict) else ""
    identity = IDENTITIES.get(Path(name).stem, unnamed(folder))
    return {**identity.model_dump(), **content}


def _checked(kind: type[Stated], folder: Path, content: dict[str, object]) -> Stated:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        what = (
            "is missing"
            if problem["type"] == "missing"
            else f"is {problem['input']!r}: {problem['msg']}"
        )
        raise ValueError(f"{folder / NAME}: {key} {what}; fetch or make the model again") from error


def base_of(folder: Path, card: Card) -> Path:
    """The folder of the base model that the card of `folder` names; nothing is downloaded.

    Errors: ValueError naming the card if the base is a hub's and not in its cache here.
    """
    if not card.base.startswith("hf://"):
        return Path(os.path.normpath(folder / card.base))
    from huggingface_hub import try_to_load_from_cache

    repository, revision = hub_base(folder, card)
    config_file = try_to_load_from_cache(
        repository, "scheduler/scheduler_config.json", revision=revision
    )
    # The function also returns None, or an object that stands for "known to be missing".
    if not isinstance(config_file, str):
        raise ValueError(
            f"{folder / NAME}: its base model {card.base} is not in the hub's cache here; "
            f"`gdpo-sr fetch --model {folder}` brings it, or name a folder with --base (base=)"
        )
    return Path(config_file).parents[1]


def hub_base(folder: Path, card: Card) -> tuple[str, str]:
    """Repository and revision of a base on the hub.

    Errors: ValueError naming the card if its base is not hf://owner/name@revision.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)@([\w./-]+)", card.base)
    if match is None:
        raise ValueError(
            f"{folder / NAME}: base is {card.base!r}, which is not hf://owner/name@revision"
        )
    return match[1], match[2]


def read_json(path: Path) -> dict[str, object]:
    """A JSON file whose top level is a mapping. Errors: ValueError naming the file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # of syntax, bytes, digits or depth
        raise ValueError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object; fetch or create it again")
    return content
