"""The training stages, their checkpoints and their outputs."""

import os
from collections.abc import Callable
from pathlib import Path

from gdpo.config import Config
from gdpo.hooks import Hooks
from tasks.stages import finetune, pretrain
from tests import tiny

STAGES: dict[str, Callable[[Config, Path, Hooks], None]] = {
    "pretrain": pretrain.run,
    "finetune": finetune.run,
}
CHECKPOINT = {
    "pretrain": "work/pretrain/checkpoint.pt",
    "finetune": "work/finetune/gdpo/checkpoint.pt",
}


def outputs(root: Path) -> dict[str, bytes]:
    return tiny.tree(root / "models", root / "reports")


def cut(path: str) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / path, (root / path).stat().st_size // 2)


ONLINE = {"rollouts": "online"}
