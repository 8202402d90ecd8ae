"""Shared by the training stages: the compute device, and the training history as a report."""

import json
from pathlib import Path

import torch

from gdpo.files import written_aside
from gdpo.train.world import current
from tasks.paths import STEP_VALUES


def device() -> torch.device:
    """The device of this process: the rank's GPU, else the first GPU in CUDA_VISIBLE_DEVICES, else
    the CPU.
    """
    if (world := current()).size > 1:
        return world.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the values of every step to `folder`/metrics.jsonl, without times, so equal runs on
    equal devices with as many threads give equal bytes.
    """
    with written_aside(folder) as part:
        part.mkdir()
        lines = (json.dumps({**values, "step": int(values["step"])}) for values in history)
        (part / STEP_VALUES).write_text("".join(f"{line}\n" for line in lines))
