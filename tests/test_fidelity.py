"""The keys in docs/fidelity.md are those of the configuration; profiles/paper.yaml and
profiles/realsr-r1.yaml have the published values.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gdpo.config import Config
from gdpo.pretrain.start import initial_model
from gdpo.rewards.detail import PIPELINE_GRAYSCALE
from tasks import params

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/fidelity.md").read_text()
TINY = TEXT.split("## Tiny scale")[1]
SECTIONS = tuple(Config.model_fields)
SECOND = ("vlcot", "coldstart", "grpo")  # the sections of the second system
# Keys without a section.
PLAIN = {
    name
    for name, field in Config.model_fields.items()
    if not hasattr(field.annotation, "model_fields")
}


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, with its dotted name."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.fixture(scope="module")
def paper() -> Config:
    """Both systems at full size."""
    second = params.load(ROOT / "tests/params.yaml", "realsr-r1")
    first = params.load(ROOT / "tests/params.yaml", "paper")
    return first.model_copy(update={name: getattr(second, name) for name in SECOND})


def named(text: str) -> set[str]:
    """The configuration keys in backticks."""
    words = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", text)
    return {
        word for word in words if word in PLAIN or (word.split(".")[0] in SECTIONS and "." in word)
    }


def test_every_key_is_in_a_table_and_every_key_named_exists(paper: Config) -> None:
    keys = {key for key, _ in leaves(paper)}
    assert keys - named(TEXT.split("## Tiny scale")[0]) == set()
    assert named(TEXT) - keys == set()


def test_the_tiny_section_has_every_value_of_params_that_is_not_the_papers(paper: Config) -> None:
    sample = dict(leaves(params.load(ROOT / "tests/params.yaml")))
    different = {key for key, value in leaves(paper) if sample[key] != value}
    assert different - named(TINY) == set(), (
        "add the reason to docs/fidelity.md, section Tiny scale"
    )


def test_the_paper_profile_has_the_published_values(paper: Config) -> None:
    pretrain, rollout, finetune = paper.pretrain, paper.rollout, paper.finetune
    assert (paper.model.t_add, paper.model.t_diff) == (250, 100)
    assert paper.model.base == "models/sd2.1-base"
    assert paper.model.prompt == "clean, high-resolution, 8k,"
    assert len(paper.model.negative_prompt.split(", ")) == 23
    assert (paper.degrade.crop, paper.degrade.stride, paper.degrade.degradation.scale) == (
        512,
        64,
        4,
    )
    assert (pretrain.steps, pretrain.batch, pretrain.optimizer.lr) == (35000, 16, 5e-5)
    assert (pretrain.pixel, pretrain.perceptual) == ("mse", "lpips-vgg")
    assert initial_model(paper) is None
    assert (paper.degrade.pairs, paper.degrade.evaluation) == (1_500_000, [])
    assert (pretrain.lambda_pixel, pretrain.lambda_perceptual, pretrain.lambda_vsd) == (
        1.0,
        2.0,
        1.0,
    )
    assert (pretrain.guidance, pretrain.vsd_t_range) == (7.5, [20, 500])
    assert paper.select.count == 120000
    reward = paper.reward
    assert (reward.fidelity, reward.perception, reward.weighting) == (
        ["psnr_y"],
        ["musiq", "maniqa_koniq"],
        "adaptive",
    )
    assert (rollout.group, rollout.metrics, rollout.candidates) == (
        6,
        [*reward.fidelity, *reward.perception],
        "noise",
    )
    assert (finetune.objective, finetune.sampler, finetune.repeat) == ("gdpo", "reference", 0)
    assert (finetune.pairs, finetune.clip, finetune.beta, finetune.mix) == (1, 1e-4, 100.0, 1.0)
    assert (rollout.noise, rollout.target, rollout.color_fix, PIPELINE_GRAYSCALE) == (
        "own",
        "added",
        "none",
        "released",
    )
    assert (finetune.steps, finetune.batch, finetune.omega, finetune.optimizer.lr) == (
        1500,
        8,
        5000.0,
        5e-5,
    )
    for part in (pretrain, finetune):
        assert (part.lora.rank, part.lora.alpha) == (4, 8)
        assert (part.optimizer.schedule, part.optimizer.weight_decay, part.optimizer.clip) == (
            "constant",
            1e-2,
            1.0,
        )
    assert (paper.degrade.tags, paper.model.training_prompt) == ("hr", "")
    assert paper.evaluate.color_fix == "adain"
    assert "maniqa_pipal" in paper.evaluate.metrics


def test_the_profile_of_realsr_r1_has_the_released_values(paper: Config) -> None:
    vlcot, coldstart, grpo = paper.vlcot, paper.coldstart, paper.grpo
    assert (vlcot.stages, vlcot.positions, vlcot.tokenizer.codes) == ([128, 256, 512], 11776, 16384)
    decoding = vlcot.decoding
    assert (decoding.temperature, decoding.guidance) == (0.9, 0.8)
    assert (decoding.text_top_k, decoding.image_top_k) == (1, "entropy")
    assert (coldstart.batch, coldstart.lr, coldstart.schedule) == (16, 2e-5, "constant")
    assert (coldstart.weight_decay, coldstart.clip, coldstart.z_loss) == (0.1, 4.0, 1e-5)
    assert (grpo.group, grpo.batch, grpo.limit, grpo.temperature) == (5, 6, 7000, 0.9)
    assert (grpo.lr, grpo.schedule, grpo.beta) == (2e-6, "linear", 0.0)
    assert (grpo.format, grpo.tags, grpo.grammar) == ("released", "released", "free")
    assert grpo.metrics == ["topiq_nr", "musiq", "maniqa_pipal", "clipiqa"]
    assert (grpo.aggregation, grpo.credit) == ("sum_then_normalize", "sequence")
    assert set(grpo.weights.model_dump().values()) == {1.0}


def test_the_full_profiles_hide_no_value_of_the_sample() -> None:
    """Every value that params.yaml sets, the paper's profile sets too, or RealSR-R1's: a tuned
    sample value cannot leak into it. The tiny tokenizer has no part in the full size.
    """

    def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    first = keys(params.read(ROOT / "profiles/paper.yaml"))
    second = {
        key for key in keys(params.read(ROOT / "profiles/realsr-r1.yaml")) if key.startswith(SECOND)
    }
    sample = keys(params.read(ROOT / "tests/params.yaml"))
    left = {key for key in sample - first - second if not key.startswith("vlcot.tokenizer.")}
    assert left == set()
