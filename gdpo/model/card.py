"""model.json, the card of one of our model folders; only this module reads and writes it.

    {"format": 1, "base": "../sd2.1-base", "base_sha256": {file: hex},
     "t_add": 250, "t_diff": 100, "prompt": "...",
     "adapters": [{"file": "naosd.safetensors", "rank": 4, "alpha": 8}]}

base: path of the base model relative to the folder; "." means that the folder is a diffusers folder
and its own base. t_add: null for a model that injects no noise (OSEDiff).
"""

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from gdpo.config import Section
from gdpo.fields import Count, Timestep

NAME = "model.json"


class Entry(Section):
    """One adapter file, in merging order."""

    file: str
    rank: Count
    alpha: Count


class Card(Section):
    """The content of model.json; validation is strict, so a damaged card is rejected."""

    format: Literal[1]
    base: str
    base_sha256: dict[str, str]
    t_add: Timestep | None
    t_diff: Timestep
    prompt: str
    adapters: list[Entry]

    def write(self, folder: Path) -> None:
        """Write the card into `folder`, which must exist."""
        (folder / NAME).write_text(json.dumps(self.model_dump(), indent=1) + "\n")


def read_card(folder: Path) -> Card:
    """The card of `folder`.

    Errors: ValueError naming the file and the key that is missing or wrong.
    """
    path = folder / NAME
    content = read_json(path)
    try:
        card = Card.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        what = (
            "is missing"
            if problem["type"] == "missing"
            else f"is {problem['input']!r}: {problem['msg']}"
        )
        raise ValueError(f"{path}: {key} {what}; fetch or make the model again") from error
    for entry in card.adapters:
        if (folder / entry.file).parent != folder:
            raise ValueError(f"{path}: adapter file {entry.file!r} is not inside the folder")
    return card


def base_of(folder: Path) -> Path:
    """The diffusers folder of a model folder: the base that its card names, or the folder itself.

    Errors: as `read_card`.
    """
    return (
        Path(os.path.normpath(folder / read_card(folder).base))
        if (folder / NAME).exists()
        else folder
    )


def read_json(path: Path) -> dict[str, object]:
    """A JSON file whose top level is a mapping. Errors: ValueError naming the file."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a mapping is missing; fetch or make it again")
    return found
