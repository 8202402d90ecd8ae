"""gdpo.data.selection: the rule, one clause at a time, and the hash."""

import numpy as np
import pytest
from scipy.fft import dctn

from gdpo.config import Select
from gdpo.data.selection import choose, manifest, perceptual_hash


def _rule(**changes) -> Select:
    return Select(**{"count": 10, "score": "niqe", "min_detail": 0.1, "max_per_photo": 10, "min_hash_distance": 4, **changes})


def _choose(rule: Select, scores, *, detail=None, sources=None, hashes=None, higher=False):
    n = len(scores)
    return choose(
        [f"p{i}" for i in range(n)],
        sources or ["a"] * n,
        scores,
        detail or [0.5] * n,
        hashes or [(0xFF << 8 * (i % 8)) ^ (i << 60) for i in range(n)],
        rule,
        higher_is_better=higher,
    )


def test_best_score_first_and_count():
    """NIQE: the lowest; MUSIQ: the highest. The rest is surplus, and still has its score."""
    table = _choose(_rule(count=2), [3.0, 1.0, 2.0])
    assert manifest(table)["id"].to_pylist() == ["p1", "p2"]
    assert manifest(table).column_names == ["id", "score", "detail_share"]
    assert table["reason"].to_pylist() == ["count is reached", "selected", "selected"]
    assert table["rank"].to_pylist() == [None, 0, 1] and table["score"].to_pylist() == [3.0, 1.0, 2.0]
    assert manifest(_choose(_rule(count=2), [3.0, 1.0, 2.0], higher=True))["id"].to_pylist() == ["p0", "p2"]


def test_equal_scores_go_by_id():
    """So that the selection does not depend on the order of the shards."""
    assert manifest(_choose(_rule(count=2), [1.0, 1.0, 1.0]))["id"].to_pylist() == ["p0", "p1"]


def test_floor_on_detail_and_missing_scores():
    """A flat patch is refused whatever its score (the floor itself passes), one without a score too."""
    table = _choose(_rule(), [0.1, 5.0, float("nan"), float("inf")], detail=[0.09, 0.1, 0.5, 0.5])
    assert table["reason"].to_pylist() == ["too little detail", "selected", "no score", "no score"]


def test_quota_per_photograph():
    """The best of each photograph."""
    table = _choose(_rule(max_per_photo=1), [1.0, 2.0, 3.0], sources=["a", "a", "b"])
    assert table["reason"].to_pylist() == ["selected", "photograph's quota is full", "selected"]


@pytest.mark.parametrize(("distance", "kept"), [(4, 1), (3, 2), (0, 2)])
def test_near_duplicates(distance, kept):
    """Hashes that differ in 3 bits are duplicates if at least 4 are asked for; 0 switches the clause off."""
    table = _choose(_rule(min_hash_distance=distance), [1.0, 2.0], hashes=[2**63 + 1, 2**63 + 14 + 1])
    assert manifest(table).num_rows == kept
    if kept == 1:
        assert table["reason"].to_pylist()[1] == "near-duplicate"


def test_only_taken_patches_make_duplicates():
    """A patch like one that was refused for its photograph's quota is not a duplicate."""
    table = _choose(_rule(max_per_photo=1), [1.0, 2.0, 3.0], sources=["a", "a", "b"], hashes=[0, 2**63 - 1, 2**63 - 1])
    assert table["reason"].to_pylist()[2] == "selected"


def test_nothing_fit_names_the_key():
    """With how many fell for which reason."""
    with pytest.raises(ValueError, match=r"none of 2 patches is fit, 2 lie below select\.min_detail = 0\.1"):
        _choose(_rule(), [1.0, 2.0], detail=[0.0, 0.05])


def _photo(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 200, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)


def test_perceptual_hash_follows_its_definition():
    """Against SciPy's DCT of block means, for a gray photograph whose blocks are exact."""
    gray = np.repeat(_photo(0)[..., :1], 3, -1)
    means = gray[..., 0].reshape(32, 3, 32, 3).mean((1, 3)).round()
    lowest = dctn(means, norm="ortho")[:8, :8].ravel()
    bits = "".join("1" if value > np.median(lowest) else "0" for value in lowest)
    assert (perceptual_hash(gray) ^ int(bits, 2)).bit_count() == 0


def test_perceptual_hash_sees_what_eyes_see():
    """Noise and brightness change few bits, another picture about half of them."""
    photo = _photo(1)
    noisy = np.clip(photo.astype(int) + np.random.default_rng(2).integers(-6, 7, photo.shape) + 10, 0, 255).astype(np.uint8)
    assert (perceptual_hash(photo) ^ perceptual_hash(noisy)).bit_count() < 4
    others = [(perceptual_hash(photo) ^ perceptual_hash(_photo(seed))).bit_count() for seed in range(2, 12)]
    assert 24 < np.mean(others) < 40 and min(others) > 10
