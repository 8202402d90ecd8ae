"""Rollouts: what a group holds, that it does not depend on its neighbours, and its way through Parquet."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.preference.errors import noise_errors
from gdpo.preference.rollout import Group, from_row, reward_of, rollout, schema, to_row
from gdpo.rewards.complexity import detail_share
from gdpo.rewards.metrics import score
from gdpo.training import Key
from tests import tiny

CONFIG = tiny.settings().rollout


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


@pytest.fixture(scope="module")
def groups(model: NAOSD) -> list[Group]:
    return list(rollout(model, [tiny.pair(i) for i in range(2)], CONFIG, seed=0))


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
        assert group.detail_share == pytest.approx(detail_share(hr, "released").item())
        assert (group.reward, group.advantage) == reward_of(group.metrics, group.detail_share, CONFIG)
        assert sum(group.advantage) == pytest.approx(0, abs=1e-9)
        with torch.no_grad():
            mean, _ = model.posterior(image * 2 - 1)
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
    (group,) = rollout(model, [tagged], CONFIG, seed=0, prompt="")
    assert group.prompt == "cat, grass, "
    assert seen == [["cat, grass, "] * 3, ["cat, grass, "]]  # G candidates, then all noise errors
    assert group.reference_error != groups[0].reference_error


def test_scores_are_of_the_colour_corrected_candidates_and_latents_of_the_plain_ones(model: NAOSD, groups: list[Group]) -> None:
    fixed = next(rollout(model, [tiny.pair(0)], CONFIG.model_copy(update={"color_fix": "adain"}), seed=0))
    assert fixed.metrics["psnr_y"] != pytest.approx(groups[0].metrics["psnr_y"], rel=1e-2)
    assert torch.allclose(fixed.latents.mean, groups[0].latents.mean, atol=2e-3)


def test_a_group_does_not_depend_on_its_neighbours(model: NAOSD, groups: list[Group]) -> None:
    (alone,) = rollout(model, [tiny.pair(1)], CONFIG, seed=0)
    for name, values in alone.metrics.items():
        assert values == pytest.approx(groups[1].metrics[name], rel=1e-4)
    assert torch.allclose(alone.latents.mean, groups[1].latents.mean, atol=2e-3)
    for a, b in zip(alone.reference_error, groups[1].reference_error, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_seeds_change_the_candidates(model: NAOSD, groups: list[Group]) -> None:
    (other,) = rollout(model, [tiny.pair(0)], CONFIG, seed=1)
    assert other.metrics["psnr_y"] != pytest.approx(groups[0].metrics["psnr_y"], rel=1e-4)


def test_rows_survive_parquet_and_give_the_same_errors_to_the_bit(model: NAOSD, groups: list[Group], tmp_path: Path) -> None:
    described = schema(CONFIG, json.dumps({"seed": 0}))
    pq.write_table(pa.Table.from_pylist([to_row(group) for group in groups], schema=described), tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert json.loads(table.schema.metadata[b"rollout"]) == {"seed": 0}
    for row, group in zip(table.to_pylist(), groups, strict=True):
        found = from_row(row)
        for name in ("id", "prompt", "detail_share", "metrics", "reward", "advantage", "reference_error"):
            assert getattr(found, name) == getattr(group, name)
        assert torch.equal(found.latents.mean, group.latents.mean)
        assert torch.equal(found.latents.std, group.latents.std)
        assert found.latents.mean.is_contiguous() and group.latents.mean.is_contiguous()
        prompt = model.embed([found.prompt])
        for visit, stored in enumerate(found.reference_error):
            with torch.no_grad():
                again = noise_errors(model, found.latents, prompt, CONFIG, seed=0, group=found.id, visit=visit)
            assert again.tolist() == stored
    assert len(groups[0].reference_error) == CONFIG.noises


def test_metrics_count_in_their_own_direction() -> None:
    config = tiny.settings(rollout={"group": 2, "fidelity": [], "perception": ["niqe"]}).rollout
    reward, advantage = reward_of({"niqe": [3.0, 5.0]}, 1.0, config)
    assert reward == [1.0, 0.0]  # lower is better
    assert advantage == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-6)


def test_equal_scores_give_zero_advantage() -> None:
    assert reward_of({"psnr_y": [20.0] * 3, "ssim_y": [0.1] * 3}, 0.3, CONFIG) == ([0.0] * 3, [0.0] * 3)


def test_a_metric_that_is_not_finite_names_the_pair(model: NAOSD, monkeypatch: Any) -> None:
    def broken(names: list[str], image: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
        values = score(names, image, reference)
        values["ssim_y"][4] = torch.nan
        return values

    monkeypatch.setattr("gdpo.preference.rollout.score", broken)
    groups = rollout(model, [tiny.pair(0), tiny.pair(1)], CONFIG, seed=0)
    assert next(groups).id == "pair0"
    with pytest.raises(ValueError, match="pair pair1: metric ssim_y of its candidates is not finite"):
        next(groups)
