"""gdpo.data.kernels against SciPy's densities and integrals."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import j0
from scipy.stats import multivariate_normal

from gdpo.config import Degradation, DegradationOrder
from gdpo.data.kernels import KINDS, draw_final_sinc, draw_kernel, kernel


def _bell(kind: str, **changes) -> dict:
    beta = {} if kind in ("iso", "aniso") else {"beta": 1.7}
    return {"kind": kind, "size": 21, "sigma": [2.5, 0.8], "theta": 0.6, **beta, **changes}


def _quadratic_form(drawn: dict) -> np.ndarray:
    """x' S^-1 x by the covariance matrix itself, x to the right and y down."""
    c, s = math.cos(drawn["theta"]), math.sin(drawn["theta"])
    turn = np.array([[c, -s], [s, c]])
    inverse = np.linalg.inv(turn @ np.diag(np.square(drawn["sigma"])) @ turn.T)
    half = drawn["size"] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    points = np.stack([x, y], -1)
    return np.einsum("hwi,ij,hwj->hw", points, inverse, points)


def test_gaussian_is_scipys_density():
    """The anisotropic kernel is the normalised density of a bivariate normal."""
    drawn = _bell("aniso")
    c, s = math.cos(0.6), math.sin(0.6)
    turn = np.array([[c, -s], [s, c]])
    y, x = np.mgrid[-10:11, -10:11]
    density = multivariate_normal(cov=turn @ np.diag([2.5**2, 0.8**2]) @ turn.T).pdf(
        np.stack([x, y], -1)
    )
    np.testing.assert_allclose(kernel(drawn), density / density.sum(), atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.3])
def test_generalized_and_plateau_closed_forms(beta):
    """exp(-q^beta / 2) and 1 / (1 + q^beta); beta 1 of the first is the Gaussian."""
    drawn = _bell("generalized_aniso", beta=beta)
    q = _quadratic_form(drawn)
    generalized, plateau = np.exp(-0.5 * q**beta), 1 / (1 + q**beta)
    np.testing.assert_allclose(kernel(drawn), generalized / generalized.sum(), atol=1e-7)
    np.testing.assert_allclose(
        kernel({**drawn, "kind": "plateau_aniso"}), plateau / plateau.sum(), atol=1e-7
    )
    if beta == 1:
        np.testing.assert_allclose(kernel(drawn), kernel(_bell("aniso")), atol=1e-7)


@pytest.mark.parametrize("cutoff", [math.pi / 5, 2.0, math.pi])
def test_sinc_is_the_fourier_integral_of_a_disc(cutoff):
    """k(r) = 1 / (2 pi) * integral of w J0(w r) over 0..cutoff."""
    drawn = {"kind": "sinc", "size": 9, "cutoff": cutoff}
    radii = np.hypot(*np.mgrid[-4:5, -4:5])
    integral = np.vectorize(lambda r: quad(lambda w: w * j0(w * r), 0, cutoff)[0])(radii)
    np.testing.assert_allclose(kernel(drawn), integral / integral.sum(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 21])
def test_kernels_sum_to_one_and_are_point_symmetric(kind, size):
    """So that filtering keeps flat areas, and correlation is convolution."""
    values = kernel(_bell(kind, size=size))
    assert values.dtype == np.float32 and values.shape == (size, size)
    assert values.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(values, values[::-1, ::-1], atol=1e-8)


def test_draw_kernel_shares_and_ranges():
    """Kinds come with the configured probabilities (within 4 standard errors), values lie inside
    their ranges.
    """
    config, stage, rng = Degradation(), DegradationOrder(), np.random.default_rng(0)
    drawn = [draw_kernel(config, stage, rng) for _ in range(6000)]
    sincs = [k for k in drawn if k["kind"] == "sinc"]
    shares = {"sinc": stage.sinc_prob}
    shares |= {
        kind: (1 - stage.sinc_prob) * p for kind, p in zip(KINDS, config.kernel_prob, strict=True)
    }
    for kind, share in shares.items():
        found = sum(k["kind"] == kind for k in drawn) / len(drawn)
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(drawn)), kind
    assert {k["size"] for k in drawn} == set(config.kernel_sizes)
    for k in sincs:
        assert (math.pi / 3 if k["size"] < 13 else math.pi / 5) <= k["cutoff"] <= math.pi
    bells = [k for k in drawn if k["kind"] != "sinc"]
    assert all(0.2 <= sigma <= 3.0 for k in bells for sigma in k["sigma"])
    for k in bells:
        if not k["kind"].endswith("aniso"):
            assert k["sigma"][0] == k["sigma"][1] and k["theta"] == 0
    below = [k["beta"] < 1 for k in bells if k["kind"].startswith("generalized")]
    assert abs(np.mean(below) - 0.5) < 4 * 0.5 / math.sqrt(len(below))
    # The plateau's range starts at 1, so half of the draws are exactly 1 (as in the release).
    ones = [k["beta"] == 1 for k in bells if k["kind"].startswith("plateau")]
    assert abs(np.mean(ones) - 0.5) < 4 * 0.5 / math.sqrt(len(ones))


def test_final_sinc_share():
    """Drawn with probability `final_sinc_prob`."""
    rng = np.random.default_rng(1)
    drawn = [draw_final_sinc(Degradation(), rng) for _ in range(2000)]
    assert abs(np.mean([k is not None for k in drawn]) - 0.8) < 4 * math.sqrt(0.16 / 2000)
    assert all(math.pi / 3 <= k["cutoff"] <= math.pi for k in drawn if k)
    assert draw_final_sinc(Degradation(final_sinc_prob=0.0), rng) is None
