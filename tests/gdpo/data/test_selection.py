"""gdpo.data.selection: the rule, one clause at a time, and the hash."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy.fft import dctn

from gdpo.config import Select
from gdpo.data.selection import (
    NearDuplicates,
    choose,
    manifest,
    metric_of,
    perceptual_hash,
)


def _rule(**changes) -> Select:
    return Select(
        **{
            "count": 10,
            "score": "niqe",
            "min_detail": 0.1,
            "max_per_photo": 10,
            "min_hash_distance": 4,
            **changes,
        }
    )


def _choose(rule: Select, scores, *, detail=None, sources=None, hashes=None, higher=False):
    n = len(scores)
    columns = {
        "id": [f"p{i}" for i in range(n)],
        "source": sources or ["a"] * n,
        "score": pa.array(scores, pa.float64()),
        "detail_share": detail or [0.5] * n,
        "hash": pa.array(
            hashes or [(0xFF << 8 * (i % 8)) ^ (i << 60) for i in range(n)], pa.uint64()
        ),
    }
    return choose(pa.table(columns), rule, higher_is_better=higher)


def test_best_score_first_and_count():
    """NIQE: the lowest; MUSIQ: the highest. The rest is surplus, and still has its score."""
    table = _choose(_rule(count=2), [3.0, 1.0, 2.0])
    assert manifest(table)["id"].to_pylist() == ["p1", "p2"]
    assert manifest(table).column_names == ["id", "score", "detail_share"]
    assert table["reason"].to_pylist() == ["count is reached", "selected", "selected"]
    assert table["rank"].to_pylist() == [None, 0, 1] and table["score"].to_pylist() == [
        3.0,
        1.0,
        2.0,
    ]
    assert manifest(_choose(_rule(count=2), [3.0, 1.0, 2.0], higher=True))["id"].to_pylist() == [
        "p0",
        "p2",
    ]


def test_equal_scores_go_by_id():
    """So that the selection does not depend on the order of the shards."""
    assert manifest(_choose(_rule(count=2), [1.0, 1.0, 1.0]))["id"].to_pylist() == ["p0", "p1"]


def test_floor_on_detail_and_missing_scores():
    """A flat patch is refused whatever its score (the floor itself passes), one without a score
    too.
    """
    table = _choose(_rule(), [0.1, 5.0, float("nan"), float("inf")], detail=[0.09, 0.1, 0.5, 0.5])
    assert table["reason"].to_pylist() == ["too little detail", "selected", "no score", "no score"]


def test_quota_per_photograph():
    """The best of each photograph."""
    table = _choose(_rule(max_per_photo=1), [1.0, 2.0, 3.0], sources=["a", "a", "b"])
    assert table["reason"].to_pylist() == ["selected", "photograph's quota is full", "selected"]


@pytest.mark.parametrize(("distance", "kept"), [(4, 1), (3, 2), (0, 2)])
def test_near_duplicates(distance, kept):
    """Hashes that differ in 3 bits are duplicates if at least 4 are asked for; 0 switches the
    clause off.
    """
    table = _choose(
        _rule(min_hash_distance=distance), [1.0, 2.0], hashes=[2**63 + 1, 2**63 + 14 + 1]
    )
    assert manifest(table).num_rows == kept
    if kept == 1:
        assert table["reason"].to_pylist()[1] == "near-duplicate"


def test_only_taken_patches_make_duplicates():
    """A patch like one that was refused for its photograph's quota is not a duplicate."""
    table = _choose(
        _rule(max_per_photo=1),
        [1.0, 2.0, 3.0],
        sources=["a", "a", "b"],
        hashes=[0, 2**63 - 1, 2**63 - 1],
    )
    assert table["reason"].to_pylist()[2] == "selected"


def test_without_a_count_all_that_pass_are_taken():
    """Null in params.yaml."""
    assert manifest(_choose(_rule(count=None), [3.0, 1.0, 2.0])).num_rows == 3


@pytest.mark.parametrize(
    ("best", "inside"), [(1.0, 5), (0.6, 3), (0.5, 3), (0.41, 3), (0.4, 2), (0.21, 2), (0.01, 1)]
)
def test_only_the_best_share_of_all_scores(best, inside):
    """The k-th best of n decides, k = share x n rounded up; those without a score are not counted,
    flat ones are.
    """
    scores = [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]
    table = _choose(_rule(best=best), scores, detail=[0.5, 0.0] + [0.5] * 4)
    expected = ["selected"] * inside + ["score outside the share"] * (5 - inside) + ["no score"]
    expected[1] = "too little detail"
    assert table["reason"].to_pylist() == expected


def test_nothing_inside_the_share_is_said():
    """Here the only patch inside is flat."""
    with pytest.raises(
        ValueError,
        match=r"1 lie below .*, 0 have no niqe score, 3 are outside select\.best = 0\.1;",
    ):
        _choose(_rule(best=0.1), [1.0, 2.0, 3.0, 4.0], detail=[0.0, 0.5, 0.5, 0.5])


