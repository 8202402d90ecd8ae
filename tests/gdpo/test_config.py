"""Strict sections: what is wrong is named by its key; defaults are the paper's or the release's."""

from typing import Any

import pytest
from pydantic import ValidationError

from gdpo.config import Config, Finetune, Lora, Model, Optimizer, Pretrain, Reward, Rollout
from tests import tiny


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("pretrain", "step", 3),
        ("pretrain", "steps", -1),
        ("pretrain", "steps", 3.0),
        ("pretrain", "steps", "3"),
        ("pretrain", "steps", True),
        ("pretrain", "pixel", "huber"),
        ("pretrain", "lambda_vsd", -1.0),
        ("pretrain", "lambda_vsd", float("nan")),
        ("pretrain", "vsd_t_range", [500, 20]),
        ("pretrain", "vsd_t_range", [20]),
        ("pretrain", "vsd_t_range", [20, 1001]),
        ("pretrain", "vsd_t_range", [-1, 20]),
        ("pretrain", "precision", "fp16"),
        ("model", "t_add", 1000),
        ("model", "t_diff", -1),
        ("rollout", "group", 1),
        ("rollout", "noise", "other"),
        ("rollout", "parts", ["evaluation"]),
        ("rollout", "metrics", []),
        ("rollout", "fidelity", ["psnr_y"]),
        ("rollout", "candidates", "cfg"),
        ("rollout", "guidance_range", [2.0, 1.0]),
        ("rollout", "t_add_range", [150, 1001]),
        ("rollout", "sigma", 0.0),
        ("reward", "weighting", "fixed"),
        ("finetune", "objective", "ppo"),
        ("finetune", "clip", 0.0),
        ("finetune", "micro_batch", 0),
        ("finetune", "repeat", -1),
        ("finetune", "omega", 0.0),
        ("finetune", "omega", float("inf")),
        ("evaluate", "noises", 1),
        ("degrade", "max_failures", 1.5),
        ("degrade", "train", []),
        ("degrade", "train", "photos"),
        ("degrade", "train", [{"path": "photos", "first": 0}]),
        ("degrade", "evaluation", [{"path": ""}]),
        ("degrade", "parts", []),
        ("degrade", "parts", ["00", "00"]),
        ("degrade", "parts", ["../00"]),
        ("degrade", "parts", ["evaluation"]),
        ("select", "min_hash_distance", 65),
    ],
)
def test_a_bad_value_names_its_key(section: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny.settings(**{section: {key: value}})
    assert [error["loc"][:2] for error in caught.value.errors()] == [(section, key)]


def test_nested_keys_are_named() -> None:
    with pytest.raises(ValidationError) as caught:
        tiny.settings(finetune={"optimizer": {"lr": 0.0}})
    assert caught.value.errors()[0]["loc"] == ("finetune", "optimizer", "lr")


@pytest.mark.parametrize("key", ["crop", "evaluation_crop"])
def test_crops_fit_the_scale(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"degrade.{key} must be a multiple of 32, got 40"):
        tiny.settings(degrade={key: 40})


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (
            {"benchmarks": ["realsr"]},
            r"benchmark realsr has no folders; give evaluate.pairs.realsr",
        ),
        ({"benchmarks": ["sample", "sample"]}, "named twice"),
        ({"pairs": {"sample": {"lr": "a", "hr": "b"}}}, "named twice"),
        ({"pairs": {"../x": {"lr": "a", "hr": "b"}}}, "should match pattern"),
        ({"models": {}}, "at least 1"),
        ({"models": {"hr": "models/x"}}, "hr is taken"),
        (
            {"pairs": {"realsr": {"lr": "a", "hr": "b", "baselines": {"gdpo": "c"}}}},
            "gdpo is taken",
        ),
    ],
)
def test_benchmarks_models_and_peers_have_names_of_their_own(
    evaluate: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny.settings(evaluate=evaluate)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"reward": {"fidelity": [], "perception": []}},
            "fidelity and perception are both empty; name at least one metric",
        ),
        (
            {"reward": {"perception": ["musiq"]}},
            "reward uses musiq, which the rollouts do not hold; add it to rollout.metrics",
        ),
        (
            {"rollout": {"metrics": ["psnr_y"]}},
            "reward uses ssim_y, which the rollouts do not hold",
        ),
        (
            {"finetune": {"sampler": "policy"}},
            "sampler policy makes candidates while it trains; set rollouts: online",
        ),
        (
            {"finetune": {"objective": "dance_grpo"}},
            "dance_grpo does not go with rollout.candidates noise",
        ),
        (
            {"rollout": {"candidates": "action"}},
            "finetune.objective gdpo does not go with rollout.candidates action",
        ),
        ({"finetune": {"pairs": 2}}, "finetune.pairs is 2, more than half of rollout.group 3"),
    ],
)
def test_reward_rollouts_and_objective_fit_together(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        tiny.settings(**sections)
    assert len(caught.value.errors()) == 1


def test_one_side_of_the_reward_is_enough() -> None:
    assert tiny.settings(reward={"perception": []}).reward.perception == []
    assert tiny.settings(reward={"fidelity": []}).reward.fidelity == []


def test_a_section_is_frozen() -> None:
    config = tiny.settings()
    with pytest.raises(ValidationError):
        config.finetune.steps = 3


def test_whole_numbers_pass_for_reals_and_survive_a_round_trip() -> None:
    config = tiny.settings(finetune={"omega": 500})
    assert config.finetune.omega == 500.0
    assert Config.model_validate(config.model_dump()) == config


def test_tags_need_a_tagger() -> None:
    with pytest.raises(
        ValidationError,
        match=r"degrade.tags is hr, which needs the folder of a tagger in model.tagger",
    ):
        tiny.settings(degrade={"tags": "hr"})
    assert (
        tiny.settings(degrade={"tags": "lr"}, model={"tagger": "models/tagger"}).degrade.tags
        == "lr"
    )
    with pytest.raises(ValidationError, match="tags"):
        tiny.settings(degrade={"tags": "both"}, model={"tagger": "models/tagger"})


def test_defaults_are_the_published_ones() -> None:
    assert (
        Model(base="b", negative_prompt="n").training_prompt,
        Model(base="b", negative_prompt="n").tagger,
    ) == ("", None)
    assert (
        Model(base="b", negative_prompt="n").t_add,
        Model(base="b", negative_prompt="n").t_diff,
    ) == (250, 100)
    assert (Lora().rank, Lora().alpha) == (4, 8)
    assert (Optimizer().lr, Optimizer().weight_decay, Optimizer().clip) == (5e-5, 1e-2, 1.0)
    assert (Pretrain().pixel, Pretrain().lambda_perceptual, Pretrain().guidance) == (
        "mse",
        2.0,
        7.5,
    )
    assert (Pretrain().steps, Pretrain().batch, Pretrain().lambda_pixel, Pretrain().lambda_vsd) == (
        35000,
        16,
        1.0,
        1.0,
    )
    assert Pretrain().vsd_t_range == [20, 500]
    assert (Rollout().group, Rollout().noise, Rollout().target) == (
        6,
        "own",
        "added",
    )
    assert (Rollout().candidates, Rollout().metrics) == (
        "noise",
        ["psnr_y", "musiq", "maniqa_koniq"],
    )
    assert (Reward().fidelity, Reward().perception, Reward().weighting) == (
        ["psnr_y"],
        ["musiq", "maniqa_koniq"],
        "adaptive",
    )
    assert (Finetune().omega, Finetune().steps, Finetune().batch) == (5000.0, 1500, 8)
    assert (Finetune().objective, Finetune().sampler) == ("gdpo", "reference")
    assert (Finetune().pairs, Finetune().clip, Finetune().beta, Finetune().mix) == (
        1,
        1e-4,
        100.0,
        1.0,
    )
