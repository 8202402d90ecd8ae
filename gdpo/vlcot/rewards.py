"""The four rewards of a completion (paper Fig. 2), each a pure function of what was parsed.

    format         the seven blocks in order: 1, else 0
    degradation    terms of the five that are right / terms          paper's example: 3/5 = 0.6
    understanding  tags that the rough text names / tags             paper's example: 3/4 = 0.75
    generation     mean of the scaled metrics of the last image; 0 if it cannot be decoded

`form` chooses between the released code ("released") and ours. The released code has no degradation
reward, divides by zero without tags, and raises without an image.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gdpo.vlcot.parse import Parsed
from gdpo.vlcot.vocabulary import IMAGE, SLOTS

TERMS = ("format", "degradation", "understanding", "generation")
FormatForm = Literal["released", "strict"]
TagForm = Literal["released", "words"]

# fullmatch with DOTALL, as released. It passes empty blocks, blocks that hold other blocks, and
# image blocks without an image; one outer space fails it.
_RELEASED = re.compile(r"\s*".join(rf"<{s}>.*?</{s}>" for s in SLOTS), re.DOTALL)
_WORDS = r"[^<\s][^<]*"
_INSIDE = {slot: re.escape(IMAGE) if slot.endswith("_image") else _WORDS for slot in SLOTS}
_STRICT = re.compile("".join(rf"\s*<{s}>\s*{_INSIDE[s]}\s*</{s}>" for s in SLOTS) + r"\s*")


def format_reward(text: str, form: FormatForm = "strict") -> float:
    """1 if the text, with `IMAGE` for each image segment, has the seven blocks in order, else 0.

    strict: also, a text block has text and no tag, an image block one image; spaces outside are no
    fault.
    """
    return float((_STRICT if form == "strict" else _RELEASED).fullmatch(text) is not None)


def degradation_reward(text: str | None, terms: Sequence[str]) -> float:
    """Terms of the comma list `text` that equal the true ones at their place / number of terms.

    The number is that of the longer list, so that more terms than true ones do not pay. text: the
    content of the block; None (no block) gives 0.
    """
    named = [] if text is None else [" ".join(term.lower().split()) for term in text.split(",")]
    right = sum(a == b for a, b in zip(named, terms, strict=False))
    return right / max(len(named), len(terms))


def understanding_reward(
    text: str | None, tags: Sequence[str], form: TagForm = "words"
) -> float | None:
    """Share of `tags` that the rough text names; None (excluded from the sum) without tags.

    released: a tag counts if it is a substring, so that "car" is in "scarf". words: whole words,
    each in singular or plural. text: None (no block) gives 0.
    """
    names = [tag for tag in (" ".join(tag.lower().split()) for tag in tags) if tag]
    if not names:
        return None
    lower = (text or "").lower()
    if form == "released":
        return sum(name in lower for name in names) / len(names)
    # Spaces around, so that " car " is found in " red car " and not in " scarf ".
    words = f" {' '.join(_singular(word) for word in re.findall(r'[a-z0-9]+', lower))} "
    wanted = [" ".join(_singular(w) for w in re.findall(r"[a-z0-9]+", name)) for name in names]
    return sum(f" {name} " in words for name in wanted) / len(names)


def _singular(word: str) -> str:
    """A word without its regular English plural ending."""
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@dataclass(frozen=True)
class Scale:
    """A metric's value at reward 0 and at reward 1; clip: the reward stays within [0, 1]."""

    zero: float
    one: float
    clip: bool = False


# paper (released code): the plain mean of four, MUSIQ / 100, not clipped. Tiny: metrics without
# weights; NIQE alone is no reward there, since samples score better than photographs.
SCALES = {
    "topiq_nr": Scale(0, 1),
    "musiq": Scale(0, 100),
    "maniqa_pipal": Scale(0, 1),
    "clipiqa": Scale(0, 1),
    "niqe": Scale(20, 5, clip=True),
    "psnr_y": Scale(12, 27, clip=True),
}


def generation_reward(values: Mapping[str, float] | None) -> float:
    """Mean of the scaled metrics of an image; 0 for None (no image, or one that is broken).

    values: {metric: value}, metrics of `SCALES`; a value that is not finite counts as reward 0.
    """
    if not values:
        return 0.0
    rewards = []
    for name, value in values.items():
        scale = SCALES[name]
        reward = (value - scale.zero) / (scale.one - scale.zero)
        reward = min(max(reward, 0.0), 1.0) if scale.clip else reward
        rewards.append(reward if math.isfinite(value) else 0.0)
    return sum(rewards) / len(rewards)


@dataclass(frozen=True)
class Truth:
    """What is known of a pair: its five degradation terms, and the tags of its picture."""

    terms: tuple[str, ...]
    tags: tuple[str, ...]


def rewards(
    parsed: Parsed,
    truth: Truth,
    values: Mapping[str, float] | None,
    *,
    format_form: FormatForm = "strict",
    tag_form: TagForm = "words",
) -> list[float]:
    """The four rewards in the order of `TERMS`; NaN where a term is excluded.

    values: metrics of the last image (`generation_reward`).
    """
    understood = understanding_reward(parsed.slots.get("rough_understand"), truth.tags, tag_form)
    return [
        format_reward(parsed.text, format_form),
        degradation_reward(parsed.slots.get("degradation"), truth.terms),
        math.nan if understood is None else understood,
        generation_reward(values),
    ]


def settled(parsed: Parsed, length: int) -> list[int]:
    """For each term, how many tokens of the completion can still change it.

    The degradation is settled with its closing tag, the understanding with that of the rough text;
    format and generation at the end (`length`, END_OF_TURN included): a later image becomes the
    last. A block that is missing is settled at the end as well.
    """
    return [
        length,
        parsed.settled.get("degradation", length),
        parsed.settled.get("rough_understand", length),
        length,
    ]
