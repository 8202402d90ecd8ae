"""The values of one fine-tuning step: what is derived from its sums, and the checks that stop it.

m and r are the errors of policy and reference, A the advantages; all values are means over the
groups of the step.
"""

from gdpo.checks import NotFinite
from gdpo.config import Config
from gdpo.preference.strength import READ, Strength

# Multiple of the reference's error at which training stops: no usable learning rate comes near it.
EXPLODED = 10.0
# Relative difference at step 0 above which the stored errors belong to another reference. The
# untrained policy equals the reference, and other kernels or another machine's bf16 differ by less.
FOREIGN = 0.01


def named(strength: Strength, config: Config) -> str:
    """The strengths that the objective reads, with their values."""
    names = READ[config.finetune.objective]
    return ", ".join(f"finetune.{name} {getattr(strength, name):.4g}" for name in names)


def logit_and_distance(
    square: float, distance: float, values: dict[str, float], strength: Strength, config: Config
) -> dict[str, float]:
    """Standard deviation of the logit over the groups of a step, and the distance D.

    Each only where it is defined: the logit for objectives that have GDPO's, the distance where the
    reference's predictions are stored.
    """
    logged, weighted = {}, values["weighted_error_difference"]
    scale = {"gdpo": strength.omega / 2, "dgpo": strength.beta}
    scale["dgpo"] /= config.rollout.group
    if (objective := config.finetune.objective) in scale:
        logged["logit_std"] = scale[objective] * max(square - weighted**2, 0.0) ** 0.5
    if config.rollout.input == "lr":
        reference = values["policy_error"] - values["error_change"]
        logged["distance"] = (distance / reference) ** 0.5 if reference > 0 else 0.0
    return logged


def check_values(values: dict[str, float], strength: Strength, config: Config) -> None:
    """Raise NotFinite if a value is not finite, or as `check_error`.

    Called before the optimiser step: the loop then stops with its last checkpoint.
    """
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise NotFinite(f"{name} is not finite")
    reference = values["policy_error"] - values["error_change"]
    check_error(values["policy_error"], reference, strength, config)


def check_error(policy: float, reference: float, strength: Strength, config: Config) -> None:
    """Raise NotFinite unless the policy's error is a number, at most `EXPLODED` times the
    reference's.
    """
    if not policy <= EXPLODED * reference:
        times = f"{policy / reference:.0f} times" if reference else "beyond"
        raise NotFinite(
            f"the policy's error exploded to {times} the reference's with "
            f"{named(strength, config)} and "
            f"finetune.optimizer.lr {config.finetune.optimizer.lr:g}"
        )


def check_reference(values: dict[str, float]) -> None:
    """ValueError if the stored errors are not those of this reference; `values` are of step 0.

    There the policy is the reference, so any difference lies in the stored errors.
    """
    reference = values["policy_error"] - values["error_change"]
    if abs(values["error_change"]) > FOREIGN * reference:
        raise ValueError(
            "the rollouts' reference errors are "
            f"{-values['error_change'] / values['policy_error']:+.1%} off those of this "
            "model: made with other weights, precision or software; run the rollout stage again"
        )
