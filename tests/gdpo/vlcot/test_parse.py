"""Parsing: a whole chain, every kind of damage, and random tokens (a property: it never raises)."""

import numpy as np
import pytest

from gdpo.vlcot.parse import parse
from gdpo.vlcot.rewards import format_reward
from gdpo.vlcot.vocabulary import IMAGE, SLOTS
from tests.gdpo.vlcot import small

V = small.voc()


def test_a_whole_chain_is_read_back() -> None:
    tokens = small.chain(V, seed=3)
    found = parse([*tokens, 999], V)
    assert found.ended and found.length == len(tokens) - 1
    assert list(found.slots) == list(SLOTS)
    assert found.slots["degradation"] == "a dark rock"
    assert found.slots["final_image"] == IMAGE
    rng = np.random.default_rng(3)
    for codes, n in zip(found.images, (2, 4, 8), strict=True):
        np.testing.assert_array_equal(codes, rng.integers(0, 32, (n, n)))
    assert found.result is found.images[-1]
    # <degradation> a dark rock </degradation>: five tokens.
    assert found.settled["degradation"] == 5
    assert found.settled["rough_understand"] == 10
    assert found.settled["rough_image"] == 10 + 2 + V.tokens(16)
    assert found.settled["final_image"] == len(tokens) - 1


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 8, V.tokens(16) - 1])
def test_a_segment_cut_short_is_broken(keep: int) -> None:
    segment = V.segment(np.zeros((2, 2), np.int64))
    found = parse(segment[:keep], V)
    assert found.images == [None] and found.text == IMAGE and found.result is None
    assert not found.ended


def test_damage_inside_a_segment_breaks_it_alone() -> None:
    for place, token in ((1, V.size_base + 9), (3, V.newline), (5, V.codes[0]), (4, V.start)):
        segment = V.segment(np.ones((2, 2), np.int64))
        segment[place] = int(token)
        found = parse([*segment, *V.text.encode("rock"), *V.segment(np.zeros((2, 2), np.int64))], V)
        assert found.images[0] is None, place
        assert "rock" in found.text and found.result is not None, place


def test_the_first_block_of_a_name_counts() -> None:
    ids = V.text.encode("<degradation>rock</degradation><degradation>sky</degradation>")
    found = parse(ids, V)
    assert found.slots == {"degradation": "rock"} and found.settled == {"degradation": 3}
    assert parse([], V).text == "" and parse([], V).images == []


def test_an_image_twice_in_a_block_is_no_format_and_the_last_is_the_result() -> None:
    whole = small.chain(V, seed=3)
    end = len(whole) - 1 - len(V.text.encode("</final_image>"))
    other = np.full((8, 8), 7)
    found = parse([*whole[:end], *V.segment(other), *whole[end:]], V)
    assert found.slots["final_image"].count(IMAGE) == 2 and len(found.images) == 4
    assert format_reward(parse(whole, V).text) == 1 and format_reward(found.text) == 0
    assert found.result is not None and np.array_equal(found.result, other)


@pytest.mark.parametrize("seed", range(6))
def test_random_tokens_never_raise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = small.chain(V, seed)
    for _ in range(150):
        tokens = rng.integers(-5, V.size + 50, rng.integers(0, 60)).tolist()
        damaged = list(whole)
        for _ in range(int(rng.integers(1, 12))):
            place = int(rng.integers(len(damaged)))
            damaged[place : place + int(rng.integers(2))] = rng.integers(0, V.size, 1).tolist()
        for ids in (tokens, damaged, damaged[: int(rng.integers(len(damaged)))]):
            found = parse(ids, V)
            assert found.text.count(IMAGE) == len(found.images)
            assert all(0 < end <= found.length for end in found.settled.values())
            for codes in found.images:
                assert codes is None or (codes.ndim == 2 and 0 <= codes.min() <= codes.max() < 32)
