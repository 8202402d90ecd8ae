"""Vocabulary and grammar: ids and token counts of the paper, machines against whole completions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gdpo.vlcot import vocabulary
from gdpo.vlcot.grammar import CODE, FORCED, OUTSIDE, SIDE, Mode, initial_state, replay, table
from gdpo.vlcot.parse import parse
from tests.gdpo.vlcot import small


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> vocabulary.Vocabulary:
    file = small.tokenizer_file(tmp_path_factory.mktemp("tokenizer"), small.chameleon_names())
    return vocabulary.pure(vocabulary.Bpe(file))


def test_the_papers_token_counts_and_ids(paper: vocabulary.Vocabulary) -> None:
    assert [paper.tokens(side) for side in (128, 256, 512)] == [276, 1060, 4164]
    assert [paper.size_token(side) for side in (128, 256, 512)] == [8808, 8812, 8820]
    assert (paper.start, paper.end, paper.newline, paper.end_of_turn) == (8197, 8196, 8803, 8710)
    assert paper.codes[[0, 8191, 8192, 16383]].tolist() == [4, 8195, 65536, 73727]
    segment = paper.segment(np.zeros((16, 16), np.int64))
    assert segment[:4] == [8197, 8808, 8808, 4] and segment[19] == 8803 and segment[-1] == 8196
    assert len(segment) == 276
    assert paper.text_ids.min() == 16384


def test_a_chain_of_the_papers_vocabulary_is_read_back(paper: vocabulary.Vocabulary) -> None:
    tokens = small.chain(paper)
    assert sum(kind == CODE for kind in replay(paper, "free", tokens)) == 256 + 1024 + 4096
    assert replay(paper, "strict", tokens)[-1] == FORCED
    found = parse(tokens, paper)
    assert set(found.slots) == set(vocabulary.SLOTS)
    assert found.slots["middle_understand"] == "adarkrock"  # this tokenizer writes no spaces
    assert found.settled["degradation"] == 9 and found.settled["final_image"] == len(tokens) - 1
    assert found.result is not None and found.result.shape == (64, 64)


def test_luminas_codes_follow_the_names_of_its_vocabulary(tmp_path: Path) -> None:
    names = small.chameleon_names(shift=5)
    found = vocabulary.lumina(vocabulary.Bpe(small.tokenizer_file(tmp_path, names)))
    assert found.tokens(512) == 1060
    assert found.codes[:2].tolist() == [9, 10] and found.codes[8191] == 8
    del names["<eoss>"]
    with pytest.raises(ValueError, match="no token <eoss>"):
        vocabulary.lumina(vocabulary.Bpe(small.tokenizer_file(tmp_path, names)))
    with pytest.raises(ValueError, match="not numbered"):
        vocabulary.codes_by_name({"IMGIMGAZ": 4, "IMGIMGCZ": 5})


@pytest.mark.parametrize("mode", ["free", "strict"])
def test_a_whole_chain_fits_the_grammar(mode: Mode) -> None:
    v = small.voc()
    tokens = small.chain(v)
    kinds = replay(v, mode, tokens)
    codes = [kind for kind in kinds if kind == CODE]
    assert len(codes) == 2 * 2 + 4 * 4 + 8 * 8
    sizes = [kind for kind in kinds if kind == SIDE]
    assert len(sizes) == (6 if mode == "free" else 0)
    # Newlines and ENDs: one per row of codes and one per image.
    assert (kinds.count(FORCED) == 14 + 3) if mode == "free" else (kinds[0] == FORCED)
    assert kinds[-1] == (OUTSIDE if mode == "free" else FORCED)


@pytest.mark.parametrize("mode", ["free", "strict"])
def test_random_completions_are_what_the_grammar_promises(mode: Mode) -> None:
    v, rng = small.voc(), np.random.default_rng(0)
    sets = table(v)
    for _ in range(20):
        grown, tokens = initial_state(v, mode, 400), list[int]()
        while not grown.done:
            kind = grown.allowed()
            choice = [grown.forced] if kind == FORCED else torch.where(sets[kind])[0].tolist()
            tokens.append(int(rng.choice(choice)))
            grown.push(tokens[-1])
        kinds = replay(v, mode, tokens)
        assert len(kinds) == len(tokens) <= 400
        found = parse(tokens, v)
        if mode == "strict":
            assert found.ended and set(found.slots) == set(vocabulary.SLOTS)
            assert [codes.shape[0] for codes in found.images if codes is not None] == [2, 4, 8]
            assert all(found.slots.values())
        elif found.ended:
            assert all(codes is not None for codes in found.images)


def test_a_row_ends_at_its_limit_and_a_text_at_its_own() -> None:
    v = small.voc()
    word = v.text.encode("rock")[0]
    free = initial_state(v, "free", 3)
    for _ in range(3):
        free.push(word)
    assert free.done
    strict = initial_state(v, "strict", 1000)
    strict.push(strict.forced if strict.allowed() == FORCED else -1)
    for _ in range(64):
        assert strict.allowed() != FORCED
        strict.push(word)
    assert strict.allowed() == FORCED
    assert v.text.pieces([strict.forced]) == ["</degradation>"]


def test_tags_are_forced_as_they_are_written_one_by_one(paper: vocabulary.Vocabulary) -> None:
    """Also by a tokenizer that joins the end of a tag and the beginning of the next."""

    class Joining:
        pieces = paper.text.pieces

        def encode(self, text: str) -> list[int]:
            return [7] if "><" in text else paper.text.encode(text)

    grown = initial_state(replace(paper, text=Joining()), "strict", 10_000)
    for token in paper.text.encode("<degradation>rock</degradation><rough_understand>"):
        if grown.allowed() == FORCED:
            assert grown.forced == token
        grown.push(token)
    assert grown.allowed() != FORCED


def test_a_strict_text_is_not_empty_and_ends_with_its_own_tag() -> None:
    v, sets = small.voc(), table(small.voc())
    grown = initial_state(v, "strict", 1000)
    opening, closing, other = v.text.encode("<degradation></degradation></rough_image>")
    grown.push(opening)
    assert not sets[grown.allowed(), [opening, closing, other]].any()
    grown.push(v.text.encode("rock")[0])
    assert sets[grown.allowed(), [opening, closing, other]].tolist() == [False, True, False]


@pytest.mark.parametrize("place", [3, 20, 60])
def test_replay_names_the_token_that_breaks_the_grammar(place: int) -> None:
    v = small.voc()
    tokens = small.chain(v)
    tokens[place] = v.newline if tokens[place] != v.newline else v.end
    with pytest.raises(ValueError, match=f"token {place} of the completion"):
        replay(v, "strict", tokens)


def test_wrong_codes_words_and_sizes_are_named() -> None:
    v = small.voc()
    with pytest.raises(ValueError, match="no word 'lion'"):
        v.text.encode("a lion")
    with pytest.raises(ValueError, match="no multiple of 16 pixels"):
        v.segment(np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.31, got 0\.\.32"):
        v.segment(np.array([[0, 32], [0, 0]]))
    with pytest.raises(ValueError, match="multiples of 16 pixels, got 24"):
        vocabulary.tiny([], 4, (16, 24, 64), factor=8)
