"""Metrics against published values, against pyiqa, and against what a metric must do."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from scipy import ndimage
from torch.nn import functional

from gdpo.metrics import niqe
from gdpo.metrics import score as metrics
from gdpo.metrics.score import METRICS, check_available, higher_is_better, score, versions
from tests.gdpo.metrics import pictures

WEIGHTLESS = [name for name, metric in METRICS.items() if not metric.weights]


def _photo(size: int = 192) -> torch.Tensor:
    photo = skimage.data.astronaut()[40 : 40 + size, 150 : 150 + size]
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255


def _noisy(image: torch.Tensor, sigma: float) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + sigma * noise).clamp(0, 1)


def _blurred(image: torch.Tensor) -> torch.Tensor:
    """A quarter of the size and bicubic back."""
    small = functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    return functional.interpolate(small, scale_factor=4.0, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", pictures.NAMES)
def test_values_are_those_of_the_pinned_pyiqa(name: str) -> None:
    expected = pictures.values()[name]
    image, reference = map(pictures.tensor, pictures.pair(name))
    values = score(list(expected), image, reference)
    for metric, value in values.items():
        # pyiqa computes VIF in float32: its fifth decimal differs between kinds of processor.
        tolerance = 1e-4 if metric == "vif" else 1e-5
        assert float(value) == pytest.approx(expected[metric], abs=tolerance, rel=1e-5), metric


def test_gmsd_is_the_published_formula() -> None:
    """Xue et al. 2014: the deviation of the similarity of Prewitt gradients after 2x2 means."""

    def gradient(picture: np.ndarray) -> np.ndarray:
        grey = (picture @ (0.299, 0.587, 0.114)).round()
        height, width = (side // 2 for side in grey.shape)
        small = grey[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
        kernel = np.tile([1, 0, -1], (3, 1)) / 3
        return np.hypot(*(ndimage.convolve(small, k, mode="constant") for k in (kernel, kernel.T)))

    image, reference = pictures.pair("blocky")
    a, b = gradient(image), gradient(reference)
    expected = ((2 * a * b + 170) / (a**2 + b**2 + 170)).std(ddof=1)
    found = score(["gmsd"], *map(pictures.tensor, (image, reference)))["gmsd"]
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_ours_agree_with_pyiqa() -> None:
    psnr = pytest.importorskip("pyiqa.archs.psnr_arch").psnr
    from pyiqa.archs.niqe_arch import calculate_niqe
    from pyiqa.archs.ssim_arch import SSIM

    reference = _photo().double()
    image = _noisy(reference, 0.03)
    found = score(["psnr_y", "ssim_y"], image, reference)
    torch.testing.assert_close(
        found["psnr_y"], psnr(image, reference, True, color_space="ycbcr"), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        found["ssim_y"], SSIM(color_space="ycbcr")(image, reference), atol=1e-5, rtol=0
    )
    rng = np.random.default_rng(0)
    factor = 0.1 * rng.normal(size=(36, 36))
    pristine = niqe.Pristine(rng.random(36), factor @ factor.T + 0.1 * np.eye(36), 96)
    parameters = {
        "mu_pris_param": torch.from_numpy(pristine.mu),
        "cov_pris_param": torch.from_numpy(pristine.cov),
    }
    expected = calculate_niqe(image, **parameters).reshape(1)
    torch.testing.assert_close(niqe.niqe(image, pristine), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_every_weightless_metric_prefers_the_photograph(name: str) -> None:
    reference = _photo()
    better = _noisy(reference, 0.004) if METRICS[name].needs_reference else reference
    # Noise is "activity" to PIQE and raises entropy: both are tested with what they do see.
    worse = {"entropy": reference * 0.2, "piqe": _blurred(reference)}.get(
        name, _noisy(reference, 0.15)
    )
    values = [float(score([name], image, reference)[name]) for image in (better, worse)]
    assert (values[0] > values[1]) == higher_is_better(name)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_scores_are_float64_per_image_and_do_not_depend_on_the_batch(name: str) -> None:
    photo = _photo(METRICS[name].min_side + 40 if name != "ms_ssim" else 161)
    reference = torch.cat([photo, photo.flip(3), photo.flip(2) * 0.5])
    image = _noisy(reference, 0.02)
    found = score([name], image, reference)[name]
    assert found.shape == (3,) and found.dtype == torch.float64
    singles = [score([name], image[i : i + 1], reference[i : i + 1])[name] for i in range(3)]
    assert torch.equal(found, torch.cat(singles))
    assert torch.equal(found, score([name], image, reference)[name])


def test_shipped_niqe_parameters_rank_blur_and_noise_as_worse() -> None:
    photo = _photo()
    scores = score(["niqe"], torch.cat([photo, _blurred(photo), _noisy(photo, 0.08)]))["niqe"]
    assert scores[0] + 1 < scores[1] and scores[0] + 1 < scores[2]


def test_black_images_have_finite_scores() -> None:
    black = torch.zeros(1, 3, 192, 192)
    for name, value in score(WEIGHTLESS, black, black).items():
        assert bool(value.isfinite().all()) or name == "vif", name
    assert float(score(["psnr_y"], black, black)["psnr_y"]) == pytest.approx(80)


def test_niqe_parameters_round_trip_as_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = [
        np.kron(rng.integers(0, 256, (64, 64, 3)), np.ones((2, 2, 1))).astype(np.uint8)
        for _ in range(2)
    ]
    fitted = niqe.fit_niqe(photos, block=16)
    niqe.write_niqe(tmp_path / "a.mat", fitted)
    niqe.write_niqe(tmp_path / "b.mat", niqe.fit_niqe(photos, block=16))
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()
    read = niqe.read_niqe(tmp_path / "a.mat")
    assert (
        read.block == 16
        and np.array_equal(read.mu, fitted.mu)
        and np.array_equal(read.cov, fitted.cov)
    )
    assert float(np.linalg.eigvalsh(read.cov).min()) > 0


def test_a_fit_needs_enough_blocks_and_a_file_must_hold_parameters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sharp blocks"):
        niqe.fit_niqe([skimage.data.astronaut()[:64, :64]])
    with pytest.raises(ValueError, match="at least 32"):
        niqe.fit_niqe([skimage.data.astronaut()[:64, :16]])
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.mat: not a file of NIQE parameters"):
        niqe.read_niqe(tmp_path / "bad.mat")


def test_missing_files_are_named_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"metric musiq: musiq_koniq.*\.pth is missing; put it into .*pyiqa"
    ):
        check_available(["psnr_y", "musiq"])
    with pytest.raises(ValueError, match="lpips_alex"):
        score(["lpips_alex"], _photo(), _photo())
    monkeypatch.setattr(metrics, "NIQE_FILE", tmp_path / "niqe.mat")
    with pytest.raises(ValueError, match=r"metric niqe: niqe\.mat is missing"):
        check_available(["niqe"])


def test_an_empty_file_is_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa/afine.pth").touch()
    assert list(metrics.missing(["afine", "psnr_y", "dists"])) == ["afine", "dists"]
    assert metrics.missing(["dists"])["dists"].count("is missing; put it into") == 2


def test_versions_name_what_computes_a_value() -> None:
    found = versions(["psnr_y", "gmsd", "niqe"])
    assert found["psnr_y"] == "gdpo"
    assert found["gmsd"] == "gdpo" and versions(["vif"])["vif"].startswith("pyiqa 0.")
    assert (
        found["niqe"]
        == f"gdpo; niqe.mat sha256 {hashlib.sha256(metrics.NIQE_FILE.read_bytes()).hexdigest()}"
    )
    with pytest.raises(ValueError, match="unknown metric"):
        versions(["beauty"])


def test_bad_arguments_are_named() -> None:
    photo = _photo(64)
    with pytest.raises(ValueError, match="unknown metric 'psnr'"):
        metrics.missing(["psnr"])
    with pytest.raises(ValueError, match=r"unknown metric 'psnr'; known are psnr_y"):
        score(["psnr"], photo, photo)
    with pytest.raises(ValueError, match="unknown metric"):
        higher_is_better("psnr")
    with pytest.raises(ValueError, match=r"^reference must be given: ssim_y"):
        score(["ssim_y"], photo)
    with pytest.raises(ValueError, match="at least 161 pixels for ms_ssim"):
        score(["ms_ssim"], photo, photo)
    with pytest.raises(ValueError, match=r"^image "):
        score(["piqe"], photo * 2)
    with pytest.raises(ValueError, match=r"^reference "):
        score(["psnr_y"], photo, photo - 1)
    with pytest.raises(ValueError, match="same shape"):
        score(["psnr_y"], photo, photo[:, :, 1:])
