"""What a model says of held-out pictures, against what is true and against what can be seen.

cut        a square of a picture as a chain sees it, with its true words
said       the words of a chain for each cut, at a temperature
scores     degradation reward and understanding reward of each cut
constant   the most frequent term of each place, whatever the picture
visible    what a probe reads from the LR pixels: it says how much of the degradation can be
           seen at all (gdpo/vlcot/visible.py)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gdpo.data.shards import Pair
from gdpo.images import resize_bicubic, to_tensor
from gdpo.vlcot.describe import describe
from gdpo.vlcot.examples import prompt
from gdpo.vlcot.folder import Model
from gdpo.vlcot.grammar import Mode
from gdpo.vlcot.parse import Parsed, parse
from gdpo.vlcot.rewards import degradation_reward, format_reward, understanding_reward
from gdpo.vlcot.sampler import Sampling, sample
from gdpo.vlcot.words import Range, degradation_words

WORDS = 96  # tokens that hold the degradation and the rough caption
BATCH = 64


@dataclass(frozen=True)
class Cut:
    """A square of a picture. terms, tags: what is true of it."""

    id: str
    lr: np.ndarray
    hr: np.ndarray
    terms: list[str]
    tags: tuple[str, ...]


def cut(
    pair: Pair, side: int, scale: int, ranges: Range, at: tuple[float, float] = (0.5, 0.5)
) -> Cut:
    """`side` pixels of a pair. at: where, (0, 0) the upper left corner and (1, 1) the lower right.

    Errors: ValueError for a smaller picture.
    """
    height, width = pair.hr.shape[:2]
    if min(height, width) < side:
        raise ValueError(f"pair {pair.id}: {width} x {height} pixels, a chain shows {side}")
    top, left = (
        int((length - side) * share) // scale * scale
        for length, share in zip((height, width), at, strict=True)
    )
    hr = np.ascontiguousarray(pair.hr[top : top + side, left : left + side])
    small, y, x = side // scale, top // scale, left // scale
    lr = np.ascontiguousarray(pair.lr[y : y + small, x : x + small])
    terms = degradation_words(pair.degradation, ranges)
    return Cut(pair.id, lr, hr, terms, describe(hr).tags)


def said(
    model: Model,
    cuts: Sequence[Cut],
    seed: int,
    *,
    temperature: float,
    mode: Mode = "free",
    limit: int | None = WORDS,
) -> list[Parsed]:
    """A chain for each cut without guidance or top-k. limit: its tokens; None: all that fit."""
    voc, tokenizer = model.vocabulary, model.tokenizer
    side, device = voc.stages[-1], model.trunk.lm_head.weight.device
    parsed: list[Parsed] = []
    for first in range(0, len(cuts), BATCH):
        part = cuts[first : first + BATCH]
        seen = [resize_bicubic(one.lr, (side, side)) for one in part]
        prompts = torch.tensor([prompt(one, voc, tokenizer) for one in seen], device=device)
        keys = [(seed, "said", one.id, first + i) for i, one in enumerate(part)]
        most = limit or model.card.positions - prompts.shape[1]
        sampling = Sampling(most, mode=mode, temperature=temperature)
        views = torch.stack([to_tensor(one) for one in seen]).to(model.trunk.lm_head.weight)
        chains = sample(model.trunk, voc, prompts, keys, sampling, views)
        parsed += [parse(chain.tokens, voc) for chain in chains]
    return parsed


def scores(chains: Sequence[Parsed], cuts: Sequence[Cut]) -> dict[str, np.ndarray]:
    """The rewards of the text of each chain, by name (N,); format: in the strict form."""
    return {
        "format": np.array([format_reward(chain.text, "strict") for chain in chains]),
        "degradation": np.array(
            [
                degradation_reward(chain.slots.get("degradation"), one.terms)
                for chain, one in zip(chains, cuts, strict=True)
            ]
        ),
        "understanding": np.array(
            [
                understanding_reward(chain.slots.get("rough_understand"), one.tags) or 0.0
                for chain, one in zip(chains, cuts, strict=True)
            ]
        ),
    }


def constant_terms(terms: Sequence[Sequence[str]]) -> list[str]:
    """The most frequent term of each place."""
    return [Counter(place).most_common(1)[0][0] for place in zip(*terms, strict=True)]


def share_right(said_NT: Sequence[Sequence[str]], true_NT: Sequence[Sequence[str]]) -> np.ndarray:
    """The share of terms of each row that equal the true ones at their place (N,)."""
    return np.array(
        [
            np.mean([a == b for a, b in zip(row, true, strict=True)])
            for row, true in zip(said_NT, true_NT, strict=True)
        ]
    )
