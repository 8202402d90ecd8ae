"""Which weights pretraining returns, and what saves memory: accumulation, recomputation, warm-up,
averages, validation, kept weights.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.data.shards import Shards, write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.pretrain.loop import History, _Run, pretrain
from tests import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards") / "train"
    made = (tiny.pair(i) for i in range(6))
    write_shards(
        folder,
        (type(p)(**{**vars(p), "source": f"photo{i // 2}"}) for i, p in enumerate(made)),
        1.0,
    )
    return Shards(folder)


def started(pairs: Shards, **settings: Any) -> _Run:
    return _Run(tiny.model(), pairs, tiny.settings(pretrain=settings), None)


def train(pairs: Shards, folder: Path, **settings: Any) -> tuple[Adapters, History]:
    hooks, keep = settings.pop("hooks", Hooks()), settings.pop("keep", lambda step, adapters: None)
    return pretrain(
        tiny.model(),
        pairs,
        tiny.settings(pretrain=settings),
        init=None,
        folder=folder,
        fingerprint="test",
        hooks=hooks,
        keep=keep,
    )


@pytest.mark.parametrize("size", [1, 2])
def test_accumulated_parts_give_the_step_of_the_whole_batch(pairs: Shards, size: int) -> None:
    whole, parts = started(pairs, batch=3), started(pairs, batch=3, micro_batch=size)
    assert [len(part) for part in parts.parts] == ([1, 1, 1] if size == 1 else [2, 1])
    for step in range(2):
        assert parts.step(step) == pytest.approx(whole.step(step), rel=1e-3)
    for run in (whole.policy, whole.fake):
        other = parts.policy if run is whole.policy else parts.fake
        for name, parameter in run.items():
            torch.testing.assert_close(other[name].grad, parameter.grad, rtol=1e-2, atol=1e-4)


def test_recomputed_activations_give_the_same_step(pairs: Shards, monkeypatch: Any) -> None:
    """Each block again under its own role, though the roles have changed by then."""
    plain, sparing = started(pairs), started(pairs, gradient_checkpointing=True)
    calls: list[list[str]] = []
    block = sparing.model.unet.down_blocks[0].resnets[0]
    true = block.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(list(sparing.model.unet_roles.active))
        return true(*args, **kwargs)

    monkeypatch.setattr(block, "forward", spy)
    for step in range(2):
        assert sparing.step(step) == pytest.approx(plain.step(step), rel=1e-5)
    # Forward: policy, fake, none; the policy's backward pass; the fake score's both passes.
    assert calls[:6] == [["policy"], ["fake"], [], ["policy"], ["fake"], ["fake"]]
    for name, parameter in plain.policy.items():
        torch.testing.assert_close(sparing.policy[name], parameter, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_over_the_warm_up(pairs: Shards, schedule: str) -> None:
    run = started(pairs, steps=10, warmup=4, optimizer={"lr": 1.0, "schedule": schedule})
    rates = []
    for step in (0, 1, 3, 4, 9):
        run._schedule(step)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0.25, 0.5, 1.0, 1.0])
    assert (rates[4] == 1.0) == (schedule == "constant")


def test_the_average_is_the_result(pairs: Shards, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    plain, _ = train(
        pairs,
        tmp_path / "plain",
        steps=3,
        keep_every=1,
        keep=lambda step, adapters: seen.append(adapters.tensors),
    )
    averaged, _ = train(pairs, tmp_path / "averaged", steps=3, ema=0.75)
    start = started(pairs).policy
    for name, last in plain.tensors.items():
        expected = start[name].detach()
        for weights in seen:
            expected = 0.75 * expected + 0.25 * weights[name]
        torch.testing.assert_close(averaged.tensors[name], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(seen[-1][name], last)


def test_the_best_by_validation_is_the_result(pairs: Shards, tmp_path: Path) -> None:
    """Of photographs that no step saw; the training goes on from its own weights."""
    settings = {"steps": 6, "validate_every": 2, "validate_pairs": 2, "keep_every": 2}
    kept: dict[int, Adapters] = {}
    result, history = train(
        pairs, tmp_path, **settings, keep=lambda step, adapters: kept.update({step: adapters})
    )
    losses = {int(row["step"]) + 1: row["validation"] for row in history if "validation" in row}
    assert set(losses) == {2, 4, 6} and len(set(losses.values())) == 3
    best = min(losses, key=losses.__getitem__)
    for name, tensor in kept[best].tensors.items():
        assert torch.equal(result.tensors[name], tensor)
    run = started(pairs, **settings)
    seen = {pairs.photograph_of(run._index(position)) for position in range(8)}
    held = min(pairs.photographs(), key=lambda name: hashlib.sha256(name.encode()).digest())
    assert seen == {"photo0", "photo1", "photo2"} - {held}
    assert {pairs.photograph_of(index) for index in run.validation} == {held}
    run._index = lambda position: position
    before = run.validation_loss()
    assert before == run.validation_loss() and before > 0


def test_a_stopped_run_with_average_and_validation_goes_on_to_the_same_bytes(
    pairs: Shards, tmp_path: Path
) -> None:
    settings = {"steps": 4, "ema": 0.5, "validate_every": 1, "validate_pairs": 2}
    straight = train(pairs, tmp_path / "straight", **settings)
    seen: list[int] = []
    hooks = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 3)
    with pytest.raises(Stopped):
        train(pairs, tmp_path / "cut", **settings, hooks=hooks)
    again = train(pairs, tmp_path / "cut", **settings)
    assert again[1] == straight[1]
    assert all(torch.equal(again[0].tensors[n], t) for n, t in straight[0].tensors.items())


def test_a_validation_that_takes_all_photographs_is_refused(pairs: Shards) -> None:
    with pytest.raises(ValueError, match=r"pretrain.validate_pairs is 6, .* \(6 pairs\); lower it"):
        started(pairs, validate_every=1, validate_pairs=6)
