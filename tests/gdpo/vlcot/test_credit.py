"""Advantages, credit and loss against values computed by hand; gradients against autograd."""

import math

import pytest
import torch

from gdpo.vlcot.credit import shuffled, term_advantages, token_advantages
from gdpo.vlcot.grammar import FORCED
from gdpo.vlcot.objective import grpo_loss, k3, log_probabilities

REWARDS = torch.tensor([[[1.0, 0.2], [0.0, 0.4], [1.0, 0.6]]])
ONES = [1.0, 1.0]


def test_the_papers_advantage_by_hand() -> None:
    found = term_advantages(REWARDS, ONES, "sum_then_normalize").sum(2)[0]
    total = torch.tensor([1.2, 0.4, 1.6])
    torch.testing.assert_close(found, (total - total.mean()) / (total.std() + 1e-4))
    assert float(total.std()) == pytest.approx(0.6110, abs=1e-4)  # n - 1
    assert float(found.sum()) == pytest.approx(0, abs=1e-5)


def test_each_term_normalised_by_hand() -> None:
    found = term_advantages(REWARDS, [1.0, 2.0], "normalize_then_sum")[0]
    generation = torch.tensor([-0.2, 0.0, 0.2]) / (0.2 + 1e-4)
    torch.testing.assert_close(found[:, 1], 2 * generation)
    torch.testing.assert_close(found[:, 0], torch.tensor([1, -2, 1]) / 3 / (3**-0.5 + 1e-4))


def test_equal_rewards_give_no_advantage_and_a_weight_counts_once() -> None:
    for how in ("sum_then_normalize", "normalize_then_sum"):
        same = term_advantages(torch.full((2, 4, 3), 0.3), [1.0] * 3, how)
        assert not same.any()
        no_format = term_advantages(REWARDS, [0.0, 1.0], how)
        assert not no_format[..., 0].any() and no_format[..., 1].any()


def test_an_excluded_term_adds_nothing() -> None:
    rewards = REWARDS.clone()
    rewards[..., 0] = math.nan
    for how in ("sum_then_normalize", "normalize_then_sum"):
        found = term_advantages(rewards, ONES, how)
        torch.testing.assert_close(
            found[..., 1], term_advantages(REWARDS[..., 1:], [1.0], how)[..., 0]
        )
        assert not found[..., 0].any()
    rewards[0, 0, 0] = 1.0
    with pytest.raises(ValueError, match="for all completions"):
        term_advantages(rewards, ONES, "sum_then_normalize")


def test_causal_credit_gives_a_token_what_it_can_still_change() -> None:
    terms = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    settled = torch.tensor([[4, 2], [4, 0]])
    found = token_advantages(terms, settled, 5, "causal")
    assert found.tolist() == [[11, 11, 1, 1, 0], [2, 2, 2, 2, 0]]
    assert token_advantages(terms, settled, 3, "sequence").tolist() == [[11] * 3, [22] * 3]


def test_the_control_keeps_the_advantages_and_moves_them() -> None:
    terms = torch.arange(12.0).reshape(6, 2)
    found = shuffled(terms, torch.Generator().manual_seed(1))
    assert not torch.equal(found, terms)
    assert sorted(found.tolist()) == terms.tolist()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2 completions"):
        term_advantages(REWARDS[:, :1], ONES, "sum_then_normalize")
    with pytest.raises(ValueError, match="weights must be 2"):
        term_advantages(REWARDS, [1.0], "sum_then_normalize")


TABLE = torch.tensor([[True, True, False], [True, True, True]])


def test_log_probabilities_are_those_of_the_sampled_distribution() -> None:
    logits = torch.tensor([[[1.0, 2.0, 9.0], [0.0, 0.0, 0.0], [5.0, 1.0, 2.0]]])
    tokens, kinds = torch.tensor([[1, 2, 0]]), torch.tensor([[0, 1, FORCED]])
    found = log_probabilities(logits, tokens, kinds, TABLE, temperature=0.5)
    two = math.log(math.exp(4) / (math.exp(2) + math.exp(4)))
    torch.testing.assert_close(found, torch.tensor([[two, -math.log(3), 0.0]]))
    with pytest.raises(ValueError, match="does not allow"):
        log_probabilities(logits, torch.tensor([[2, 2, 0]]), kinds, TABLE, 1.0)


def test_the_gradient_is_minus_the_advantage_over_the_chosen_tokens() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    advantages = torch.tensor([[2.0, 3.0, 5.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = grpo_loss(log_probs, advantages, mask)
    loss.backward()
    # Completions count equally, whatever their length; forced tokens do not count.
    assert float(loss.detach()) == pytest.approx(-(2.5 + 4) / 2)
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-0.5, -0.75, 0.0], [-2.0, 0.0, 0.0]]))


def test_the_kl_term_pulls_toward_the_reference() -> None:
    log_probs = torch.tensor([[-1.0]], requires_grad=True)
    reference = torch.tensor([[-2.0]])
    loss = grpo_loss(
        log_probs, torch.zeros(1, 1), torch.ones(1, 1).bool(), beta=0.1, reference_NT=reference
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.1 * (math.exp(-1) + 1 - 1))
    assert log_probs.grad is not None and float(log_probs.grad) == pytest.approx(
        0.1 * (1 - math.exp(-1))
    )
    assert float(k3(reference, reference)) == 0
    with pytest.raises(ValueError, match="reference_NT"):
        grpo_loss(log_probs, torch.zeros(1, 1), torch.ones(1, 1).bool(), beta=0.1)


def test_a_completion_without_a_chosen_token_adds_nothing() -> None:
    loss = grpo_loss(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2).bool())
    assert float(loss) == 0
