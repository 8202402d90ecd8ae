"""Trunk and sampler: cached against full passes, one completion against a batch, guidance."""

from typing import Any

import pytest
import torch

from gdpo.vlcot.grammar import FORCED, replay, table
from gdpo.vlcot.objective import log_probabilities
from gdpo.vlcot.parse import parse
from gdpo.vlcot.sampler import (
    Completion,
    Sampling,
    count_of_entropy,
    entropy_top_k,
    inverse,
    sample,
)
from gdpo.vlcot.trunk import Cache, Trunk, chunked, fresh, tiny_config
from tests.gdpo.vlcot import small

V = small.voc()
POSITIONS = 400


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    """Two layers whose logits differ between contexts."""
    model = fresh(tiny_config(V.size, width=32, layers=2, heads=2, positions=POSITIONS), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(8)
    return model.eval()


def prompts(count: int) -> torch.Tensor:
    return torch.arange(count * 6).reshape(count, 6) % V.size


def keys(count: int) -> list[Any]:
    return [(0, 5, i) for i in range(count)]


def test_the_trunk_has_no_encoder_and_writes_image_ids(trunk: Trunk) -> None:
    assert not hasattr(trunk.model, "vqmodel")
    logits = trunk(prompts(2))
    assert logits.shape == (2, 6, V.size)
    assert float(logits[..., V.codes].detach().min()) > -1e3


def test_cached_steps_equal_one_pass(trunk: Trunk) -> None:
    ids = torch.randint(0, V.size, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = trunk(ids)
        cache = Cache(trunk, 3, 20)
        parts = [trunk.hidden(ids[:, :12], cache)]
        parts += [trunk.hidden(ids[:, i : i + 1], cache) for i in range(12, 20)]
    torch.testing.assert_close(trunk.lm_head(torch.cat(parts, 1)), whole, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="more than the 20 positions"):
        trunk.hidden(ids[:, :1], cache)


def test_a_masked_step_is_a_sequence_that_begins_later(trunk: Trunk) -> None:
    ids = torch.randint(0, V.size, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = Cache(trunk, 1, 9)
        trunk.hidden(ids[:, :4], cache)
        for i in range(4, 9):
            found = trunk.hidden(ids[:, i : i + 1], cache, torch.arange(i + 1)[None] >= 4)
        expected = trunk.hidden(ids[:, 4:])[:, -1:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["free", "strict"])
def test_a_completion_does_not_depend_on_its_batch(trunk: Trunk, mode: Any) -> None:
    sampling = Sampling(limit=260, mode=mode, guidance=0.8, image_top_k="entropy")
    together = sample(trunk, V, prompts(5), keys(5), sampling)
    alone = [
        sample(trunk, V, prompts(5)[i : i + 1], keys(5)[i : i + 1], sampling)[0] for i in (3, 0)
    ]
    assert alone == [together[3], together[0]]
    assert together == sample(trunk, V, prompts(5), keys(5), sampling)
    assert len({tuple(completion.tokens) for completion in together}) == 5
    for completion in together:
        assert completion.kinds == replay(V, mode, completion.tokens)


def test_rows_of_different_length_are_evicted(trunk: Trunk) -> None:
    found = sample(trunk, V, prompts(8), keys(8), Sampling(limit=300, temperature=1.3))
    lengths = [len(completion.tokens) for completion in found]
    assert len(set(lengths)) > 4
    ended = [completion.tokens[-1] == V.end_of_turn for completion in found]
    assert all(end or length == 300 for end, length in zip(ended, lengths, strict=True))


def test_strict_completions_are_whole_chains(trunk: Trunk) -> None:
    for completion in sample(
        trunk, V, prompts(3), keys(3), Sampling(limit=POSITIONS - 6, mode="strict")
    ):
        parsed = parse(completion.tokens, V)
        assert parsed.ended and len(parsed.slots) == 7
        assert [c.shape for c in parsed.images if c is not None] == [(2, 2), (4, 4), (8, 8)]


def test_sampled_log_probabilities_are_those_of_the_objective(trunk: Trunk) -> None:
    """The frequency of the first token over many keys is its probability under the objective."""
    sampling = Sampling(limit=1, temperature=0.7)
    found = sample(trunk, V, prompts(1).expand(3000, -1), keys(3000), sampling)
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in found]), minlength=V.size)
    allowed = torch.where(table(V)[0])[0]
    with torch.no_grad():
        logits = trunk(prompts(1))[:, -1:].expand(1, len(allowed), -1)
        kinds = torch.zeros(1, len(allowed), dtype=torch.long)
        log_p = log_probabilities(logits, allowed[None], kinds, table(V), 0.7)[0]
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    spread = (log_p.exp() * (1 - log_p.exp()) / 3000).sqrt()
    assert ((counts[allowed] / 3000 - log_p.exp()).abs() < 4 * spread + 1e-3).all()


