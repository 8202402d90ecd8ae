"""The fine-tuning loop: the loss of the first step, cached against recomputed errors, the control
with shuffled advantages, what is trained and logged, and exact resumption.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.preference import loop
from gdpo.preference.group import Group, from_row, reward_of, to_row
from gdpo.preference.loop import History, _Run
from gdpo.preference.order import group_at
from gdpo.preference.rollout import rollout
from tests import tiny
from tests.gdpo.preference.training import (
    PAIRS,
    configured,
    started,
    train,
)


def same(a: tuple[Adapters, History], b: tuple[Adapters, History]) -> bool:
    equal = all(torch.equal(a[0].tensors[name], b[0].tensors[name]) for name in a[0].tensors)
    return a[0].tensors.keys() == b[0].tensors.keys() and equal and a[1] == b[1]


@pytest.mark.parametrize("control", [False, True])
def test_the_first_step_is_ln_2(groups: list[Group], tmp_path: Path, control: bool) -> None:
    _, history = train(groups, tmp_path, control=control, steps=1)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert history[0]["weighted_error_difference"] == history[0]["error_change"] == 0
    assert history[0]["grad_norm"] > 0


def test_cached_errors_are_the_ones_recomputed(groups: list[Group]) -> None:
    """The reference's errors, computed from the stored latents while the policy's adapters are
    loaded but inactive.
    """
    run = started(groups)
    with torch.no_grad():
        for p in run.policy.values():
            p.add_(0.1)
    for group in groups:
        for visit, stored in enumerate(group.reference_error):
            prompt = run.model.embed([group.prompt])
            again = tiny.noise_errors(run.model, group, prompt, run.config.rollout, visit).tolist()
            assert again == pytest.approx(stored, rel=1e-6)


def test_training_prefers_the_better_candidates(groups: list[Group], tmp_path: Path) -> None:
    """After a few epochs the policy ranks the candidates of each group as the rewards do."""
    _, history = train(groups, tmp_path, steps=8, batch=5, checkpoint_every=8)
    assert np.mean([row["loss"] for row in history[-4:]]) < 0.6 < history[0]["loss"]
    assert np.mean([row["implicit_accuracy"] for row in history[-4:]]) > 0.8


def learnt_from(
    run: _Run, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[float]]:
    """The advantages that one epoch trains on, by group id."""
    seen: dict[str, list[float]] = {}
    learn = run._learn

    def noted(group: Group, advantage: list[float], visit: int) -> torch.Tensor:
        seen[group.id] = advantage
        return learn(group, advantage, visit)

    monkeypatch.setattr(run, "_learn", noted)
    for position in range(len(groups)):
        run._position(position)
    return seen


def test_the_control_shuffles_inside_groups_only(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order depends on group and repeat, not on the position; a run that is no control trains
    on the advantages of the configured reward.
    """
    plain = learnt_from(started(groups), groups, monkeypatch)
    assert plain == {
        g.id: reward_of(g.metrics, g.detail_share, configured().reward)[1] for g in groups
    }
    control = learnt_from(started(groups, control=True), groups, monkeypatch)
    assert {k: sorted(v) for k, v in control.items()} == {k: sorted(v) for k, v in plain.items()}
    assert len({tuple(plain[k].index(a) for a in control[k]) for k in plain}) > 1, (
        "every group has an order of its own"
    )
    assert learnt_from(started(groups[2:3], control=True), groups[2:3], monkeypatch) == {
        groups[2].id: control[groups[2].id]
    }
    assert learnt_from(started(groups, control=True, repeat=1), groups, monkeypatch) != control


def test_a_repeat_differs_in_adapters_and_order_and_shares_the_rollouts(
    groups: list[Group],
) -> None:
    first, again, other = (started(groups, repeat=repeat) for repeat in (0, 0, 1))
    name = next(name for name in first.policy if name.endswith("lora_A"))
    assert torch.equal(first.policy[name], again.policy[name]) and not torch.equal(
        first.policy[name], other.policy[name]
    )
    assert [group_at(first.seed, i, 5) for i in range(10)] != [
        group_at(other.seed, i, 5) for i in range(10)
    ]
    noises = (run._group(0, 0)[1] for run in (first, other))
    assert tuple(noises) == (0, 1), "another repeat begins with another stored noise"


def test_only_the_unets_adapters_train_and_conv_in_stays(groups: list[Group]) -> None:
    run = started(groups)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for step in range(2):
        run.step(step)
    trained = {id(p) for p in run.policy.values()}
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in trained), name
    assert {name.rpartition(".")[2] for name in run.policy} == {"lora_A", "lora_B"}


def test_an_epoch_takes_the_next_stored_noise(groups: list[Group]) -> None:
    run = started(groups)  # two noises are stored
    assert [run._group(3, epoch) for epoch in range(3)] == [
        (groups[3], 0),
        (groups[3], 1),
        (groups[3], 0),
    ]


