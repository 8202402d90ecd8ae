"""Rollouts: what a group holds, that it does not depend on its neighbours, and its way through
Parquet.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config, Lora, Reward
from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.model import steps
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.preference.group import Group, Skipped, from_row, reward_of, schema, subset, to_row
from gdpo.preference.rollout import _computed, rollout
from gdpo.seeds import Key, seed_of, seeded_noise
from tests import tiny

CONFIG = tiny.settings()


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


@pytest.fixture(scope="module")
def groups(model: NAOSD) -> list[Group]:
    return made(model, [0, 1])


def made(model: NAOSD, indices: list[int], config: Config = CONFIG, **options: Any) -> list[Group]:
    """The groups of a few pairs; none may be skipped."""
    found = list(rollout(model, [tiny.pair(i) for i in indices], config, **options))
    return [group for group in found if isinstance(group, Group)]


def test_a_group_holds_the_scores_of_its_candidates(model: NAOSD, groups: list[Group]) -> None:
    for index, group in enumerate(groups):
        pair = tiny.pair(index)
        lr = to_tensor(enlarge(pair.lr, (32, 32), pair.degradation["enlarge"]))[None]
        hr = to_tensor(pair.hr)[None]
        keys: list[Key] = [(0, "rollout", pair.id, i) for i in range(3)]
        image = super_resolve(model, lr, keys, color_fix="none", precision="fp32", per_image=3)
        wanted = score(["psnr_y", "ssim_y"], image, hr.expand(3, -1, -1, -1))
        assert group.id == pair.id and group.prompt == "sharp"
        for name, values in wanted.items():
            assert group.metrics[name] == pytest.approx(values.tolist(), rel=1e-4)
            assert len(set(group.metrics[name])) == 3
        assert group.detail_share == pair.detail_share  # one grey-value rule: the shard's
        assert group.seeds == [seed_of(*key) for key in keys]
        assert group.lr == hashlib.sha256(pair.lr.tobytes()).hexdigest()
        with torch.no_grad():
            mean, _ = steps.posterior(model, image * 2 - 1)
        assert torch.allclose(group.latents.mean, mean, atol=2e-3)  # rounded to fp16


def test_candidates_and_errors_have_the_prompt_of_training(
    model: NAOSD, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    embed = model.embed

    def noted(texts: list[str]) -> torch.Tensor:
        seen.append(texts)
        return embed(texts)

    monkeypatch.setattr(model, "embed", noted)
    tagged = replace(tiny.pair(0), tags="cat, grass")
    (group,) = rollout(model, [tagged], tiny.settings(model={"training_prompt": ""}))
    assert (
        isinstance(group, Group) and group.prompt == "cat, grass, " and group.tags == "cat, grass"
    )
    # Once for all candidates, then for all noise errors.
    assert seen == [
        ["cat, grass, "],
        ["cat, grass, "],
    ]
    assert group.reference_error != groups[0].reference_error


def test_scores_are_of_the_colour_corrected_candidates_and_latents_of_the_plain_ones(
    model: NAOSD, groups: list[Group]
) -> None:
    (fixed,) = made(model, [0], tiny.settings(rollout={"color_fix": "adain"}))
    assert fixed.metrics["psnr_y"] != pytest.approx(groups[0].metrics["psnr_y"], rel=1e-2)
    assert torch.allclose(fixed.latents.mean, groups[0].latents.mean, atol=2e-3)


def test_a_group_does_not_depend_on_its_neighbours(model: NAOSD, groups: list[Group]) -> None:
    (alone,) = made(model, [1])
    for name, values in alone.metrics.items():
        assert values == pytest.approx(groups[1].metrics[name], rel=1e-4)
    assert torch.allclose(alone.latents.mean, groups[1].latents.mean, atol=2e-3)
    for a, b in zip(alone.reference_error, groups[1].reference_error, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_seeds_and_draws_change_the_candidates(model: NAOSD, groups: list[Group]) -> None:
    others = made(model, [0], CONFIG.model_copy(update={"seed": 1})), made(model, [0], epoch=1)
    values = [group.metrics["psnr_y"] for group in (groups[0], others[0][0], others[1][0])]
    for i, a in enumerate(values):
        assert all(a != pytest.approx(b, rel=1e-4) for b in values[i + 1 :])


def test_a_smaller_group_is_the_first_candidates_of_a_larger_one(
    model: NAOSD, groups: list[Group]
) -> None:
    (small,), first = made(model, [0], tiny.settings(rollout={"group": 2})), subset(groups[0], 2)
    assert (first.seeds, first.noise_seeds) == (small.seeds, small.noise_seeds)
    for name, values in small.metrics.items():
        assert first.metrics[name] == pytest.approx(values, rel=1e-4)
    assert torch.allclose(first.latents.mean, small.latents.mean, atol=2e-3)
    for a, b in zip(first.reference_error, small.reference_error, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    with pytest.raises(
        ValueError, match=r"^group pair0 has 3 candidates; a subset of 4 cannot be taken$"
    ):
        subset(groups[0], 4)


def test_candidates_of_another_role_are_scored_by_the_same_reference(model: NAOSD) -> None:
    other = tiny.model()
    other.unet_roles.add("policy", Lora(rank=2, alpha=4), seed=0)
    (same,) = made(other, [0], role="policy")
    assert same.metrics == made(model, [0])[0].metrics, "an untrained policy is the reference"
    with torch.no_grad():
        for parameter in other.unet_roles.parameters("policy").values():
            parameter.add_(0.05)
    (moved,) = made(other, [0], role="policy")
    assert moved.metrics["psnr_y"] != pytest.approx(same.metrics["psnr_y"], rel=1e-4)
    with torch.no_grad():
        again = tiny.noise_errors(other, moved, other.embed([moved.prompt]), CONFIG.rollout, 0)
    assert again.tolist() == moved.reference_error[0], "no role in use: the frozen model"


@torch.no_grad()
def test_an_action_is_a_gaussian_around_the_reference(model: NAOSD) -> None:
    """The candidate is the decoded action; the reference's error is that of its own Gaussian,
    sigma^2 mean(xi^2).
    """
    config = tiny.settings(
        rollout={"candidates": "action", "sigma": 0.1}, finetune={"objective": "dance_grpo"}
    )
    (group,), (plain,) = made(model, [0], config), made(model, [0])
    xi = seeded_noise(group.seeds, (4, 8, 8), 3)[2]
    wanted = 0.1**2 * xi.square().mean(dim=(1, 2, 3))
    # The action is stored in fp16.
    assert group.reference_error[0] == pytest.approx(wanted.tolist(), rel=2e-3)
    assert group.latents.std is None and group.latents.lr is not None
    image = model.decode(group.latents.mean) * 0.5 + 0.5
    scores = score(["psnr_y"], image, to_tensor(tiny.pair(0).hr).expand(3, -1, -1, -1))["psnr_y"]
    assert group.metrics["psnr_y"] == pytest.approx(scores.tolist(), rel=1e-5)
    assert group.metrics["psnr_y"] != pytest.approx(plain.metrics["psnr_y"], rel=1e-4)
    again = from_row(to_row(group))
    assert again.latents.lr is not None and torch.equal(again.latents.lr.float(), group.latents.lr)
    assert (
        tiny.noise_errors(model, again, model.embed([again.prompt]), config.rollout, 0).tolist()
        == group.reference_error[0]
    )


@torch.no_grad()
def test_candidates_by_t_add_share_the_noise_and_differ_in_its_level(
    model: NAOSD, groups: list[Group]
) -> None:
    """Timesteps 150, 250, 350 over a group of three; the middle one is what NAOSD's own t_add makes
    of the first noise.
    """
    (group,) = made(
        model, [0], tiny.settings(rollout={"candidates": "t_add", "t_add_range": [150, 350]})
    )
    assert group.metrics["psnr_y"][1] == pytest.approx(groups[0].metrics["psnr_y"][0], rel=1e-4)
    assert len(set(group.metrics["psnr_y"])) == 3


@torch.no_grad()
def test_candidates_by_guidance_share_the_noise_and_start_unguided(
    model: NAOSD, groups: list[Group]
) -> None:
    (group,) = made(
        model, [0], tiny.settings(rollout={"candidates": "guidance", "guidance_range": [1.0, 3.0]})
    )
    assert group.metrics["psnr_y"][0] == pytest.approx(groups[0].metrics["psnr_y"][0], rel=1e-4)
    assert len(set(group.metrics["psnr_y"])) == 3
    (alike,) = made(
        model, [0], tiny.settings(rollout={"candidates": "guidance", "guidance_range": [2.0, 2.0]})
    )
    first, *others = alike.metrics["psnr_y"]
    assert others == pytest.approx([first] * 2, rel=1e-6)


def test_rows_survive_parquet_and_give_the_same_errors_to_the_bit(
    model: NAOSD, groups: list[Group], tmp_path: Path
) -> None:
    described = schema(CONFIG.rollout, json.dumps({"seed": 0}))
    pq.write_table(
        pa.Table.from_pylist([to_row(group) for group in groups], schema=described),
        tmp_path / "a.parquet",
    )
    table = pq.read_table(tmp_path / "a.parquet")
    assert json.loads(table.schema.metadata[b"rollout"]) == {"seed": 0}
    for row, group in zip(table.to_pylist(), groups, strict=True):
        found = from_row(row)
        for name in (
            "id",
            "lr",
            "tags",
            "prompt",
            "detail_share",
            "seeds",
            "metrics",
            "noise_seeds",
            "reference_error",
        ):
            assert getattr(found, name) == getattr(group, name)
        assert found.latents.mean.dtype == torch.float16 and torch.equal(
            found.latents.mean.float(), group.latents.mean
        )
        assert torch.equal(found.latents.std.float(), group.latents.std)
        assert found.latents.mean.is_contiguous() and group.latents.mean.is_contiguous()
        prompt = model.embed([found.prompt])
        for visit, stored in enumerate(found.reference_error):
            with torch.no_grad():
                again = tiny.noise_errors(model, found, prompt, CONFIG.rollout, visit)
            assert again.tolist() == stored
    assert len(groups[0].reference_error) == CONFIG.rollout.noises


def test_metrics_count_in_their_own_direction() -> None:
    reward, advantage = reward_of(
        {"niqe": [3.0, 5.0]}, 1.0, Reward(fidelity=[], perception=["niqe"])
    )
    assert reward == [1.0, 0.0]  # lower is better
    assert advantage == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-6)


def test_equal_weights_are_half_and_half_whatever_the_detail() -> None:
    metrics = {"psnr_y": [20.0, 21.0, 22.0], "niqe": [3.0, 3.0, 5.0]}
    plain = Reward(fidelity=["psnr_y"], perception=["niqe"])
    equal = plain.model_copy(update={"weighting": "equal"})
    assert reward_of(metrics, 0.25, plain)[0] == pytest.approx([0.25, 0.75 / 2 + 0.25, 0.75])
    assert (
        reward_of(metrics, 0.25, equal)[0]
        == pytest.approx([0.5, 0.75, 0.5])
        == reward_of(metrics, 0.9, equal)[0]
    )


def test_equal_scores_give_zero_advantage() -> None:
    assert reward_of({"psnr_y": [20.0] * 3, "ssim_y": [0.1] * 3}, 0.3, CONFIG.reward) == (
        [0.0] * 3,
        [0.0] * 3,
    )


def test_a_reward_of_a_metric_that_is_not_stored_says_so() -> None:
    with pytest.raises(
        ValueError,
        match=r"^the rollouts hold no niqe, which the reward uses; add it to rollout.metrics$",
    ):
        reward_of({"psnr_y": [20.0, 21.0]}, 0.5, Reward(fidelity=["psnr_y"], perception=["niqe"]))


def test_a_pair_with_a_score_that_is_not_finite_is_skipped_by_name(
    model: NAOSD, monkeypatch: Any, groups: list[Group]
) -> None:
    def broken(
        names: list[str], image: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        values = score(names, image, reference)
        values["ssim_y"][4] = torch.nan
        return values

    monkeypatch.setattr("gdpo.preference.rollout.score_computed", broken)
    first, second = rollout(model, [tiny.pair(0), tiny.pair(1)], CONFIG)
    assert isinstance(first, Group) and first.metrics == groups[0].metrics
    assert second == Skipped("pair1", "metric ssim_y of its candidates is not finite")


def test_a_pair_whose_candidates_are_not_finite_is_skipped_by_name(
    model: NAOSD, monkeypatch: Any
) -> None:
    decode = steps.decode

    def broken(model: NAOSD, z: torch.Tensor) -> torch.Tensor:
        image = decode(model, z)
        image[1, 0, 3, 3] = torch.nan
        return image

    monkeypatch.setattr("gdpo.model.steps.decode", broken)
    first, second = rollout(model, [tiny.pair(0), tiny.pair(1)], CONFIG)
    assert first == Skipped("pair0", "a pixel of its candidates is not finite")
    assert isinstance(second, Group)


def test_a_pair_whose_reference_error_is_not_finite_is_skipped_by_name(
    model: NAOSD, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "gdpo.preference.rollout.squared", lambda *_: torch.tensor([0.1, torch.inf, 0.2])
    )
    (found,) = rollout(model, [tiny.pair(0)], CONFIG)
    assert found == Skipped("pair0", "reference_error of its candidates is not finite")


def test_no_value_is_waited_for_before_all_of_a_batch_is_computed(model: NAOSD) -> None:
    pairs = [tiny.pair(0), tiny.pair(1)]
    with tiny.Counted() as counted:
        groups, *_ = _computed(model, pairs, CONFIG, 0, None, None)
    assert counted.calls == 0 and [group.id for group in groups] == ["pair0", "pair1"]