def test_guidance_moves_codes_alone(trunk: Trunk) -> None:
    plain = sample(trunk, V, prompts(2), keys(2), Sampling(limit=150, mode="strict"))
    guided = sample(trunk, V, prompts(2), keys(2), Sampling(limit=150, mode="strict", guidance=3.0))
    for a, b in zip(plain, guided, strict=True):
        first = a.tokens.index(V.start)
        assert a.tokens[: first + 3] == b.tokens[: first + 3]
        assert a.tokens != b.tokens


def test_guidance_by_hand_at_the_first_code(trunk: Trunk) -> None:
    """Greedy: the first code is the argmax of g (cond - uncond) + uncond of whole passes."""
    sampling = Sampling(limit=120, mode="strict", temperature=0, guidance=2.5)
    (found,) = sample(trunk, V, prompts(1), keys(1), sampling)
    first = found.tokens.index(V.start)
    so_far = torch.tensor([[*prompts(1)[0].tolist(), *found.tokens[: first + 3]]])
    with torch.no_grad():
        cond, uncond = trunk(so_far)[0, -1], trunk(so_far[:, -3:])[0, -1]
    scores = (2.5 * (cond - uncond) + uncond)[V.codes]
    assert found.tokens[first + 3] == V.codes[int(scores.argmax())]


def test_the_released_entropy_top_k() -> None:
    entropies = torch.tensor([0.0, 2.0, 5.0, 8.0, 12.0, -1.0])
    assert count_of_entropy(entropies).tolist() == [14, 96, 1000, 1905, 1987, 14]
    uniform = torch.full((1, 9000), -torch.inf)
    uniform[0, : round(2.718281828**5)] = 3.0
    assert int(entropy_top_k(uniform)) == pytest.approx(1000, abs=2)


def test_top_k_of_text_is_greedy_at_one(trunk: Trunk) -> None:
    one = sample(trunk, V, prompts(2), keys(2), Sampling(limit=5, text_top_k=1))
    greedy = sample(trunk, V, prompts(2), keys(2), Sampling(limit=5, temperature=0))
    assert [c.tokens for c in one] == [c.tokens for c in greedy]


def test_the_inverse_never_gives_an_impossible_id() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    u = [0.0, 0.499, 0.5, 1 - 1e-16]
    assert [int(inverse(p, torch.tensor([x], dtype=torch.float64))) for x in u] == [1, 1, 3, 3]


def test_too_long_a_completion_is_refused(trunk: Trunk) -> None:
    with pytest.raises(ValueError, match="need 401 positions, the trunk has 400"):
        sample(trunk, V, prompts(1), keys(1), Sampling(limit=395))
    assert Completion().tokens == []


def test_chunked_logits_and_recomputed_layers_give_the_same_gradients(trunk: Trunk) -> None:
    ids = prompts(2)

    def gradient(rows: int, recompute: bool) -> torch.Tensor:
        trunk.zero_grad()
        trunk.recompute = recompute
        hidden = trunk.hidden(ids).flatten(0, 1)
        chunked(trunk, hidden, lambda logits, first: logits.logsumexp(1), rows).sum().backward()
        trunk.recompute = False
        assert trunk.model.embed_tokens.weight.grad is not None
        return trunk.model.embed_tokens.weight.grad.clone()

    whole = gradient(100, recompute=False)
    torch.testing.assert_close(gradient(5, recompute=True), whole, atol=1e-5, rtol=1e-4)
    assert whole.abs().sum() > 0 and FORCED == -1
