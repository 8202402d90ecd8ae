"""The fine-tuning loop: ln 2 at the first step, cached == recomputed errors, the control, exact
resume.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.preference import loop, passes
from gdpo.preference.group import Group, Skipped, from_row, reward_of, to_row
from gdpo.preference.loop import History, _Run, finetune
from gdpo.preference.order import group_at
from gdpo.preference.rollout import rollout
from gdpo.train.loop import Diverged
from tests import tiny


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return stored(tiny.settings())


def stored(config: Config) -> list[Group]:
    """Five groups after their way through the file; made one by one, as the loop makes them
    online.
    """
    model = tiny.model()
    found = [next(rollout(model, [tiny.pair(i)], config)) for i in range(5)]
    return [from_row(to_row(group)) for group in found if isinstance(group, Group)]


PAIRS = [tiny.pair(i) for i in range(5)]
ACTION = {"candidates": "action", "sigma": 0.1}


def configured(rollout_: dict[str, Any] | None = None, **settings: Any) -> Config:
    return tiny.settings(finetune={"optimizer": {"lr": 1e-4}, **settings}, rollout=rollout_ or {})


def train(
    groups: list[Group],
    folder: Path,
    *,
    control: bool = False,
    hooks: Hooks | None = None,
    pairs: list[Pair] | None = None,
    rollout_: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Adapters, History]:
    return finetune(
        tiny.model(),
        groups,
        configured(rollout_, **settings),
        control=control,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
        pairs=pairs or [],
    )


def same(a: tuple[Adapters, History], b: tuple[Adapters, History]) -> bool:
    equal = all(torch.equal(a[0].tensors[name], b[0].tensors[name]) for name in a[0].tensors)
    return a[0].tensors.keys() == b[0].tensors.keys() and equal and a[1] == b[1]


def started(groups: list[Group], *, control: bool = False, **settings: Any) -> _Run:
    return _Run(tiny.model(), groups, tiny.settings(finetune=settings), control)


@pytest.mark.parametrize("control", [False, True])
def test_the_first_step_is_ln_2(groups: list[Group], tmp_path: Path, control: bool) -> None:
    _, history = train(groups, tmp_path, control=control, steps=1)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert history[0]["weighted_error_difference"] == history[0]["error_change"] == 0
    assert history[0]["grad_norm"] > 0


def test_cached_errors_are_the_ones_recomputed(groups: list[Group]) -> None:
    """The reference of a group, from the stored latents, with the policy's role in place but not in
    use.
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
    """After a few passes over the same groups the policy ranks their candidates as the rewards
    do.
    """
    _, history = train(groups, tmp_path, steps=12, batch=5)
    assert np.mean([row["loss"] for row in history[-4:]]) < 0.6 < history[0]["loss"]
    assert np.mean([row["implicit_accuracy"] for row in history[-4:]]) > 0.8


