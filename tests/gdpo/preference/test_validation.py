"""Validation while a policy trains: it changes no weight, starts at NAOSD, and says what the policy
does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config import Config
from gdpo.evaluate.benchmark import VALIDATION
from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.preference.group import Group, from_row, to_row
from gdpo.preference.loop import History, finetune
from gdpo.preference.rollout import rollout
from gdpo.preference.validation import PolicyValidation
from tests import tiny

APART = [tiny.pair(i) for i in (11, 12)]
LOGGED = {f"{VALIDATION}{name}" for name in ("reward", "psnr_y", "ssim_y")}


def configured(**finetune_: Any) -> Config:
    validation = {"photographs": "photos", "every": 2, "crop": 32, "noises": 2}
    return tiny.settings(finetune={"steps": 5, "validation": validation, **finetune_})


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    model = tiny.model()
    found = [next(rollout(model, [tiny.pair(i)], configured())) for i in range(4)]
    return [from_row(to_row(group)) for group in found if isinstance(group, Group)]


def train(
    groups: list[Group], folder: Path, *, validated: bool = True, hooks: Hooks | None = None
) -> tuple[Adapters, History]:
    return finetune(
        tiny.model(),
        groups,
        configured(),
        control=False,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
        validation=APART if validated else (),
    )


def plain(history: History) -> History:
    return [{k: v for k, v in row.items() if k not in LOGGED} for row in history]


def test_it_changes_neither_weights_nor_the_other_values(
    groups: list[Group], tmp_path: Path
) -> None:
    with_it, without = train(groups, tmp_path / "a"), train(groups, tmp_path / "b", validated=False)
    for name, tensor in without[0].tensors.items():
        assert torch.equal(with_it[0].tensors[name], tensor)
    assert plain(with_it[1]) == without[1] and with_it[1] != without[1]


def test_it_starts_at_naosd_and_is_logged_every_few_steps(
    groups: list[Group], tmp_path: Path
) -> None:
    history = train(groups, tmp_path)[1]
    rows = {int(row["step"]): row for row in history if LOGGED & row.keys()}
    assert list(rows) == [0, 1, 3] and all(row.keys() >= LOGGED for row in rows.values())
    assert rows[0]["validation_reward"] == pytest.approx(0, abs=1e-12)
    assert rows[3]["validation_reward"] != 0 and rows[3]["validation_psnr_y"] != 0


def test_a_stopped_training_logs_the_same(groups: list[Group], tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        train(groups, tmp_path / "a", hooks=Hooks(should_stop=lambda: next(asked)))
    assert train(groups, tmp_path / "a")[1] == train(groups, tmp_path / "b")[1]


def test_the_reward_is_that_of_the_metrics_in_units_of_the_reference() -> None:
    """Equal weights of one metric per side: half of each difference over its within-image standard
    deviation.
    """
    config = tiny.settings(
        finetune=configured().finetune.model_dump(),
        reward={"fidelity": ["psnr_y"], "perception": ["ssim_y"], "weighting": "equal"},
    )
    model = tiny.model()
    model.unet_roles.add("policy", config.finetune.lora, seed=0)
    with torch.no_grad():
        for parameter in model.unet_roles.parameters("policy").values():
            parameter.add_(0.05)
    validation = PolicyValidation(model, APART, config)
    scores = {**validation._reference, **validation._scores("policy", "policy")}
    expected = 0.0
    for metric in ("psnr_y", "ssim_y"):
        reference, policy = scores["reference"][metric], scores["policy"][metric]
        unit = np.sqrt(reference.var(axis=1, ddof=1).mean())
        expected += 0.5 * float((policy - reference).mean()) / unit
    assert validation._values("policy")["validation_reward"] == pytest.approx(expected)
    assert abs(expected) > 1e-3
