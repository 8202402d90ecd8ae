"""A fingerprint of a run's settings and input folders."""

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A SHA-256 that is equal only for equal settings and equal input folders (every file's path
    and bytes).

    Checkpoints store it, so a run never resumes from a checkpoint of other settings or data. Shards
    may hold half a terabyte and are not hashed here: put `Shards.fingerprint()` into `settings`.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in inputs:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
