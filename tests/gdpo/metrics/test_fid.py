"""FID: the distance against pyiqa's formula, the features against pyiqa's pipeline, and what a
distance must do.
"""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from gdpo.metrics import networks
from gdpo.metrics.fid import features, frechet_distance
from tests.gdpo.metrics import weights


def draw(rows: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


@pytest.mark.parametrize("rows", [(100, 80), (9, 100), (7, 5)])
def test_the_distance_is_that_of_the_formula(rows: tuple[int, int]) -> None:
    one, other = draw(rows[0], 8, 0), draw(rows[1], 8, 1)
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    # The eigenvalues of C_1 C_2 are those of a positive matrix; rounding may leave a tiny negative
    # or imaginary part.
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    difference = one.mean(0) - other.mean(0)
    expected = difference @ difference + sum(np.trace(c) for c in covariances) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_needs_two_images_a_side() -> None:
    with pytest.raises(ValueError, match="at least two images in each set, got 1 and 5"):
        frechet_distance(draw(1, 4, 0), draw(5, 4, 1))


def test_features_are_pyiqas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiqa.archs.fid_arch import get_folder_features

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/pyiqa").mkdir(parents=True)
    weights.inception(tmp_path / "hub")
    photos = [skimage.data.astronaut()[:100, :90], skimage.data.astronaut()[200:330, 100:400]]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
    found = features(photos)
    expected = get_folder_features(
        str(tmp_path),
        networks.build("fid", "cpu").model,
        num_workers=0,
        batch_size=1,
        device=torch.device("cpu"),
        verbose=False,
    )
    assert found.shape == (2, 2048) and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())
    with pytest.raises(ValueError, match="must not be empty"):
        features([])