def learnt_from(
    run: _Run, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[float]]:
    """The advantages that one pass over all groups trains on, by group."""
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
    """By group and repeat, not by position; the run itself takes the advantages of the configured
    reward.
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
    assert tuple(noises) == (0, 1), "and begins with another stored noise"


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


OBJECTIVES = ["gdpo", "dpo", "dance_grpo", "dgpo", "nft", "awm"]


def gradient(run: _Run, step: int = 0) -> torch.Tensor:
    """The gradient of one step, unclipped, away from the reference."""
    with torch.no_grad():
        for i, parameter in enumerate(run.policy.values()):
            parameter.add_(1e-3 * (-1) ** i)
    run.step(step)
    return torch.cat([p.grad.flatten() for p in run.policy.values() if p.grad is not None])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_groups_without_spread_are_counted_and_pull_nowhere(
    groups: list[Group], objective: str
) -> None:
    action = ACTION if objective == "dance_grpo" else {}
    flat = [replace(group, metrics={"psnr_y": [20.0] * 3, "ssim_y": [0.5] * 3}) for group in groups]
    run = _Run(tiny.model(), flat, configured(action, objective=objective), False)
    assert not gradient(run).any()
    assert run.step(1)["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_group_in_parts_has_the_gradient_of_the_whole(objective: str, chunk: int) -> None:
    """The group-scalar form, through the UNet: dL/dm_i of the whole group, then backward passes
    over a few candidates.
    """
    action = ACTION if objective == "dance_grpo" else {}
    settings: dict[str, Any] = {
        "objective": objective,
        "clip": 0.5,
        "optimizer": {"lr": 1e-4, "clip": 1e9},
    }
    groups = stored(configured(action, **settings))
    whole, parts = (
        gradient(
            _Run(tiny.model(), groups, configured(action, **settings, micro_batch=size), False)
        )
        for size in (None, chunk)
    )
    assert whole.norm() > 0
    assert float((whole - parts).norm() / whole.norm()) < 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_to_prefer_the_better(objective: str, tmp_path: Path) -> None:
    action = ACTION if objective == "dance_grpo" else {}
    options: dict[str, Any] = {
        "rollout_": action,
        "objective": objective,
        "clip": 0.2,
        "steps": 12,
        "batch": 5,
    }
    _, history = train(stored(configured(action, objective=objective)), tmp_path, **options)
    assert np.mean([row["implicit_accuracy"] for row in history[-4:]]) > 0.7
    assert np.mean([row["weighted_error_difference"] for row in history[-4:]]) < 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_online_is_cached_in_the_first_epoch(objective: str, tmp_path: Path) -> None:
    """The candidates of the first visit are those that the stage stores: the same losses, and the
    same policy.
    """
    action = ACTION if objective == "dance_grpo" else {}
    groups = stored(configured(action, objective=objective))
    options: dict[str, Any] = {"rollout_": action, "objective": objective, "steps": 2}
    cached = train(groups, tmp_path / "cached", **options)
    online = train([], tmp_path / "online", pairs=PAIRS, rollouts="online", **options)
    for a, b in zip(cached[1], online[1], strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    for name, tensor in cached[0].tensors.items():
        assert torch.allclose(tensor, online[0].tensors[name], atol=1e-6), name


def test_online_makes_new_candidates_in_every_later_epoch(groups: list[Group]) -> None:
    run = _Run(tiny.model(), PAIRS, configured(rollouts="online"), False)
    first, again, later = (run._group(1, epoch)[0] for epoch in (0, 0, 1))
    assert isinstance(first, Group) and isinstance(again, Group) and isinstance(later, Group)
    assert first.seeds == again.seeds == groups[1].seeds and first.metrics == groups[1].metrics
    assert not set(later.seeds) & set(first.seeds) and not set(later.noise_seeds[0]) & set(
        first.noise_seeds[0]
    )


def test_online_makes_the_one_noise_that_the_visit_takes(groups: list[Group]) -> None:
    config = configured({"noises": 2}, rollouts="online", repeat=1)  # begins with the second noise
    found, noise = _Run(tiny.model(), PAIRS, config, False)._group(1, 0)
    stored_, index = started(stored(configured({"noises": 2})), repeat=1)._group(1, 0)
    assert isinstance(found, Group) and isinstance(stored_, Group) and (noise, index) == (0, 1)
    assert found.noise_seeds == stored_.noise_seeds[1:] and len(found.reference_error) == 1
    assert found.reference_error[0] == pytest.approx(stored_.reference_error[1], abs=1e-9)


def test_a_set_made_in_batches_gives_the_losses_of_online(tmp_path: Path) -> None:
    """As the stage makes it, five pairs in a forward pass, other kernels round differently: 5e-5 of
    the second loss.
    """
    found = list(rollout(tiny.model(), PAIRS, configured()))
    groups = [from_row(to_row(group)) for group in found if isinstance(group, Group)]
    _, cached = train(groups, tmp_path / "cached", steps=2)
    _, online = train([], tmp_path / "online", pairs=PAIRS, rollouts="online", steps=2)
    assert [row["loss"] for row in cached] == pytest.approx(
        [row["loss"] for row in online], rel=1e-3
    )


def test_the_policy_as_sampler_makes_its_own_candidates(tmp_path: Path) -> None:
    """At first they are the reference's; after a step they are not. The reference's errors stay the
    frozen model's.
    """
    by_policy, by_reference = (
        train([], tmp_path / sampler, pairs=PAIRS, rollouts="online", sampler=sampler, steps=3)[1]
        for sampler in ("policy", "reference")
    )
    assert by_policy[0] == pytest.approx(by_reference[0], abs=1e-6)
    assert by_policy[2]["psnr_y"] != pytest.approx(by_reference[2]["psnr_y"], abs=1e-6)


def test_a_ratio_is_one_where_the_policy_samples(tmp_path: Path) -> None:
    """On-policy the clip never bites: the old policy is the present one, so the loss is -A
    averaged, 0.
    """
    _, history = train(
        [],
        tmp_path,
        pairs=PAIRS,
        rollouts="online",
        sampler="policy",
        objective="dance_grpo",
        rollout_=ACTION,
        steps=3,
    )
    assert [row["loss"] for row in history] == pytest.approx([0.0] * 3, abs=1e-9)
    assert all(row["grad_norm"] > 0 for row in history)


def test_a_group_that_cannot_be_scored_is_counted_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Online: the values are those of the others; a step of skipped groups alone changes nothing, a
    run of them is refused.
    """
    true = rollout

    def without_pair1(model: Any, pairs: list[Pair], *args: Any, **options: Any) -> Any:
        return (
            iter([Skipped("pair1", "no score")])
            if pairs[0].id == "pair1"
            else true(model, pairs, *args, **options)
        )

    monkeypatch.setattr(loop, "rollout", without_pair1)
    _, history = train([], tmp_path / "a", pairs=PAIRS, rollouts="online", steps=1, batch=5)
    _, others = train(
        [], tmp_path / "b", pairs=[PAIRS[0], *PAIRS[2:]], rollouts="online", steps=1, batch=4
    )
    assert (history[0]["skipped"], others[0]["skipped"]) == (1.0, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "pair1 is left out of this step: no score"
    ]
    for name in ("loss", "reward", "psnr_y", "policy_error"):
        assert history[0][name] == pytest.approx(others[0][name], rel=1e-6)
    run = _Run(tiny.model(), PAIRS[:2], configured(rollouts="online", steps=4, batch=1), False)
    order = [PAIRS[group_at(run.seed, step, 2)[0]].id for step in range(2)]
    for step, name in enumerate(order):
        before = {n: p.detach().clone() for n, p in run.policy.items()}
        assert run.step(step)["skipped"] == (name == "pair1")
        assert all(torch.equal(before[n], p) for n, p in run.policy.items()) == (name == "pair1")
    with pytest.raises(
        ValueError,
        match=r"^every pair was left out, for the reasons logged above; check models/naosd",
    ):
        train([], tmp_path / "c", pairs=PAIRS[1:2], rollouts="online", steps=3, batch=1)


