"""Preference objectives, selected by `finetune.objective`: functions of errors and advantages.

    m, r, o   errors of the policy, the reference and the old policy: squared error, averaged over a
              candidate's latent. The old policy sampled the candidates; for cached rollouts it is
              the reference.
    d         mean squared difference of the policy's and the old policy's predictions (nft)
    A         advantages: zero mean and unit, unbiased standard deviation within a group; all 0 in a
              group of equal scores

    gdpo, dpo, dgpo    -log sigmoid of a preference logit; its gradient vanishes once the policy has
                       moved far enough on a group
    dance_grpo, awm    policy gradient on the clipped ratio of surrogate densities, exp(o - m)
    nft                regression of two mixtures of policy and old policy, towards good candidates
                       and away from bad ones

A group of equal scores has zero gradient for every policy, but still counts in the mean over
groups. "Slope" below is dL/dm_i at the point where policy, old policy and reference agree. AdamW is
invariant to its scale; gradient clipping is not.

`gdpo_loss` checks its arguments, which copies values from the device to the CPU. The others are
for the training loop and do not check tensors. All losses compute in the dtype of their arguments.
Legend: B images (groups), G candidates.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gdpo.checks import check_tensor
from gdpo.config import Finetune

# `adv_clip_max` of DanceGRPO, AWM and DiffusionNFT. A z-score can only reach it for G >= 27.
ADVANTAGE_LIMIT = 5.0
ROOT_FLOOR = 1e-5  # lower bound of the normaliser of each nft branch (DiffusionNFT)


@dataclass(frozen=True)
class Strength:
    """`finetune.omega`, `beta`, `clip` and `mix`, as set or by the rule of strength.py."""

    omega: float
    beta: float
    clip: float
    mix: float


def objective_loss(
    settings: Finetune,
    strength: Strength,
    policy_error_BG: Tensor,
    reference_error_BG: Tensor,
    old_error_BG: Tensor,
    distance_BG: Tensor,
    advantage_BG: Tensor,
    sigma: float,
) -> Tensor:
    """The loss that `settings.objective` names, a scalar, without checks of the tensors.

    distance_BG: d, read by nft only. sigma: `rollout.sigma`, read by dance_grpo only. The loss of
    each objective below gives its formula.
    Errors: ValueError when the groups are too small for `settings.pairs`.
    """
    policy, reference, old, advantage = (
        policy_error_BG,
        reference_error_BG,
        old_error_BG,
        advantage_BG,
    )
    match settings.objective:
        case "gdpo":
            return _preference(gdpo_logit(policy, reference, advantage, strength.omega))
        case "dpo":
            return diffusion_dpo_loss(policy, reference, advantage, strength.omega, settings.pairs)
        case "dance_grpo":
            return dance_grpo_loss(policy, old, advantage, sigma, strength.clip)
        case "dgpo":
            return dgpo_loss(policy, reference, old, advantage, strength.beta, strength.clip)
        case "nft":
            return nft_loss(policy, old, distance_BG, advantage, strength.mix)
        case "awm":
            return awm_loss(policy, old, advantage, strength.clip)


def gdpo_logit(
    policy_error_BG: Tensor, reference_error_BG: Tensor, advantage_BG: Tensor, omega: float
) -> Tensor:
    """The preference logit inside_B of `gdpo_loss`.

    It is positive if the policy has moved towards the better candidates of the group.
    """
    # Early in training m_i and r_i agree in their first digits, and omega / 2 = 2500 enlarges what
    # rounding leaves of the difference: the loop passes float64 errors.
    return -0.5 * omega * (advantage_BG * (policy_error_BG - reference_error_BG)).sum(dim=1)


def gdpo_loss(
    policy_error_BG: Tensor, reference_error_BG: Tensor, advantage_BG: Tensor, omega: float = 5000.0
) -> Tensor:
    """The GDPO loss, a scalar; ln 2 where policy and reference agree. Slope omega/4 A_i / B.

        inside_b = -omega/2 * sum_i A_i (m_i - r_i)
        L = mean_b -log sigmoid(inside_b)

    Source: GDPO-SR (arXiv 2603.16769) Eq. 9, as released. The paper prints omega and a sum over the
    latent; the released code multiplies the *mean* over its elements by omega/2 = 2500.
    Errors: ValueError naming the argument for a wrong or differing shape, NaN, or an omega that is
    not positive.
    """
    tensors = {
        "policy_error_BG": policy_error_BG,
        "reference_error_BG": reference_error_BG,
        "advantage_BG": advantage_BG,
    }
    shapes = [tuple(check_tensor(name, value, "BG").shape) for name, value in tensors.items()]
    if len(set(shapes)) > 1:
        *names, last = tensors
        raise ValueError(f"{', '.join(names)} and {last} differ in shape: {shapes}")
    if isinstance(omega, bool) or not isinstance(omega, int | float) or not 0 < omega < math.inf:
        raise ValueError(f"omega must be a positive number, got {omega!r}")
    return _preference(gdpo_logit(policy_error_BG, reference_error_BG, advantage_BG, omega))


def diffusion_dpo_loss(
    policy_error_BG: Tensor,
    reference_error_BG: Tensor,
    advantage_BG: Tensor,
    omega: float,
    pairs: int,
) -> Tensor:
    """The Diffusion-DPO loss, a scalar, on all pairs of a best (w) with a worst (l) candidate.

        inside_wl = -omega/2 * ((m_w - r_w) - (m_l - r_l))
        L = mean_b mean_wl -log sigmoid(inside_wl),    over pairs of different advantage

    pairs: k, for the k best against the k worst of a group, 1..G/2. With k = 1 the slope is
    +-omega/4 / B. Candidates of equal advantage share a place among the best or the worst by equal
    weights, so the order of candidates does not matter. A group without a pair has loss 0. For
    G = 2 the loss equals `gdpo_loss` with omega * sqrt(2), because GDPO's z-scores by the unbiased
    deviation are then +-1/sqrt(2).
    Source: Diffusion-DPO (arXiv 2311.12908) Eq. 14 with the factors of its released code (beta_dpo
    = omega, halved) at one fixed t, as in GDPO. The N x N pairs are those of DP2O-SR (arXiv
    2510.18851, Sec. 4.2), without its weights of pairs and groups (Sec. 4.3).
    Errors: ValueError for pairs outside 1..G/2.
    """
    size = advantage_BG.shape[1]
    if not 1 <= pairs <= size // 2:
        raise ValueError(
            f"pairs must be a whole number from 1 to half of the group's {size} candidates, got "
            f"{pairs!r}"
        )
    better = advantage_BG[:, :, None] > advantage_BG[:, None, :]
    # `better` drops pairs of equal advantage, which occur where a tie reaches into both ends.
    best, worst = _places(advantage_BG, pairs), _places(-advantage_BG, pairs)
    weight_BGG = best[:, :, None] * worst[:, None, :] * better
    total_B = weight_BGG.sum(dim=(1, 2))
    change = policy_error_BG - reference_error_BG
    inside_BGG = -0.5 * omega * (change[:, :, None] - change[:, None, :])
    # A group without a pair: 0 / 1 instead of 0 / 0.
    loss_B = -(weight_BGG * F.logsigmoid(inside_BGG)).sum(dim=(1, 2)) / (total_B + (total_B == 0))
    return loss_B.mean()


def dance_grpo_loss(
    policy_error_BG: Tensor,
    old_error_BG: Tensor,
    advantage_BG: Tensor,
    sigma: float,
    clip: float,
) -> Tensor:
    """The DanceGRPO loss for a one-step model, a scalar. Slope A_i / (2 sigma^2) / (B G).

        z_i     = mu_old(s_i) + sigma xi_i          the action; s_i: noisy latent and prompt;
                                                    mu: the output z_SR (Eq. 4)
        m_i     = mean (z_i - mu(s_i))^2            in x0 space; o_i likewise with mu_old
        ratio_i = exp((o_i - m_i) / (2 sigma^2))
        L = mean_bi max(-A_i ratio_i, -A_i clip(ratio_i, 1 - clip, 1 + clip)),    A clamped to +-5

    The one-step form is ours. The released code omits the last transition of every trajectory, and
    a one-step model has no other. The network's output as a function of its input noise has no
    tractable density, so the action is a Gaussian sample around z_SR instead.
    Source of the rest, with log-densities averaged over the latent: DanceGRPO (arXiv 2505.07818)
    and its released code.
    """
    # The normalising constants of the two Gaussians are equal and cancel.
    log_ratio = (old_error_BG - policy_error_BG) / (2 * sigma**2)
    return _clipped_surrogate(log_ratio, advantage_BG, clip)


def dgpo_loss(
    policy_error_BG: Tensor,
    reference_error_BG: Tensor,
    old_error_BG: Tensor,
    advantage_BG: Tensor,
    beta: float,
    clip: float,
) -> Tensor:
    """The DGPO loss, a scalar. Slope beta/(2G) A_i / B.

        L = mean_b -log sigmoid(-beta/G * sum_i A_i (m_i - r_i))

    A candidate gets no gradient if its ratio exp(o_i - m_i) exceeds 1 + clip (A_i > 0) or lies
    below 1 - clip (A_i <= 0). Without clipping the loss is `gdpo_loss` with omega/2 = beta/G.
    Source: DGPO (arXiv 2510.08425) and its released code. The gradient of the released code, the
    sigmoid times the mean of A_i dm_i over all samples, is this one divided by beta. Omitted: its
    clamp of A to +-5, and its KL term.
    """
    ratio = (old_error_BG - policy_error_BG.detach()).exp()
    # Detaching a clipped candidate removes its gradient but keeps the value of the loss.
    clipped = torch.where(advantage_BG > 0, ratio > 1 + clip, ratio < 1 - clip)
    policy = torch.where(clipped, policy_error_BG.detach(), policy_error_BG)
    omega = 2 * beta / advantage_BG.shape[1]
    return _preference(gdpo_logit(policy, reference_error_BG, advantage_BG, omega))


def nft_loss(
    policy_error_BG: Tensor,
    old_error_BG: Tensor,
    distance_BG: Tensor,
    advantage_BG: Tensor,
    mix: float,
) -> Tensor:
    """The DiffusionNFT loss, a scalar.

        v+  = mix v + (1 - mix) v_old
        v-  = (1 + mix) v_old - mix v
        p_i = 1/2 + clip(A_i / 5, -1, 1) / 2
        L   = mean_bi p_i |v+ - target|^2 / root+ + (1 - p_i) |v- - target|^2 / root-

    Slope mix/5 A_i / sqrt(o_i) / (B G). root+ and root- are the square roots of the squared errors
    that they divide, at least 1e-5, without gradient. The scalars m, o and d suffice: with
    c = (m + o - d)/2, the mean product of both errors,
    |v+ - target|^2 = mix^2 m + 2 mix (1 - mix) c + (1 - mix)^2 o, and likewise for v-.
    Source: DiffusionNFT (arXiv 2509.16117) and its released code, which divides by the mean
    absolute error in x0 instead of the root, and multiplies the loss by 5/mix. Omitted: its KL
    term. Unlike the source, a group of equal scores has loss 0: with p = 1/2 it would pull the
    policy back to the old one.
    """
    policy, old, distance = policy_error_BG, old_error_BG, distance_BG
    # |v+ - target|^2 and |v- - target|^2, multiplied out.
    # No second forward pass: v+ and v- are linear in the two predictions, so their errors follow
    # from three scalars.
    positive = mix * policy + (1 - mix) * old - mix * (1 - mix) * distance
    negative = (1 + mix) * old - mix * policy + mix * (1 + mix) * distance
    share = 0.5 + 0.5 * (advantage_BG / ADVANTAGE_LIMIT).clamp(-1, 1)
    loss = share * _by_its_root(positive) + (1 - share) * _by_its_root(negative)
    return torch.where((advantage_BG != 0).any(dim=1, keepdim=True), loss, 0.0).mean()


def awm_loss(
    policy_error_BG: Tensor, old_error_BG: Tensor, advantage_BG: Tensor, clip: float
) -> Tensor:
    """The loss of advantage weighted matching (AWM), a scalar. Slope A_i / (B G).

        ratio_i = exp(o_i - m_i)
        L = mean_bi max(-A_i ratio_i, -A_i clip(ratio_i, 1 - clip, 1 + clip)),    A clamped to +-5

    Source: AWM (arXiv 2509.25050) and its released code with uniform weights. Omitted: its
    generalised Huber weights and its KL terms. Its base configuration clips at 1e-4; its runs with
    KL terms clip at 1.
    """
    return _clipped_surrogate(old_error_BG - policy_error_BG, advantage_BG, clip)


def _preference(inside: Tensor) -> Tensor:
    # log(sigmoid(x)) would be -inf, with NaN gradients, for the logits below -90 of a bad step.
    return -F.logsigmoid(inside).mean()


def _places(value: Tensor, count: int) -> Tensor:
    """Weight of each candidate among the `count` greatest values of its group, in [0, 1].

    It is 1 inside and 0 outside; candidates tied at the boundary share the remaining places.
    """
    last = value.topk(count, dim=1).values[:, -1:]
    above, level = (value > last).to(value.dtype), (value == last).to(value.dtype)
    return above + level * (count - above.sum(dim=1, keepdim=True)) / level.sum(dim=1, keepdim=True)


def _clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    advantage = advantage.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)
    # An overflow to infinity times an advantage of 0 would be NaN.
    ratio = torch.where(advantage == 0, 0.0, log_ratio).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()


def _by_its_root(branch: Tensor) -> Tensor:
    return branch / branch.detach().clamp(min=ROOT_FLOOR**2).sqrt()
