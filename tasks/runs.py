"""What the training stages share: a run's fingerprint, and its history as a report."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from gdpo.training import written_aside
from gdpo.world import current


def fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A text that is equal only for equal settings and equal input folders (every file's bytes).

    A checkpoint carries it, so that a run never resumes from one made with other settings or other data. Shards, which may be
    half a terabyte, are no such folder: `Shards.fingerprint()` goes into the settings.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in inputs:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def device() -> torch.device:
    """Where a stage computes: its process's GPU, the GPU that CUDA_VISIBLE_DEVICES leaves first, or the CPU."""
    if (world := current()).size > 1:
        return world.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the values of every step as metrics.jsonl in `folder`: no times in it, so equal runs give equal bytes."""
    with written_aside(folder) as part:
        part.mkdir()
        lines = (json.dumps({**row, "step": int(row["step"])}) for row in history)
        (part / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
