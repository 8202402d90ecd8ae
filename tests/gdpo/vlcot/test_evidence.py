"""Which row of the evidence belongs to which token, and that it reaches every token sampled."""

import numpy as np
import torch

from gdpo.vlcot.evidence import Evidence, place, places
from gdpo.vlcot.examples import pictures
from gdpo.vlcot.sampler import Sampling, sample
from tests.gdpo.vlcot import small
from tests.gdpo.vlcot.system import system

V = small.voc()  # stages of 2, 4 and 8 codes a side


def test_a_code_has_the_row_of_its_place_and_all_else_row_0() -> None:
    tokens = np.array(small.chain(V))
    rows = places(V, tokens)
    following = tokens[1:]
    is_code = V.code_of[following] >= 0
    np.testing.assert_array_equal(rows[:-1][is_code], np.arange(1, 1 + 4 + 16 + 64))
    assert not rows[:-1][~is_code].any() and rows[-1] == 0


def test_one_token_at_a_time_gives_the_same_rows() -> None:
    tokens = small.chain(V)
    expected, segment = places(V, np.array(tokens)), list[int]()
    for i, token in enumerate(tokens):
        if token == V.start:
            segment = []
        segment = [*segment, token] if segment or token == V.start else []
        if token == V.end:
            segment = []
        assert place(V, segment) == expected[i]


def test_cut_and_oblong_images_have_what_they_have() -> None:
    whole = V.segment(np.zeros((2, 2), np.int64))
    for length in range(len(whole) + 1):
        expected = places(V, np.array(whole))[:length]
        np.testing.assert_array_equal(places(V, np.array(whole[:length], np.int64)), expected)
    oblong = V.segment(np.zeros((2, 4), np.int64))
    assert not places(V, np.array(oblong)).any() and place(V, oblong[:3]) == 0


def test_the_table_sees_the_picture_where_the_code_lies() -> None:
    torch.manual_seed(0)
    evidence = Evidence((8, 16, 32), 8, width=6)
    picture = torch.rand(2, 3, 32, 32)
    changed = picture.clone()
    changed[0, :, :8, :8] = 0
    before, after = evidence(picture), evidence(changed)
    assert before.shape == (2, 1 + 1 + 4 + 16, 6)
    moved = (before - after).abs().sum(2)[0] > 1e-6
    last = moved[-16:].reshape(4, 4)
    assert moved[0] and last[0, 0] and torch.equal(before[1], after[1])
    assert last.sum() == 16, "three layers of 3 x 3 reach three codes far"


def test_sampling_sees_the_picture_as_training_does() -> None:
    """Greedy tokens are the likeliest of one whole pass with the same evidence."""
    s = system()
    trunk = s.trunk(evidence=True).eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if "norm" not in name:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2
                )
    views = pictures(s.examples[:2])
    prompts = torch.from_numpy(np.stack([one.prompt for one in s.examples[:2]])).long()
    sampling = Sampling(limit=120, mode="strict", temperature=0)
    found = sample(trunk, s.vocabulary, prompts, [(0,), (1,)], sampling, views)
    other = sample(trunk, s.vocabulary, prompts, [(0,), (1,)], sampling, views.flip(0))
    assert [one.tokens for one in found] != [one.tokens for one in other]
    for i, one in enumerate(found):
        ids = torch.cat([prompts[i], torch.tensor(one.tokens)])[None]
        rows = torch.from_numpy(places(s.vocabulary, ids[0].numpy()))[None]
        with torch.no_grad():
            hidden = trunk.hidden(ids, seen_BLD=trunk.seen(views[i : i + 1], rows))
            logits = trunk.lm_head(hidden)[0, prompts.shape[1] - 1 : -1]
        codes = torch.from_numpy(s.vocabulary.codes)
        for step, token in enumerate(one.tokens):
            if s.vocabulary.code_of[token] >= 0:
                assert int(codes[logits[step, codes].argmax()]) == token


def test_new_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = system().trunk(evidence=True)
    torch.manual_seed(2)
    again, other = system().trunk(evidence=True), system().trunk(seed=1, evidence=True)
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == ("norm" in name or a.ndim == 1), name
