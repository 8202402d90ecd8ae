"""`rollout.input: lr`: the errors of a group at the noised LR latent that its candidates share.

One prediction serves all candidates, and because the advantages sum to 0 the logit is linear in it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gdpo.config import Config
from gdpo.hooks import Hooks, Stopped
from gdpo.images import to_tensor
from gdpo.model import steps
from gdpo.model.schedule import add_noise, predict_x0
from gdpo.preference.errors import NoiseTarget, check_group, noise_target, predict, squared
from gdpo.preference.group import Group, from_row, reward_of, subset, to_row
from gdpo.preference.loop import _Run, finetune
from gdpo.preference.rollout import rollout
from gdpo.seeds import seeded_noise
from gdpo.train.world import World
from tests import tiny

PAIRS = [tiny.pair(i) for i in range(4)]
OBJECTIVES = ["gdpo", "dpo", "dgpo", "nft", "awm"]


def configured(group: int = 3, **finetune_: Any) -> Config:
    return tiny.settings(
        rollout={**tiny.OWN_INPUT, "group": group},
        finetune={"optimizer": {"lr": 1e-4}, **finetune_},
    )


def stored(config: Config) -> list[Group]:
    """A group of each pair after its way through the file, made one by one as online."""
    model = tiny.model()
    made = [next(rollout(model, [pair], config)) for pair in PAIRS]
    return [from_row(to_row(group)) for group in made if isinstance(group, Group)]


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return stored(configured())


def moved(groups: list[Group], config: Config) -> _Run:
    """A run whose policy is away from the reference."""
    run = _Run(tiny.model(), groups, config, False)
    with torch.no_grad():
        for i, parameter in enumerate(run.policy.values()):
            parameter.add_(3e-2 * (-1) ** i)
    return run


def predicted(run: _Run, group: Group, role: str | None) -> tuple[NoiseTarget, torch.Tensor]:
    batch = noise_target(run.model, group, run.config.rollout, 0)
    with torch.no_grad(), run.model.unet_roles.use(role):
        return batch, predict(run.model, batch, run.model.embed([group.prompt]), run.config.rollout)


@torch.no_grad()
def test_the_input_is_the_lr_latent_with_a_noise_of_no_candidate(groups: list[Group]) -> None:
    """And the target of candidate i is what Eq. 4 turns into the latent that was decoded."""
    model, group = tiny.model(), groups[0]
    batch = noise_target(model, group, configured().rollout, 1)
    assert batch.z_noisy.shape == (1, 4, 8, 8) and batch.target.shape == (3, 4, 8, 8)
    assert group.latents.lr is not None and group.latents.std is None
    eps = seeded_noise([group.noise_seeds[1][0]], (4, 8, 8))[0]
    assert torch.equal(batch.z_noisy, add_noise(group.latents.lr.float()[None], eps, 250))
    assert group.noise_seeds[1][0] not in group.seeds
    z_sr = predict_x0(batch.z_noisy.expand(3, -1, -1, -1), batch.target, 100)
    image = (steps.decode(model, z_sr) * 0.5 + 0.5).double()
    hr = to_tensor(PAIRS[0].hr).double()
    assert image.shape[1:] == hr.shape
    (released,) = rollout(model, [PAIRS[0]], tiny.settings(rollout=tiny.SHARED))
    assert isinstance(released, Group) and released.metrics == group.metrics
    again, _ = steps.posterior(model, (image * 2 - 1).float())
    assert torch.allclose(again, released.latents.mean, atol=5e-3), "the same candidates"


def test_the_preference_is_linear_in_the_prediction(groups: list[Group]) -> None:
    """sum_i A_i (m_i - r_i) = -2 mean[(e_policy - e_reference) * sum_i A_i target_i]."""
    run = moved(groups, configured())
    for group in groups:
        advantage = torch.tensor(
            reward_of(group.metrics, group.detail_share, run.config.reward)[1], dtype=torch.float64
        )
        batch, ours = predicted(run, group, "policy")
        _, reference = predicted(run, group, None)
        target = batch.target.double()
        change = squared(ours - target, batch) - squared(reference - target, batch)
        weighted = (advantage[:, None, None, None] * target).sum(0)
        linear = -2 * ((ours - reference)[0] * weighted).mean()
        assert abs(float(linear)) > 1e-4
        assert float((advantage * change).sum()) == pytest.approx(float(linear), rel=1e-9)


def test_reference_and_prediction_are_those_stored(groups: list[Group]) -> None:
    """To the bit: the policy needs one pass and no pass of the reference."""
    run = moved(groups, configured())
    for group in groups:
        for noise, errors in enumerate(group.reference_error):
            batch = noise_target(run.model, group, run.config.rollout, noise)
            with torch.no_grad():
                found = predict(
                    run.model, batch, run.model.embed([group.prompt]), run.config.rollout
                )
            assert batch.reference is not None and torch.equal(batch.reference, found)
            assert squared(found - batch.target.double(), batch).tolist() == errors


@pytest.mark.parametrize("objective", ["gdpo", "nft"])
def test_a_step_has_one_pass_per_group_whatever_its_size(objective: str) -> None:
    for size in (2, 5):
        config = configured(size, objective=objective, batch=3)
        run = _Run(tiny.model(), stored(config), config, False)
        passes: list[int] = []
        run.model.unet.register_forward_hook(
            lambda _, args, out, seen=passes: seen.append(len(args[0]))
        )
        run.step(0)
        assert passes == [1, 1, 1]


def gradient(groups: list[Group], config: Config) -> torch.Tensor:
    run = moved(groups, config)
    run.step(1)
    return torch.cat([p.grad.flatten() for p in run.policy.values() if p.grad is not None])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_change_nothing(groups: list[Group], objective: str) -> None:
    """A group is one input: it is never divided."""
    settings: dict[str, Any] = {"objective": objective, "clip": 9.0}
    whole, parts = (
        gradient(groups, configured(**settings, micro_batch=size)) for size in (None, 1)
    )
    assert whole.norm() > 0 and torch.equal(whole, parts)


class Half(World):
    """One of two processes, whose sums are formed by the test."""

    def add_gradients(self, parameters: Any) -> None:
        """The gradients of this process alone."""

    def add(self, values: dict[str, float]) -> dict[str, float]:
        """The values of this process alone."""
        return values


def test_two_processes_have_the_gradient_of_one(groups: list[Group]) -> None:
    config = configured(batch=3, optimizer={"lr": 1e-4, "clip": 1e9})
    found = []
    for world in (World(), Half(0, 2), Half(1, 2)):
        run = moved(groups, config)
        run.world = world
        run.step(1)
        grads = [p.grad.flatten() for p in run.policy.values() if p.grad is not None]
        found.append(torch.cat(grads))
    whole, *parts = found
    assert float((whole - sum(parts)).norm() / whole.norm()) < 1e-5


def train(folder: Path, groups: list[Group], hooks: Hooks | None = None, **settings: Any) -> Any:
    pairs = PAIRS if settings.get("rollouts") == "online" else []
    return finetune(
        tiny.model(),
        groups,
        configured(**{"steps": 3, **settings}),
        control=False,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
        pairs=pairs,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_online_is_cached_in_the_first_epoch(
    groups: list[Group], objective: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"objective": objective, "steps": 2, "clip": 9.0}
    cached, rows = train(tmp_path / "cached", groups, **options)
    online, others = train(tmp_path / "online", [], rollouts="online", **options)
    for a, b in zip(rows, others, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert rows[1]["error_change"] != 0
    for name, tensor in cached.tensors.items():
        assert torch.allclose(tensor, online.tensors[name], atol=1e-6), name


def test_the_policy_may_sample(tmp_path: Path) -> None:
    _, rows = train(tmp_path, [], rollouts="online", sampler="policy", objective="nft")
    assert [row["grad_norm"] > 0 for row in rows] == [True] * 3


def test_stopped_and_resumed_gives_the_same_adapters(groups: list[Group], tmp_path: Path) -> None:
    straight, rows = train(tmp_path / "straight", groups)
    seen: list[int] = []
    hooks = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 2)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", groups, hooks)
    resumed, again = train(tmp_path / "cut", groups)
    assert rows == again
    for name, tensor in straight.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name])


def test_a_smaller_group_has_the_input_of_the_larger(groups: list[Group]) -> None:
    small = subset(groups[0], 2)
    batch, whole = (
        noise_target(tiny.model(), group, configured().rollout, 0) for group in (small, groups[0])
    )
    assert torch.equal(batch.z_noisy, whole.z_noisy)
    assert torch.equal(batch.target, whole.target[:2])


def test_predictions_are_checked(groups: list[Group]) -> None:
    group = groups[0]
    assert group.latents.prediction is not None
    bad = replace(group, latents=replace(group.latents, prediction=group.latents.prediction[:1]))
    with pytest.raises(ValueError, match=r"^group pair0: latents.prediction has 1 entries for 2"):
        check_group(bad)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise": "own"}, "input lr has one noise for a group"),
        ({"target": "added"}, "set rollout.noise: shared and rollout.target: consistent"),
        ({"candidates": "action"}, "input lr does not go with candidates action"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(changes: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        tiny.settings(rollout={**tiny.OWN_INPUT, **changes})
