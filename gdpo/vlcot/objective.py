"""The GRPO objective on completions that were sampled from the policy itself.

    log pi(t)  log-softmax of logits / temperature over the ids that the grammar allowed
    loss       mean over completions of [ sum_t m_t (-exp(lp - sg lp) A_t + beta KL_t) / sum_t m_t ]
    KL_t       exp(ref - lp) - (ref - lp) - 1                                                (k3)
    m_t        1 for tokens that the model chose, 0 for forced tokens and padding

One update per batch, so the ratio is 1 and clipping never acts: there is none. beta 0 as released
(the reference model is commented out there; the paper's value is not known).

Released code: raw logits over the full vocabulary at temperature 1, though it samples with
temperature, guidance, top-k and forced tokens, and counts the forced tokens. Here the
log-probability is that of the distribution that was sampled.

Shapes: N completions, T tokens, V ids.
"""

import torch
from torch.nn.functional import log_softmax

from gdpo.vlcot.grammar import FORCED


def log_probabilities(
    logits_NTV: torch.Tensor,
    tokens_NT: torch.Tensor,
    kinds_NT: torch.Tensor,
    table: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """log pi of each token, NT, in fp32; 0 where the token is forced.

    logits_NTV: those that predict the token of the same place. kinds_NT: rows of `table`, FORCED
    for forced tokens and padding. Errors: ValueError for a token outside the set of its kind, whose
    log-probability would be minus infinity.
    """
    chosen = kinds_NT != FORCED
    # The sets of the sampler, id by id: with the logits of forbidden ids in the sum, training would
    # lower probabilities that sampling never had.
    allowed = table[kinds_NT[chosen]]
    tokens = tokens_NT[chosen][:, None]
    if not bool(allowed.gather(1, tokens).all()):
        raise ValueError("tokens_NT has a token that its kind does not allow")
    scores = logits_NTV[chosen].float() / temperature
    # The least number, not minus infinity: its products with 0 are not NaN.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    picked = log_softmax(scores, dim=-1).gather(1, tokens)[:, 0]
    log_probs_NT = torch.zeros(tokens_NT.shape, device=scores.device)
    return log_probs_NT.masked_scatter(chosen, picked)


def grpo_loss(
    log_probs_NT: torch.Tensor,
    advantages_NT: torch.Tensor,
    mask_NT: torch.Tensor,
    *,
    beta: float = 0.0,
    reference_NT: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of the module docstring, a scalar.

    mask_NT: bool; a completion without a chosen token adds 0. reference_NT: log-probabilities of
    the reference; needed if beta is not 0.
    """
    # 1 in value, and d ratio = d log pi: the policy gradient, written so that a clipped form would
    # only add a clamp.
    ratio = torch.exp(log_probs_NT - log_probs_NT.detach())
    loss = -ratio * advantages_NT
    if beta:
        if reference_NT is None:
            raise ValueError("beta is not 0: reference_NT must be given")
        loss = loss + beta * k3(log_probs_NT, reference_NT)
    mask = mask_NT.to(loss.dtype)
    # By completion first: GRPO's formula has 1/|o_i| inside the sum over the group.
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of KL(policy || reference) per token, never negative (Schulman's k3)."""
    difference = reference - log_probs
    return torch.exp(difference) - difference - 1
