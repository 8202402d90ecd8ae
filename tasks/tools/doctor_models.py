"""The model check of `doctor --models`: are the weights those that their cards name?"""

import json
import sys
from pathlib import Path

from gdpo.errors import one_line
from gdpo.model.base import base_hashes
from gdpo.model.card import NAME, base_of, read_as, read_card, read_identity
from gdpo.vlcot.folder import Card
from gdpo.walk import walk


def scan(folder: Path, as_json: bool) -> int:
    """Hash the weights of every model below `folder` and list what is damaged; 1 if anything is.

    Errors: ValueError if there is no model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    models = [path.parent for path in walk(folder).files if path.name == NAME]
    if not models:
        raise ValueError(f"{folder}: no model here; train or fetch one")
    problems = [problem for model in models for problem in damages(model)]
    if as_json:
        result = {"ok": not problems, "models": [str(m) for m in models], "damaged": problems}
        text = json.dumps(result, indent=1)
    else:
        text = "\n".join([*problems, f"{len(models)} models, {len(problems) or 'nothing'} damaged"])
    sys.stdout.write(f"{text}\n")
    return 1 if problems else 0


def damages(folder: Path) -> list[str]:
    """A line for each file of a model folder, or of its base, that is not what the card names."""
    problems = []
    try:
        kind = read_identity(folder).kind
        if kind == "vlcot":
            return read_as(Card, folder).damages(folder)
        if kind != "naosd":
            return []
        card = read_card(folder)
        base = base_of(folder, card)
        for name, actual in base_hashes(base).items():
            if actual != card.base_sha256.get(name):
                problems.append(f"{base / name}: is not the file that {folder / NAME} names")
    except (ValueError, OSError) as error:
        return [one_line(error)]
    for entry in card.adapters:
        try:
            if entry.sha256 is None:
                problems.append(
                    f"{folder / entry.file}: {NAME} is of an earlier version and names no SHA-256; "
                    "make the model again"
                )
            entry.check(folder)
        except (ValueError, OSError) as error:
            problems.append(one_line(error))
    return problems
