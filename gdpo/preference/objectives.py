"""The GDPO objective (paper Eq. 9, as released), a pure function of errors and advantages.

    inside_b = -omega/2 * sum_i A_i (m_i - r_i)         m, r: mean squared noise error of policy and reference
    L = mean_b -log sigmoid(inside_b)

The paper prints omega and a sum over the latent; the release multiplies the *mean* over its elements by omega/2 = 2500.
Legend: B images (groups), G candidates.
"""

import math

import torch
import torch.nn.functional as F

from gdpo.checks import check_tensor


def gdpo_logit(
    policy_error_BG: torch.Tensor, reference_error_BG: torch.Tensor, advantage_BG: torch.Tensor, omega: float = 5000.0
) -> torch.Tensor:
    """inside_B: positive where the policy moved towards the better candidates of the group."""
    errors = [
        check_tensor(name, value, "BG")
        for name, value in (
            ("policy_error_BG", policy_error_BG),
            ("reference_error_BG", reference_error_BG),
            ("advantage_BG", advantage_BG),
        )
    ]
    if len({tuple(x.shape) for x in errors}) > 1:
        raise ValueError(
            f"policy_error_BG, reference_error_BG and advantage_BG differ in shape: {[tuple(x.shape) for x in errors]}"
        )
    if isinstance(omega, bool) or not isinstance(omega, int | float) or not 0 < omega < math.inf:
        raise ValueError(f"omega must be a positive number, got {omega!r}")
    return -0.5 * omega * (advantage_BG * (policy_error_BG - reference_error_BG)).sum(dim=1)


def gdpo_loss(
    policy_error_BG: torch.Tensor, reference_error_BG: torch.Tensor, advantage_BG: torch.Tensor, omega: float = 5000.0
) -> torch.Tensor:
    """The GDPO loss, a scalar; ln 2 when policy and reference agree.

    Errors: ValueError naming the argument for a wrong or differing shape, NaN, or an omega that is not positive.
    """
    return -F.logsigmoid(gdpo_logit(policy_error_BG, reference_error_BG, advantage_BG, omega)).mean()
