"""Shared by the stages of RealSR-R1: the tokenizer and the stages that their tokens belong to."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gdpo.config import Config
from gdpo.errors import one_line
from tasks import paths
from tasks.run.fingerprint import fingerprint

TOKENIZER = paths.TOKENIZER


def made_from(config: Config, root: Path) -> str:
    """The tokenizer's hash and the stages as text; the vocabulary follows from both.

    Errors: ValueError if there is no tokenizer, or naming a file of it that is cut off.
    """
    folder = root / TOKENIZER
    if not folder.is_dir():
        raise ValueError(f"{folder}: no tokenizer here; run the stage vlcot-tokenizer")
    # A damaged tokenizer has another hash: without this check the error would be that the tokens
    # belong to another tokenizer, and name the file of the tokens.
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path}: damaged ({one_line(error)}); remove it, and from DVC's cache too, and "
                "run the stage vlcot-tokenizer again"
            ) from error
    sides = {"stages": config.vlcot.stages, "prompt_side": config.vlcot.prompt_side}
    return json.dumps({"tokenizer": fingerprint({}, [folder]), **sides})
