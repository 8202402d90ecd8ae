"""The four rewards against the paper's example and against the holes of the released ones."""

import math

import pytest

from gdpo.vlcot.parse import parse
from gdpo.vlcot.rewards import (
    TERMS,
    Truth,
    degradation_reward,
    format_reward,
    generation_reward,
    rewards,
    settled,
    understanding_reward,
)
from gdpo.vlcot.vocabulary import IMAGE, SLOTS
from tests.gdpo.vlcot import small

TRUE = ["light blur", "downsample", "medium noise", "light compression", "upsample"]
SAID = "This image shows the group of lions lying on a large rock, surrounded by open sky."


def blocks(images: str = IMAGE, texts: str = "rock", join: str = " ") -> str:
    inside = {slot: images if slot.endswith("_image") else texts for slot in SLOTS}
    return join.join(f"<{slot}>{inside[slot]}</{slot}>" for slot in SLOTS)


def test_the_papers_example_gives_0_6_and_0_75() -> None:
    said = "medium blur, downsample, heavy noise, light compression, upsample"
    assert degradation_reward(said, TRUE) == pytest.approx(0.6)
    for form in ("released", "words"):
        found = understanding_reward(SAID, ["lions", "rock", "sky", "clouds"], form)
        assert found == pytest.approx(0.75)


def test_a_whole_chain_has_the_format_in_both_forms() -> None:
    for join in ("", " ", "\n\n"):
        assert format_reward(blocks(join=join), "released") == 1
        assert format_reward(blocks(join=join), "strict") == 1


@pytest.mark.parametrize(
    ("text", "released"),
    [
        (blocks(images="rock"), 1),  # no image
        (blocks(images="", texts=""), 1),  # nothing at all
        (blocks(texts=" "), 1),
        (blocks().replace("</degradation>", "</degradation><degradation>a</degradation>"), 1),
        (blocks(images=IMAGE * 2), 1),
        (blocks().replace("rough_image", "middle_image", 1), 0),
        (blocks() + "more", 0),
        ("", 0),
    ],
)
def test_strict_closes_the_holes_of_the_released_format(text: str, released: int) -> None:
    assert format_reward(text, "released") == released
    assert format_reward(text, "strict") == 0


def test_outer_spaces_fail_the_released_format_alone() -> None:
    assert format_reward(f" {blocks()}", "released") == 0
    assert format_reward(f" {blocks()}\n", "strict") == 1


def test_hostile_text_takes_no_long_time() -> None:
    for text in ("<degradation>" * 3000, blocks(texts="a " * 2000) + "<", "< " * 9000):
        assert format_reward(text, "strict") == 0
        assert format_reward(text[:2000], "released") == 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (", ".join(TRUE), 1.0),
        ("Light  blur,downsample", 0.4),
        (", ".join([*TRUE, "light blur"]), 5 / 6),
        ("downsample, light blur", 0.0),
        (", ".join(["frobnicated blur", *TRUE[1:]]), 0.8),  # a word that is none of ours
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_degradation_compares_term_by_term(said: str | None, expected: float) -> None:
    assert degradation_reward(said, TRUE) == pytest.approx(expected)


def test_tags_are_whole_words_with_plurals() -> None:
    assert understanding_reward("a scarf", ["car"], "released") == 1
    assert understanding_reward("a scarf", ["car"]) == 0
    assert understanding_reward("two cherries and boxes", ["cherry", "box", "Box "]) == 1
    assert understanding_reward("a stop-sign", ["stop signs"]) == 1
    assert understanding_reward("the grass of a bus", ["gras", "bu"]) == 0
    assert understanding_reward(None, ["car"]) == 0
    assert understanding_reward("anything", []) is understanding_reward("x", [" "]) is None


def test_generation_is_the_mean_of_scaled_metrics() -> None:
    paper = {"topiq_nr": 0.6, "musiq": 70.0, "maniqa_pipal": 0.64, "clipiqa": 0.7}
    assert generation_reward(paper) == pytest.approx((0.6 + 0.7 + 0.64 + 0.7) / 4)
    assert generation_reward({**paper, "clipiqa": 1.4}) == pytest.approx(
        (0.6 + 0.7 + 0.64 + 1.4) / 4
    )
    assert generation_reward({"niqe": 8.0, "psnr_y": 18.0}) == pytest.approx((0.8 + 0.4) / 2)
    assert generation_reward({"niqe": 1.0, "psnr_y": 5.0}) == 0.5
    assert generation_reward({"psnr_y": math.nan}) == generation_reward(None) == 0


def test_the_rewards_of_a_completion_and_where_they_are_settled() -> None:
    v = small.voc()
    tokens = small.chain(v, text="a dark rock")
    parsed = parse(tokens, v)
    found = rewards(parsed, Truth(tuple(TRUE), ("rock", "sky")), {"psnr_y": 27.0})
    assert dict(zip(TERMS, found, strict=True)) == {
        "format": 1,
        "degradation": 0,
        "understanding": 0.5,
        "generation": 1,
    }
    assert settled(parsed, len(tokens)) == [len(tokens), 5, 10, len(tokens)]
    nothing = parse([v.end_of_turn], v)
    found = rewards(nothing, Truth(tuple(TRUE), ()), None)
    assert found[:2] == [0, 0] and math.isnan(found[2]) and found[3] == 0
    assert settled(nothing, 1) == [1, 1, 1, 1]