def test_values_are_read_back_once_per_step_whatever_the_number_of_groups(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a device shows as `_local_scalar_dense`: as many for one group as for five.

    The reward is left out: it is computed from lists, on the host.
    """
    known = {
        id(g.metrics): reward_of(g.metrics, g.detail_share, configured().reward) for g in groups
    }
    monkeypatch.setattr(loop, "reward_of", lambda metrics, *_: known[id(metrics)])
    counts = []
    for batch in (1, 5):
        run = started(groups, batch=batch)
        run.step(0)
        monkeypatch.setattr(
            run.optimizer, "step", lambda: None
        )  # AdamW counts its steps in tensors of the host
        with tiny.Counted() as counted:
            run.step(1)
        counts.append(counted.calls)
    assert counts == [1, 1], "the norm of the gradient; the values follow as one copy"


def test_an_exploding_error_stops_with_the_last_checkpoint(
    groups: list[Group], tmp_path: Path
) -> None:
    with pytest.raises(
        Diverged,
        match=r"step 2: .* error exploded to \d+ times the reference's with finetune\.omega 500 "
        r"and finetune\.optimizer\.lr 0\.2 by its .*; the last good",
    ):
        train(groups, tmp_path, steps=40, checkpoint_every=1, optimizer={"lr": 0.2})
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    run = started(groups)
    with torch.no_grad():
        for name, parameter in run.policy.items():
            parameter.copy_(kept["state"]["policy"][name])
    row = run.step(kept["step"])
    assert row["policy_error"] < 10 * (row["policy_error"] - row["error_change"]), (
        "it has not exploded yet"
    )


@pytest.mark.parametrize("every", [1, 100])
def test_an_update_that_explodes_is_neither_kept_nor_the_result(
    groups: list[Group], tmp_path: Path, every: int
) -> None:
    """No step sees the weights after the last update, nor those that a checkpoint gets."""
    with pytest.raises(
        Diverged,
        match=r"^step 0: the policy's error exploded to .* by its update; there is no checkpoint "
        r"yet$",
    ):
        train(
            groups,
            tmp_path,
            steps=1 if every > 1 else 9,
            checkpoint_every=every,
            optimizer={"lr": 30.0},
        )
    assert not (tmp_path / "checkpoint.pt").exists()


def test_rollouts_whose_errors_are_not_this_models_are_refused(
    groups: list[Group], tmp_path: Path
) -> None:
    """Whatever made them differ: an untrained policy is the reference."""
    off = [
        replace(g, reference_error=[[e * 1.05 for e in row] for row in g.reference_error])
        for g in groups
    ]
    with pytest.raises(
        ValueError,
        match=r"^the rollouts' reference errors are \+5.0% off those of this model: .* again$",
    ):
        train(off, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_group_that_is_not_finite_is_refused_by_name(groups: list[Group], tmp_path: Path) -> None:
    bad = replace(groups[3], metrics={**groups[3].metrics, "psnr_y": [20.0, float("nan"), 21.0]})
    with pytest.raises(ValueError, match=r"^group pair3: .* finite"):
        train([*groups[:3], bad], tmp_path)


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


def test_divergence_names_the_step_and_keeps_the_checkpoint(
    groups: list[Group], tmp_path: Path, monkeypatch: Any
) -> None:
    calls = []
    true = passes.squared

    def sometimes_nan(*args: Any) -> torch.Tensor:
        calls.append(0)
        return true(*args) * (torch.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(passes, "squared", sometimes_nan)
    with pytest.raises(
        Diverged, match=r"step 2: loss is not finite; the last good checkpoint is .*checkpoint.pt"
    ):
        train(groups, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_no_groups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="there are no rollouts to train on; run the select and rollout stages"
    ):
        train([], tmp_path)


def test_on_a_bf16_base_the_policy_is_fp32_and_starts_at_the_reference(tmp_path: Path) -> None:
    """Half the static memory: frozen weights in bf16, the trained ones in fp32; policy and
    reference still the same bits.
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


@pytest.mark.parametrize("sampler", ["reference", "policy"])
def test_the_old_policy_is_the_one_that_sampled(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The reference for cached rollouts, so that ratios move away from 1 as the policy does."""
    run = started(groups, objective="dgpo", rollouts="cached")
    run.config = run.config.model_copy(
        update={"finetune": run.config.finetune.model_copy(update={"sampler": sampler})}
    )
    with torch.no_grad():
        for p in run.policy.values():
            p.add_(0.02)
    seen = []
    true = loop.objective_loss

    def spy(
        settings: Any, strength: Any, policy: Any, reference: Any, old: Any, *rest: Any
    ) -> torch.Tensor:
        seen.append((policy.detach(), reference, old))
        return true(settings, strength, policy, reference, old, *rest)

    monkeypatch.setattr(loop, "objective_loss", spy)
    run._position(0)
    policy, reference, old = seen[0]
    assert not torch.equal(policy, reference)
    assert torch.equal(old, policy if sampler == "policy" else reference)


def test_weight_decay_shrinks_every_weight(groups: list[Group]) -> None:
    """AdamW: by lr times decay of the weight before the step, whatever the gradient."""
    plain, decayed = (
        started(groups, optimizer={"lr": 1e-2, "weight_decay": decay}) for decay in (0.0, 0.5)
    )
    before = {name: p.detach().clone() for name, p in plain.policy.items() if "lora_A" in name}
    for run in (plain, decayed):
        run.step(0)
    for name, weight in before.items():
        shrunk = (plain.policy[name] - decayed.policy[name]).detach()
        torch.testing.assert_close(shrunk, 0.5e-2 * weight, rtol=1e-3, atol=1e-6)
