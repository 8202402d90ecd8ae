"""The attribute-aware reward (paper Eq. 7) and the group-relative advantage (Eq. 8).

    s' = (s - min_G s) / (max_G s - min_G s)                    per metric, within the group of one
                                                                LR image
    R  = rho_s mean(fidelity s') + rho_d mean(perception s')    rho_d: detail share of the HR image;
                                                                rho_s = 1 - rho_d
    A  = (R - mean_G R) / (std_G R + 1e-8)                      std unbiased

A metric that is constant in a group contributes 0 to the rewards, and equal rewards give zero
advantages; the released code gives NaN in both cases.
Legend: B images, G candidates, F fidelity metrics, N perception metrics.
"""

import torch

from gdpo.checks import check_tensor
from gdpo.config import Reward


def normalise(score: torch.Tensor) -> torch.Tensor:
    """Min-max normalise score_BGM over the group (dim 1) to [0, 1]; 0 for a constant metric."""
    # Over the group and not a running mean and deviation: metrics of different unit (dB, MUSIQ's
    # 0..100) count alike, and the difficulty of the image cancels.
    low, high = score.amin(dim=1, keepdim=True), score.amax(dim=1, keepdim=True)
    spread = high - low
    return torch.where(
        spread > 0,
        # `where` alone would not do: its gradient is NaN if the branch not taken divides by 0.
        (score - low) / spread.where(spread > 0, torch.ones_like(spread)),
        torch.zeros_like(score),
    )


def attribute_aware_reward(
    fidelity_BGF: torch.Tensor, perception_BGN: torch.Tensor, detail_share_B: torch.Tensor
) -> torch.Tensor:
    """reward_BG in [0, 1] (paper Eq. 7).

    Every metric must be oriented so that higher is better. detail_share_B: rho_d in [0, 1]. F or N
    may be 0, but not both.
    Errors: ValueError naming the argument for a wrong shape, NaN, or a share outside [0, 1].
    """
    for name, value in (("fidelity_BGF", fidelity_BGF), ("perception_BGN", perception_BGN)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name} must be a torch.Tensor of shape (B, G, metrics), got "
                f"{type(value).__name__}"
            )
        if (
            value.ndim != 3
            or not value.is_floating_point()
            or not bool(torch.isfinite(value).all())
        ):
            raise ValueError(
                f"{name} must be a finite float tensor of shape (B, G, metrics), got "
                f"{tuple(value.shape)}"
            )
    share = check_tensor("detail_share_B", detail_share_B, "B")
    if (
        fidelity_BGF.shape[:2] != perception_BGN.shape[:2]
        or fidelity_BGF.shape[0] != share.shape[0]
    ):
        shapes = [tuple(x.shape) for x in (fidelity_BGF, perception_BGN, share)]
        raise ValueError(
            f"fidelity_BGF, perception_BGN and detail_share_B disagree about B or G: {shapes}"
        )
    if bool((share < 0).any() | (share > 1).any()):
        raise ValueError("detail_share_B must lie in [0, 1]")
    if fidelity_BGF.shape[2] + perception_BGN.shape[2] == 0:
        raise ValueError("fidelity_BGF and perception_BGN have no metric at all")
    # The share of the HR patch and not of the candidate: a candidate must not choose the weights of
    # its own reward.
    detail = share[:, None].to(fidelity_BGF)
    reward = torch.zeros_like(detail).expand(*fidelity_BGF.shape[:2])
    if fidelity_BGF.shape[2]:
        reward = reward + (1 - detail) * normalise(fidelity_BGF).mean(dim=2)
    if perception_BGN.shape[2]:
        reward = reward + detail * normalise(perception_BGN).mean(dim=2)
    return reward


def perception_weight(settings: Reward, detail_share: float) -> float:
    """rho_d of an image: its detail share, or 1/2 with equal weighting (ARF w/o AW, Table 6)."""
    return detail_share if settings.weighting == "adaptive" else 0.5


def group_advantage(reward_BG: torch.Tensor) -> torch.Tensor:
    """advantage_BG (paper Eq. 8, released code).

    Each group has zero mean and unit, unbiased standard deviation, or zeros for equal rewards.
    Errors: ValueError for a wrong shape, NaN, or a group of fewer than two.
    """
    reward = check_tensor("reward_BG", reward_BG, "BG")
    if reward.shape[1] < 2:
        raise ValueError(
            f"reward_BG must have at least two candidates per group, got {tuple(reward.shape)}"
        )
    centred = reward - reward.mean(dim=1, keepdim=True)
    # Equality of the extremes, not of the deviation with 0: the mean of equal rewards may be off in
    # the last bit, and (R - mean) / 1e-8 would make a preference of that.
    flat = reward.amax(dim=1, keepdim=True) == reward.amin(dim=1, keepdim=True)
    return torch.where(
        flat, torch.zeros_like(reward), centred / (reward.std(dim=1, keepdim=True) + 1e-8)
    )
