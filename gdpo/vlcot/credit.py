"""Advantages of a group of completions, and which tokens they belong to.

    sum_then_normalize   A_i = (r_i - mean) / (std + 1e-4),  r_i = sum_k w_k r_ik       (paper)
    normalize_then_sum   A_i = sum_k w_k (r_ik - mean_k) / (std_k + 1e-4)

Both are sums over terms: A_ik = w_k (r_ik - mean_k) / scale, with scale the spread of the sum or
that of the term. Hence two kinds of credit:

    sequence   every token of completion i gets sum_k A_ik                              (paper)
    causal     token t gets the terms that it can still change: sum of A_ik with t < settled_ik

Causal credit leaves out terms whose gradient is zero in expectation, so it is as unbiased and has
less variance. mean and std are those of the group; std is the sample's (n - 1). Spread of the terms
differs several times (format 0/1, generation a few hundredths): in sum_then_normalize the widest
dominates. TRL calls the two `multi_objective_aggregation`; the second is published as "GDPO: group
reward-decoupled policy optimization", which is not this project's GDPO.

Shapes: B groups, G completions of a group, K terms, T tokens.
"""

from typing import Literal

import torch

EPSILON = 1e-4
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Credit = Literal["sequence", "causal"]


def term_advantages(
    rewards_BGK: torch.Tensor, weights: list[float], aggregation: Aggregation
) -> torch.Tensor:
    """The advantages of each completion by term, BGK; their sum over K is the advantage.

    rewards_BGK: NaN where a term is excluded, for a whole group; it then gives 0. Errors:
    ValueError for groups of one, a wrong number of weights, or a term excluded in a part of a
    group.
    """
    if rewards_BGK.ndim != 3 or rewards_BGK.shape[1] < 2:
        raise ValueError(
            f"rewards_BGK must be groups of at least 2 completions, got {tuple(rewards_BGK.shape)}"
        )
    if len(weights) != rewards_BGK.shape[2]:
        raise ValueError(
            f"weights must be {rewards_BGK.shape[2]}, one per term, got {len(weights)}"
        )
    left_out = rewards_BGK.isnan()
    if (left_out.any(1) != left_out.all(1)).any():
        raise ValueError("a term must be excluded for all completions of a group, or for none")
    # A term that is excluded for the whole group adds the same 0 to every sum, so it changes
    # neither the differences nor the spread.
    weighted = torch.where(left_out, 0.0, rewards_BGK * torch.tensor(weights))
    # By term: the sum over terms of these is the centred sum, so one normaliser serves both views.
    centred = weighted - weighted.mean(1, keepdim=True)
    if aggregation == "sum_then_normalize":
        return centred / (weighted.sum(2).std(1)[:, None, None] + EPSILON)
    # The weight stays outside: the term itself is normalised.
    plain = torch.where(left_out, 0.0, rewards_BGK)
    deviation = plain - plain.mean(1, keepdim=True)
    return torch.tensor(weights) * deviation / (plain.std(1, keepdim=True) + EPSILON)


def token_advantages(
    terms_GK: torch.Tensor, settled_GK: torch.Tensor, tokens: int, credit: Credit
) -> torch.Tensor:
    """The advantage of every token, GT.

    settled_GK: tokens 0..n-1 can change the term (gdpo/vlcot/rewards.py). tokens: T.
    """
    if credit == "sequence":
        return terms_GK.sum(1, keepdim=True).expand(-1, tokens)
    open_GKT = torch.arange(tokens) < settled_GK[:, :, None]
    return (terms_GK[:, :, None] * open_GKT).sum(1)


def shuffled(terms_GK: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The advantages of a group in a random order of its completions (the control)."""
    return terms_GK[torch.randperm(len(terms_GK), generator=generator)]
