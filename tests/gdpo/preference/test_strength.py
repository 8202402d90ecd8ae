"""Strengths by rule: where each objective gives way, what the probe measures, and the warnings."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Config, Finetune
from gdpo.hooks import Hooks, Stopped
from gdpo.preference import loop
from gdpo.preference.group import Group, from_row, to_row
from gdpo.preference.loop import _Run, finetune
from gdpo.preference.objectives import Strength
from gdpo.preference.rollout import rollout
from gdpo.preference.strength import Probe, probe, strength_of, warn_of_excess
from tests import tiny

NULL = dict.fromkeys(("omega", "beta", "clip", "mix"))
INPUTS = {"lr": tiny.OWN_INPUT, "reencoded": {}}


def ruled(objective: str, found: Probe, **changes: Any) -> Strength:
    settings = Finetune.model_validate({"objective": objective, "reach": 0.2, **NULL, **changes})
    return strength_of(settings, 5, 0.1, lambda: found)


def test_the_rule_by_hand() -> None:
    """m - r spreads by 0.01 at distance 0.05, so by 0.04 at the reach of 0.2."""
    found = Probe(0.01, 0.05)
    assert ruled("gdpo", found).omega == pytest.approx(2 / (0.04 * 2))
    assert ruled("dpo", found).omega == pytest.approx(2 / (0.04 * 2**0.5))
    assert ruled("dgpo", found).beta == pytest.approx(5 * 25 / 2)
    assert ruled("dgpo", found).clip == ruled("awm", found).clip == pytest.approx(0.04)
    assert ruled("dance_grpo", found).clip == pytest.approx(0.04 / (2 * 0.1**2))
    assert ruled("nft", found).mix == pytest.approx(1.0)


def test_the_unit_of_the_errors_plays_no_part() -> None:
    """Errors a hundred times as large, as of another latent: omega times m - r stays."""
    one, other = (ruled("gdpo", Probe(0.01 * unit, 0.05)).omega * unit for unit in (1, 100))
    assert one == pytest.approx(other)


def test_what_is_set_stays_and_needs_no_probe() -> None:
    settings = Finetune.model_validate({"objective": "dgpo", "beta": 7.0, "clip": 0.5})
    found = strength_of(settings, 5, 0.1, lambda: pytest.fail("nothing is null"))
    assert (found.beta, found.clip, found.omega) == (7.0, 0.5, 5000.0)
    nft = Finetune.model_validate({"objective": "nft", "reach": 0.1, **NULL})
    assert strength_of(nft, 5, 0.1, lambda: pytest.fail("mix has a formula")).mix == 2.0


def test_equal_scores_have_no_strength() -> None:
    with pytest.raises(ValueError, match=r"^finetune.omega is null, and no preference moves"):
        ruled("gdpo", Probe(0.0, 0.0))


def configured(input_: str, **changes: Any) -> Config:
    settings = {"omega": None, "reach": 0.02, "optimizer": {"lr": 1e-4}, **changes}
    return tiny.settings(rollout=INPUTS[input_], finetune=settings)


def stored(input_: str) -> list[Group]:
    made = rollout(tiny.model(), [tiny.pair(i) for i in range(3)], configured(input_))
    return [from_row(to_row(group)) for group in made if isinstance(group, Group)]


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Group]]:
    return {name: stored(name) for name in INPUTS}


@pytest.mark.parametrize("input_", INPUTS)
def test_the_logit_has_unit_variance_at_the_reach(
    groups: dict[str, list[Group]], input_: str
) -> None:
    """The policy is put at the distance, in the direction of the probe, and measured there."""
    run = _Run(tiny.model(), groups[input_], configured(input_), False)
    rate = 1e-4
    measured = probe(run._scored, run.passes, list(run.policy.values()), rate, run.world)
    at = rate * 0.02 / measured.distance
    there = probe(run._scored, run.passes, list(run.policy.values()), at, run.world)
    assert there.distance == pytest.approx(0.02, rel=0.05)
    assert run.strength.omega / 2 * 2**0.5 * there.spread == pytest.approx(1, rel=0.1)


def test_the_probe_leaves_no_trace_and_the_control_has_the_same_strength(
    groups: dict[str, list[Group]],
) -> None:
    run, control = (_Run(tiny.model(), groups["lr"], configured("lr"), c) for c in (False, True))
    plain = _Run(tiny.model(), groups["lr"], configured("lr", omega=1.0), False)
    assert run.strength == control.strength and run.strength.omega > 0
    for name, parameter in plain.policy.items():
        assert torch.equal(parameter, run.policy[name])
        assert run.policy[name].grad is not None and not run.policy[name].grad.any()


def trained(folder: Path, groups: list[Group], hooks: Hooks | None = None, **changes: Any) -> Any:
    config = configured("lr", **{"steps": 3, **changes})
    return finetune(
        tiny.model(),
        groups,
        config,
        control=False,
        folder=folder,
        fingerprint="",
        hooks=hooks or Hooks(),
    )


def test_a_resumed_run_has_the_strength_of_the_whole(
    groups: dict[str, list[Group]], tmp_path: Path
) -> None:
    _, rows = trained(tmp_path / "whole", groups["lr"])
    seen: list[int] = []
    hooks = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 1)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", groups["lr"], hooks)
    assert trained(tmp_path / "cut", groups["lr"])[1] == rows
    assert rows[0]["logit_std"] == rows[0]["distance"] == 0 < rows[2]["logit_std"]
    assert rows[1]["distance"] < rows[2]["distance"]


def test_the_first_epoch_is_judged(
    groups: dict[str, list[Group]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(loop, "warn_of_excess", lambda *args: given.append(args))
    _, rows = trained(tmp_path, groups["lr"], batch=2, omega=1e-3)
    ((losses, settings, named),) = given
    assert losses == [row["loss"] for row in rows[:2]]
    assert (settings.omega, named) == (1e-3, "finetune.omega 0.001")


@pytest.mark.parametrize(
    ("omega", "advice"),
    [
        (5000.0, "lower it, or set it to null, and it follows from finetune.reach"),
        (None, "lower finetune.reach, now 0.4, from which it follows"),
    ],
)
def test_a_strength_that_is_too_great_is_named_with_what_to_do(
    caplog: pytest.LogCaptureFixture, omega: float | None, advice: str
) -> None:
    settings = tiny.settings(finetune={"omega": omega, "reach": 0.4}).finetune
    warn_of_excess([0.69, 0.80], settings, "finetune.omega 5000")
    (record,) = caplog.records
    assert record.getMessage() == (
        "the mean loss of the first epoch is 0.745, above the ln 2 of a policy without preference: "
        f"finetune.omega 5000 is too strong for these rollouts; {advice}"
    )


def test_no_warning_for_a_loss_without_a_logit(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_excess([0.9], tiny.settings(finetune={"objective": "nft"}).finetune, "")
    warn_of_excess([0.69, 0.70], tiny.settings().finetune, "")
    assert not caplog.records
