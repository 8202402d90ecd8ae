"""The blur kernels of second-order degradation: drawn parameters -> kernel in closed form.

    q = x' S^-1 x,  S = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)'
    gaussian      exp(-q / 2)
    generalized   exp(-q^beta / 2)
    plateau       1 / (1 + q^beta)
    sinc          c J1(c r) / (2 pi r), at r = 0: c^2 / (4 pi)

All kernels are normalised to sum 1.

Source: Real-ESRGAN (section 3) and the GDPO release, which draws the same kinds with the same
probabilities.
"""

import math
from typing import Any

import numpy as np
from scipy.special import j1

from gdpo.config import Degradation, DegradationOrder

Draw = dict[str, Any]
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


def pick(rng: np.random.Generator, options: tuple[str, ...], shares: list[float]) -> str:
    """One of `options` with probabilities `shares`."""
    weights = np.asarray(shares)
    return options[int(rng.choice(len(options), p=weights / weights.sum()))]


def between(rng: np.random.Generator, ends: list[float]) -> float:
    """A uniform draw between the two `ends`."""
    return rng.uniform(ends[0], ends[1])


def draw_kernel(config: Degradation, stage: DegradationOrder, rng: np.random.Generator) -> Draw:
    """Draw the parameters of one blur kernel.

    A sinc with probability `stage.sinc_prob`, otherwise one of `KINDS`.
    """
    # The size is drawn before the kind, as in the release, where it also decides the cutoff of a
    # sinc.
    size = int(rng.choice(config.kernel_sizes))
    if rng.random() < stage.sinc_prob:
        # As in Real-ESRGAN, larger kernels may have a lower cutoff.
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return {"kind": "sinc", "size": size, "cutoff": rng.uniform(lowest, math.pi)}
    kind = pick(rng, KINDS, config.kernel_prob)
    sigma_x = between(rng, stage.blur_sigma)
    aniso = kind.endswith("aniso")
    kernel: Draw = {
        "kind": kind,
        "size": size,
        "sigma": [sigma_x, between(rng, stage.blur_sigma) if aniso else sigma_x],
        "theta": rng.uniform(-math.pi, math.pi) if aniso else 0.0,
    }
    if kind.startswith("generalized"):
        kernel["beta"] = _draw_beta(config.betag_range, rng)
    elif kind.startswith("plateau"):
        kernel["beta"] = _draw_beta(config.betap_range, rng)
    return kernel


def draw_final_sinc(config: Degradation, rng: np.random.Generator) -> Draw | None:
    """Draw the parameters of the final sinc filter, or None (no filter)."""
    if rng.random() >= config.final_sinc_prob:
        return None
    return {
        "kind": "sinc",
        "size": int(rng.choice(config.kernel_sizes)),
        "cutoff": rng.uniform(math.pi / 3, math.pi),
    }


def _draw_beta(ends: list[float], rng: np.random.Generator) -> float:
    """Draw beta: uniform in [low, 1] or in [1, high], with probability 1/2 each.

    With low = 1, the first case always gives 1.
    """
    low, high = (ends[0], 1.0) if rng.random() < 0.5 else (1.0, ends[1])
    return rng.uniform(low, high)


def kernel(drawn: Draw) -> np.ndarray:
    """The float32 (size, size) kernel of drawn parameters, with sum 1."""
    size = drawn["size"]
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    values = (
        _sinc(drawn["cutoff"], np.hypot(x, y)) if drawn["kind"] == "sinc" else _bell(drawn, x, y)
    )
    # A sum other than 1 would brighten or darken the image.
    normalised: np.ndarray = (values / values.sum()).astype(np.float32)
    return normalised


def _sinc(cutoff: float, r: np.ndarray) -> np.ndarray:
    """Circular ideal low-pass with the given cutoff in radians per pixel, at radius r."""
    safe = np.where(r == 0, 1.0, r)
    # J1(x) / x tends to 1/2 at 0.
    values: np.ndarray = np.where(
        r == 0, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * safe) / (2 * np.pi * safe)
    )
    return values


def _bell(drawn: Draw, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The unnormalised Gaussian, generalized or plateau kernel at (x, y)."""
    (sigma_x, sigma_y), theta = drawn["sigma"], drawn["theta"]
    # q = x' S^-1 x: rotate the coordinates into the kernel's axes and divide each by its sigma.
    along = (x * math.cos(theta) + y * math.sin(theta)) / sigma_x
    across = (y * math.cos(theta) - x * math.sin(theta)) / sigma_y
    q = along**2 + across**2
    # beta < 1: a sharp peak with heavy tails; beta > 1: a flat top, as of a defocused lens.
    powered: np.ndarray = q ** drawn.get("beta", 1.0)
    plateau: np.ndarray = 1 / (1 + powered)
    return plateau if drawn["kind"].startswith("plateau") else np.exp(-0.5 * powered)