def test_accumulated_groups_are_one_batch(groups: list[Group]) -> None:
    """The gradient of a step is the mean of the gradients of its groups."""
    whole = started(groups, batch=4, optimizer={"lr": 1e-4, "clip": 1e6})
    row = whole.step(0)
    parts: list[torch.Tensor] = []
    losses = []
    for position in range(4):
        alone = started(groups, batch=1)
        losses.append(alone._position(position)[0].item())
        parts.append(
            torch.cat([p.grad.flatten() for p in alone.policy.values() if p.grad is not None])
        )
    mean = torch.stack(parts).mean(dim=0)
    assert row["grad_norm"] == pytest.approx(float(mean.norm()), rel=1e-5)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-9)


def test_values_are_read_back_once_per_step_whatever_the_number_of_groups(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a value back from the device calls `_local_scalar_dense`: as often for one group as
    for five. The reward is left out: it is computed from lists on the host.
    """
    known = {
        id(g.metrics): reward_of(g.metrics, g.detail_share, configured().reward) for g in groups
    }
    monkeypatch.setattr(loop, "reward_of", lambda metrics, *_: known[id(metrics)])
    counts = []
    for batch in (1, 5):
        run = started(groups, batch=batch)
        run.step(0)
        # AdamW counts its steps in tensors of the host.
        monkeypatch.setattr(run.optimizer, "step", lambda: None)
        with tiny.Counted() as counted:
            run.step(1)
        counts.append(counted.calls)
    assert counts == [1, 1], "the norm of the gradient; the values follow as one copy"


def test_mean_and_spread_of_reward_and_metrics_are_logged(
    groups: list[Group], tmp_path: Path
) -> None:
    _, (row,) = train(groups, tmp_path, steps=1, batch=5)
    for name in ("psnr_y", "ssim_y"):
        values = np.array([group.metrics[name] for group in groups])
        assert row[name] == pytest.approx(values.mean(), rel=1e-6)
        assert row[f"{name}_std"] == pytest.approx(values.std(axis=1, ddof=1).mean(), rel=1e-6)
    rewards = np.array(
        [reward_of(g.metrics, g.detail_share, configured().reward)[0] for g in groups]
    )
    assert row["reward"] == pytest.approx(rewards.mean(), rel=1e-6)
    assert row["reward_std"] == pytest.approx(rewards.std(axis=1, ddof=1).mean(), rel=1e-6)


def test_two_runs_are_identical(groups: list[Group], tmp_path: Path) -> None:
    assert same(*(train(groups, tmp_path / name, steps=3) for name in "ab"))


@pytest.mark.parametrize(
    ("schedule", "stop_after"), [("constant", 1), ("cosine", 4), ("constant", 5)]
)
def test_stopped_and_resumed_gives_the_same_adapters(
    groups: list[Group], tmp_path: Path, schedule: str, stop_after: int
) -> None:
    settings: dict[str, Any] = {"steps": 5, "optimizer": {"lr": 1e-4, "schedule": schedule}}
    straight = train(groups, tmp_path / "straight", **settings)
    seen: list[int] = []
    hooks = Hooks(
        log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == stop_after
    )
    with pytest.raises(Stopped):
        train(groups, tmp_path / "cut", hooks=hooks, **settings)
    assert same(train(groups, tmp_path / "cut", **settings), straight)


def test_on_a_bf16_base_the_policy_is_fp32_and_starts_at_the_reference(tmp_path: Path) -> None:
    """Frozen weights are in bf16 and take half the memory, trained ones are in fp32; at the first
    step policy and reference still give the same bits.
    """
    config = configured({"precision": "bf16"}, steps=3, optimizer={"lr": 1e-3})
    model = tiny.model().to(torch.bfloat16)
    groups = [
        group
        for pair in PAIRS
        for group in rollout(model, [pair], config)
        if isinstance(group, Group)
    ]
    assert len(groups) == 5
    run = _Run(model, [from_row(to_row(group)) for group in groups], config, False)
    assert {p.dtype for p in run.policy.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    rows = [run.step(step) for step in range(3)]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-9) and rows[0]["error_change"] == 0
    assert rows[2]["error_change"] != 0 and all(row["grad_norm"] > 0 for row in rows)


def test_a_group_is_read_when_a_step_needs_it(groups: list[Group], tmp_path: Path) -> None:
    """At the paper's size the rollouts are 47 GB: nothing may read all before the first step."""

    class Noted(list[Group]):
        def __init__(self) -> None:
            super().__init__(groups)
            self.read: list[int] = []

        def __getitem__(self, index: Any) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

        def __iter__(self) -> Any:
            raise AssertionError("all groups are read")

    source = Noted()
    train(source, tmp_path, steps=2, batch=2)
    assert len(source.read) == 4


def test_weight_decay_shrinks_every_weight(groups: list[Group]) -> None:
    """AdamW's decay: lr * decay times the weight before the step, whatever the gradient."""
    plain, decayed = (
        started(groups, optimizer={"lr": 1e-2, "weight_decay": decay}) for decay in (0.0, 0.5)
    )
    before = {name: p.detach().clone() for name, p in plain.policy.items() if "lora_A" in name}
    for run in (plain, decayed):
        run.step(0)
    for name, weight in before.items():
        shrunk = (plain.policy[name] - decayed.policy[name]).detach()
        torch.testing.assert_close(shrunk, 0.5e-2 * weight, rtol=1e-3, atol=1e-6)