def test_ties_at_the_bound_are_all_inside():
    """The bound is a score: which of two equal ones is taken must not hang on their ids."""
    assert manifest(_choose(_rule(best=0.5), [1.0, 2.0, 2.0, 3.0])).num_rows == 3


@pytest.mark.parametrize(("higher", "worst_first"), [(True, ["p3", "p0"]), (False, ["p2", "p1"])])
def test_difficulty_takes_the_worst_first(higher, worst_first):
    """PSNR: the lowest; LPIPS: the highest. The other half is outside; `best` is the other
    rule's.
    """
    rule = _rule(rule="difficulty", worst=0.5, best=0.25)
    table = _choose(rule, [20.0, 30.0, 40.0, 10.0], higher=higher)
    assert manifest(table)["id"].to_pylist() == worst_first
    assert table["reason"].to_pylist().count("score outside the share") == 2
    assert metric_of(rule) == "psnr_y" and metric_of(_rule()) == "niqe"


@pytest.mark.parametrize(
    ("key", "value"), [("worst", 0.0), ("best", 1.1), ("rule", "easy"), ("count", 0)]
)
def test_impossible_rules_are_refused(key, value):
    """At configuration time, naming the key."""
    with pytest.raises(ValidationError, match=key):
        _rule(**{key: value})


def _similar(count: int, seed: int) -> list[int]:
    """Hashes in families: a few originals with 0 to 12 of their bits turned."""
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 2**63, 12, dtype=np.uint64)
    hashes = originals[rng.integers(0, 12, count)]
    for i in range(count):
        for bit in rng.choice(64, rng.integers(0, 13), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    return [int(value) for value in hashes]


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 5, 7, 9, 16, 33, 64])
def test_the_search_by_bands_finds_what_comparing_all_finds(distance):
    """For every distance, on hashes of which many lie just inside or just outside of it."""
    near, taken, found = NearDuplicates(distance), [], 0
    for hash_ in _similar(600, distance):
        expected = any((hash_ ^ other).bit_count() < distance for other in taken)
        assert near.has(hash_) == expected
        found += expected
        if not expected:
            near.add(hash_)
            taken.append(hash_)
    assert bool(found) == (distance > 0)


def _one_by_one(table: pa.Table, rule: Select, higher: bool) -> list[str]:
    """The rule without any index: every patch against all that were taken before it."""
    rows = table.to_pylist()
    sign = -1 if higher == (rule.rule == "quality") else 1
    scored = sorted(sign * row["score"] for row in rows if np.isfinite(row["score"]))
    share = rule.best if rule.rule == "quality" else rule.worst
    bound = scored[int(np.ceil(round(share * len(scored), 6))) - 1]
    taken: list[dict] = []
    fit = [
        row
        for row in rows
        if row["detail_share"] >= rule.min_detail and sign * row["score"] <= bound
    ]
    for row in sorted(fit, key=lambda row: (sign * row["score"], row["id"])):
        near = any(
            (row["hash"] ^ other["hash"]).bit_count() < rule.min_hash_distance for other in taken
        )
        full = sum(other["source"] == row["source"] for other in taken) == rule.max_per_photo
        if len(taken) != rule.count and not near and not full:
            taken.append(row)
    return [row["id"] for row in taken]


@pytest.mark.parametrize("rule", ["quality", "difficulty"])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_rule_equals_going_through_the_patches_one_by_one(rule, seed):
    """On random tables with ties, missing scores, families of hashes and full quotas."""
    rng = np.random.default_rng(seed)
    n = 400
    scores = rng.integers(0, 60, n).astype(float)
    scores[rng.random(n) < 0.05] = np.nan
    table = pa.table(
        {
            "id": [f"{i:03d}" for i in rng.permutation(n)],
            "source": [f"photo{i}" for i in rng.integers(0, 12, n)],
            "score": scores,
            "detail_share": rng.random(n),
            "hash": pa.array(_similar(n, seed), pa.uint64()),
        }
    )
    chosen = _rule(rule=rule, count=60, max_per_photo=7, min_hash_distance=5, best=0.8, worst=0.8)
    expected = _one_by_one(table, chosen, higher=True)
    assert len(expected) > 20
    assert manifest(choose(table, chosen, higher_is_better=True))["id"].to_pylist() == expected


def test_nothing_fit_names_the_key():
    """With how many fell for which reason."""
    with pytest.raises(
        ValueError, match=r"none of 2 patches is fit, 2 lie below select\.min_detail = 0\.1"
    ):
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
    noisy = np.clip(
        photo.astype(int) + np.random.default_rng(2).integers(-6, 7, photo.shape) + 10, 0, 255
    ).astype(np.uint8)
    assert (perceptual_hash(photo) ^ perceptual_hash(noisy)).bit_count() < 4
    others = [
        (perceptual_hash(photo) ^ perceptual_hash(_photo(seed))).bit_count()
        for seed in range(2, 12)
    ]
    assert 24 < np.mean(others) < 40 and min(others) > 10
