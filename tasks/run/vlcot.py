"""Shared by the stages of RealSR-R1: the tokenizer and the stages that their tokens belong to."""

import json
from pathlib import Path

from gdpo.config import Config
from tasks import paths
from tasks.run.fingerprint import fingerprint

TOKENIZER = paths.TOKENIZER


def made_from(config: Config, root: Path) -> str:
    """The tokenizer's hash and the stages as text; the vocabulary follows from both.

    Errors: ValueError if there is no tokenizer.
    """
    folder = root / TOKENIZER
    if not folder.is_dir():
        raise ValueError(f"{folder}: no tokenizer here; run the stage vlcot-tokenizer")
    sides = {"stages": config.vlcot.stages, "prompt_side": config.vlcot.prompt_side}
    return json.dumps({"tokenizer": fingerprint({}, [folder]), **sides})
