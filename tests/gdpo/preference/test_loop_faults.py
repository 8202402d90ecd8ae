"""Groups without scores, errors that are not finite, and rollouts of another model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.data.shards import Pair
from gdpo.preference import loop, passes
from gdpo.preference.group import Group, Skipped
from gdpo.preference.loop import _Run
from gdpo.preference.order import group_at
from gdpo.preference.rollout import rollout
from gdpo.train.loop import Diverged
from tests import tiny
from tests.gdpo.preference.training import PAIRS, configured, started, train


def test_a_group_that_cannot_be_scored_is_counted_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Online: the logged values are the means over the other groups. A step in which every group is
    skipped changes no weight, and a run in which every group is skipped is refused.
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
    """The weights after the last update, and those of a checkpoint, are checked as well: no later
    step would see them.
    """
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
    """Whatever the cause: the errors of an untrained policy are those of the reference."""
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
