"""docs/fidelity.md against the code: every key, every named test, every difference; and
profiles/paper.yaml's values.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gdpo.config import Config
from tasks import params

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/fidelity.md").read_text()
TINY = TEXT.split("## Tiny scale")[1]
SECTIONS = tuple(Config.model_fields)
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
    return params.load(ROOT / "params.yaml", "paper")


def named(text: str) -> set[str]:
    """The configuration keys in backticks."""
    words = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", text)
    return {
        word for word in words if word in PLAIN or (word.split(".")[0] in SECTIONS and "." in word)
    }


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, head and rule left out."""
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| step |", "| keys |"))
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_key_is_in_a_table_and_every_key_named_exists(paper: Config) -> None:
    keys = {key for key, _ in leaves(paper)}
    assert keys - named(TEXT.split("## Tiny scale")[0]) == set()
    assert named(TEXT) - keys == set()


def test_every_row_is_whole_and_its_test_file_exists() -> None:
    table = rows(TEXT.split("## Tiny scale")[0])
    assert len(table) > 60
    for row in table:
        assert len(row) == 6, row
        assert row[5] == "-" or (ROOT / "tests" / row[5]).is_file(), row


def test_all_differences_between_paper_and_code_are_covered() -> None:
    assert {int(number) for number in re.findall(r"\bD(\d+)\)", TEXT)} == set(range(1, 23))


def test_the_tiny_section_has_every_value_of_params_that_is_not_the_papers(paper: Config) -> None:
    sample = dict(leaves(params.load(ROOT / "tests/params.yaml")))
    different = {key for key, value in leaves(paper) if sample[key] != value}
    assert different - named(TINY) == set(), (
        "add the reason to docs/fidelity.md, section Tiny scale"
    )
    for keys, reason in rows(TINY):
        assert named(keys), keys
        assert len(reason) > 10, keys


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
    assert (pretrain.pixel, pretrain.perceptual, pretrain.init) == ("mse", "lpips-vgg", None)
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
    assert (rollout.noise, rollout.target, rollout.grayscale, rollout.color_fix) == (
        "own",
        "added",
        "released",
        "none",
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


def test_the_precision_of_the_metrics_is_quoted_as_recorded() -> None:
    measured = json.loads((ROOT / "benchmarks/results/metric_precision.json").read_text())[
        "measured"
    ]
    quoted = {
        "musiq": "MUSIQ",
        "clipiqa": "CLIP-IQA",
        "maniqa_koniq": "MANIQA",
        "afine": "A-FINE",
        "lpips_alex": "LPIPS",
        "dists": "DISTS",
    }
    assert set(measured["metrics"]) == set(quoted)
    for name, row in measured["metrics"].items():
        changed, error = round(row["order_changed"] * measured["groups"]), row["error_in_spreads"]
        found = re.search(
            rf"\b{quoted[name]} (\d+) of {measured['groups']}, (?:error )?(\d\.\d\d)\b", TEXT
        )
        assert found and (int(found[1]), float(found[2])) == (
            changed,
            pytest.approx(error, abs=0.006),
        ), name
        assert row["weights"] == "random"


def test_the_paper_profile_hides_no_value_of_the_sample() -> None:
    """Every value that params.yaml sets, the paper's profile sets too: a tuned sample value cannot
    leak into it.
    """

    def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    profile = params.read(ROOT / "profiles/paper.yaml")
    assert keys(params.read(ROOT / "tests/params.yaml")) - keys(profile) == set()
