"""Golden trajectories: 20 optimiser steps of both training loops on fixed tiny inputs, committed in
tests/golden/.

A change that should not change the arithmetic must leave them alone. Two machines differ in the
last bits of their kernels, and 20 steps amplify that: measured over instruction sets and thread
counts the values agree to 1e-4, so 1e-3 relative is asked for here. (Two runs on one machine are
bit-identical:
test_loop.py of pretrain/ and preference/.)

    python -m tests.gdpo.test_golden --write      after a change that is meant to change them
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from gdpo.data.shards import Shards, write_shards
from gdpo.hooks import Hooks
from gdpo.preference.group import Group
from gdpo.preference.loop import finetune
from gdpo.preference.rollout import rollout
from gdpo.pretrain.loop import pretrain
from tests import tiny

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
TOLERANCE = 1e-3
LOGGED = {
    "pretrain": ("loss", "grad_norm", "fake_loss", "fake_grad_norm"),
    "finetune": ("loss", "grad_norm"),
    "finetune_lr": ("loss", "grad_norm"),  # with rollout.input: lr
}
SETTINGS = {
    "pretrain": {"steps": STEPS, "optimizer": {"lr": 1e-4}},
    "finetune": {"steps": STEPS, "optimizer": {"lr": 2e-5}},
}
CONFIG = tiny.settings(**SETTINGS)
OWN_INPUT = tiny.settings(**SETTINGS, rollout=tiny.OWN_INPUT)


def trajectory(stage: str, folder: Path) -> list[dict[str, float]]:
    """What every step logs, without the rest of the row."""
    model = tiny.model()
    if stage == "pretrain":
        write_shards(folder / "train", (tiny.pair(i) for i in range(5)), 1.0)
        shards = Shards(folder / "train")
        _, history = pretrain(
            model, shards, CONFIG, init=None, folder=folder, fingerprint="", hooks=Hooks()
        )
    else:
        config = OWN_INPUT if stage == "finetune_lr" else CONFIG
        made = rollout(model, [tiny.pair(i) for i in range(5)], config)
        groups = [group for group in made if isinstance(group, Group)]
        _, history = finetune(
            model, groups, config, control=False, folder=folder, fingerprint="", hooks=Hooks()
        )
    return [{name: row[name] for name in LOGGED[stage]} for row in history]


@pytest.mark.parametrize("stage", LOGGED)
def test_the_committed_trajectory(stage: str, tmp_path: Path) -> None:
    wanted = json.loads((GOLDEN / f"{stage}.json").read_text())
    found = trajectory(stage, tmp_path)
    assert len(found) == len(wanted) == STEPS
    for step, (row, golden) in enumerate(zip(found, wanted, strict=True)):
        assert row == pytest.approx(golden, rel=TOLERANCE), f"step {step}"


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for stage in LOGGED:
        with tempfile.TemporaryDirectory() as folder:
            rows = trajectory(stage, Path(folder))
        lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
        (GOLDEN / f"{stage}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.gdpo.test_golden --write")
    write()
