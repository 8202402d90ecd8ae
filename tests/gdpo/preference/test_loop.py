"""The fine-tuning loop: ln 2 at the first step, cached == recomputed errors, the control, exact resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.model.checkpoints import Adapters
from gdpo.preference import loop
from gdpo.preference.errors import noise_errors
from gdpo.preference.loop import History, _Run, finetune, shuffled
from gdpo.preference.rollout import Group, from_row, rollout, to_row
from gdpo.training import Diverged, Hooks, Stopped
from tests import tiny


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    found = rollout(tiny.model(), [tiny.pair(i) for i in range(5)], tiny.settings().rollout, seed=0)
    return [from_row(to_row(group)) for group in found]


def train(
    groups: list[Group], folder: Path, *, control: bool = False, hooks: Hooks | None = None, **settings: Any
) -> tuple[Adapters, History]:
    config = tiny.settings(finetune={"optimizer": {"lr": 1e-4}, **settings})
    return finetune(
        tiny.model(), groups, config, control=control, folder=folder, fingerprint="test", hooks=hooks or Hooks()
    )  # fmt: skip


def same(a: tuple[Adapters, History], b: tuple[Adapters, History]) -> bool:
    equal = all(torch.equal(a[0].tensors[name], b[0].tensors[name]) for name in a[0].tensors)
    return a[0].tensors.keys() == b[0].tensors.keys() and equal and a[1] == b[1]


def started(groups: list[Group], *, control: bool = False, **settings: Any) -> _Run:
    return _Run(tiny.model(), groups, tiny.settings(finetune=settings), control)


@pytest.mark.parametrize("control", [False, True])
def test_the_first_step_is_ln_2(groups: list[Group], tmp_path: Path, control: bool) -> None:
    _, history = train(groups, tmp_path, control=control, steps=1)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert history[0]["logit"] == history[0]["error_change"] == 0
    assert history[0]["grad_norm"] > 0


def test_cached_errors_are_the_ones_recomputed(groups: list[Group]) -> None:
    """The reference of a group, from the stored latents, with the policy's role in place but not in use."""
    run = started(groups)
    with torch.no_grad():
        for p in run.policy.values():
            p.add_(0.1)
    for group in groups:
        for visit, stored in enumerate(group.reference_error):
            prompt = run.model.embed([group.prompt])
            again = noise_errors(
                run.model, group.latents, prompt, run.config.rollout, seed=0, group=group.id, visit=visit
            ).tolist()  # fmt: skip
            assert again == pytest.approx(stored, rel=1e-6)


def test_training_prefers_the_better_candidates(groups: list[Group], tmp_path: Path) -> None:
    """After a few passes over the same groups the policy ranks their candidates as the rewards do."""
    _, history = train(groups, tmp_path, steps=12, batch=5)
    assert np.mean([row["loss"] for row in history[-4:]]) < 0.6 < history[0]["loss"]
    assert np.mean([row["implicit_accuracy"] for row in history[-4:]]) > 0.8


def test_the_control_shuffles_inside_groups_only(groups: list[Group]) -> None:
    found = shuffled(groups, 0)
    assert [sorted(a) for a in found] == [sorted(group.advantage) for group in groups]
    orders = {tuple(group.advantage.index(a) for a in one) for group, one in zip(groups, found, strict=True)}
    assert len(orders) > 1, "every group has an order of its own"
    assert found == shuffled(groups, 0)
    assert found != shuffled(groups, 1)
    assert shuffled(groups[2:3], 0) == found[2:3]  # by group, not by position
    assert started(groups, control=True).advantages == found
    assert started(groups).advantages == [group.advantage for group in groups]


def test_the_control_differs_in_nothing_but_its_advantages(groups: list[Group], tmp_path: Path) -> None:
    relabelled = [replace(g, advantage=a) for g, a in zip(groups, shuffled(groups, 0), strict=True)]
    control = train(groups, tmp_path / "a", control=True, steps=3)
    assert same(train(relabelled, tmp_path / "b", steps=3), control)


def test_only_the_unets_adapters_train_and_conv_in_stays(groups: list[Group]) -> None:
    run = started(groups)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for step in range(2):
        run.step(step)
    trained = {id(p) for p in run.policy.values()}
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in trained), name
    assert {name.rpartition(".")[2] for name in run.policy} == {"lora_A", "lora_B"}


def test_every_group_once_per_epoch_with_another_noise(groups: list[Group]) -> None:
    run = started(groups)
    visits = [run._visit(position) for position in range(15)]
    for epoch in range(3):
        assert sorted(index for index, _ in visits[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert [visit for _, visit in visits] == [0] * 5 + [1] * 5 + [0] * 5  # two noises are stored
    assert [index for index, _ in visits[:5]] != [index for index, _ in visits[10:]]


def test_accumulated_groups_are_one_batch(groups: list[Group]) -> None:
    """The gradient of a step is the mean of the gradients of its groups."""
    whole = started(groups, batch=4, optimizer={"lr": 1e-4, "clip": 1e6})
    row = whole.step(0)
    parts: list[torch.Tensor] = []
    losses = []
    for position in range(4):
        alone = started(groups, batch=1)
        losses.append(alone._group(*alone._visit(position))["loss"])
        parts.append(torch.cat([p.grad.flatten() for p in alone.policy.values() if p.grad is not None]))
    mean = torch.stack(parts).mean(dim=0)
    assert row["grad_norm"] == pytest.approx(float(mean.norm()), rel=1e-5)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-9)


def test_groups_without_spread_are_counted_and_pull_nowhere(groups: list[Group], tmp_path: Path) -> None:
    flat = [replace(group, advantage=[0.0] * 3, reward=[0.5] * 3) for group in groups]
    adapters, history = train(flat, tmp_path, steps=2, optimizer={"lr": 1e-4, "weight_decay": 0.0})
    assert [row["zero_spread"] for row in history] == [1.0, 1.0]
    assert [row["grad_norm"] for row in history] == [0.0, 0.0]
    assert not any(bool(t.any()) for name, t in adapters.tensors.items() if name.endswith("lora_B"))


def test_two_runs_are_identical(groups: list[Group], tmp_path: Path) -> None:
    assert same(*(train(groups, tmp_path / name, steps=3) for name in "ab"))


@pytest.mark.parametrize(("schedule", "stop_after"), [("constant", 1), ("cosine", 4), ("constant", 5)])
def test_stopped_and_resumed_gives_the_same_adapters(
    groups: list[Group], tmp_path: Path, schedule: str, stop_after: int
) -> None:
    settings: dict[str, Any] = {"steps": 5, "optimizer": {"lr": 1e-4, "schedule": schedule}}
    straight = train(groups, tmp_path / "straight", **settings)
    seen: list[int] = []
    hooks = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == stop_after)
    with pytest.raises(Stopped):
        train(groups, tmp_path / "cut", hooks=hooks, **settings)
    assert same(train(groups, tmp_path / "cut", **settings), straight)


def test_divergence_names_the_step_and_keeps_the_checkpoint(groups: list[Group], tmp_path: Path, monkeypatch: Any) -> None:
    calls = []
    true = loop.noise_errors

    def sometimes_nan(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(0)
        return true(*args, **options) * (torch.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(loop, "noise_errors", sometimes_nan)
    with pytest.raises(Diverged, match=r"step 3: policy_error_BG has values that are NaN .*checkpoint.pt"):
        train(groups, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_no_groups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no rollouts to train on; run the select and rollout stages"):
        train([], tmp_path)
