"""A training moves: its host is gone for ever, and another goes on from the bucket."""

import shutil
from pathlib import Path

import pytest

from flows.workplace import read_lock_entries
from tests.flows.clones import dvc, outputs
from tests.flows.fleet import QUICK, Fleet
from tests.flows.looks import objects
from tests.flows.processes import wait_for

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(2400)]

LONG = {"pretrain.steps": 40, "pretrain.batch": 4, "pretrain.checkpoint_every": 2}
AT_ONCE = {"GDPO_CHECKPOINT_MINUTES": "0"}


def copies(fleet: Fleet) -> list[str]:
    return [key for key in objects(fleet) if key.startswith("results/checkpoints/")]


def test_a_training_goes_on_on_another_host(tmp_path: Path) -> None:
    with Fleet(tmp_path, QUICK | LONG) as fleet:
        straight = fleet.clone("straight")
        dvc(straight, fleet.environment(straight), "repro", "pretrain")
        entries = read_lock_entries(straight)
        inputs = {name: entries[name] for name in entries if name.startswith("degrade@")}
        dvc(straight, fleet.environment(straight), "push", *sorted(inputs))

        fleet.worker("one", "a100", **AT_ONCE)
        run = fleet.start("gdpo-stage/a100", stage="pretrain", lock_entries=inputs)
        wait_for(lambda: copies(fleet), 600, "a copy of a checkpoint")
        assert fleet.state(run)["type"] == "RUNNING"
        fleet.kill("one")
        shutil.rmtree(tmp_path / "one")

        two = fleet.worker("two", "a100", **AT_ONCE)
        again = fleet.start("gdpo-stage/a100", stage="pretrain", lock_entries=inputs)
        state = fleet.finished(again)
        assert state["type"] == "COMPLETED", state["message"]
        wait_for(lambda: "gdpo-sr: going on from step " in fleet.logs(again), 60, "that line")
        assert outputs(two)["models/naosd"] == outputs(straight)["models/naosd"]
        assert outputs(two)["reports/pretrain"] == outputs(straight)["reports/pretrain"]
        assert copies(fleet) == []
