"""Best-of-N: one result per seed, ranked by a metric, with progress over all of them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gdpo.metrics.score import score
from gdpo.model.card import IDENTITIES
from gdpo.upscale.candidates import candidates
from gdpo.upscale.protocol import Settings
from gdpo.upscale.resolver import NAOSDResolver
from tests.gdpo.upscale.fake_model import FakeModel

MODEL = NAOSDResolver(IDENTITIES["gdpo"], lambda: FakeModel(), Settings())


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_each_seed_gives_the_result_that_it_gives_alone(photo: NDArray[np.uint8]) -> None:
    made = list(candidates(MODEL, photo, size=(96, 128), seeds=[7, 3], by=None))
    assert [one.seed for one in made] == [7, 3]
    for one in made:
        alone = MODEL.photo(photo, size=(96, 128), seed=one.seed)
        assert np.array_equal(one.photo.image, alone.image)
        assert one.score is None and one.rank == 0


@pytest.mark.parametrize(("by", "sign"), [("niqe", -1), ("entropy", 1)])
def test_a_better_score_has_a_greater_rank(photo: NDArray[np.uint8], by: str, sign: int) -> None:
    for one in candidates(MODEL, photo, size=(96, 128), seeds=range(2), by=by):
        image = torch.from_numpy(one.photo.image.astype(np.float32) / 255).permute(2, 0, 1)[None]
        assert one.score == pytest.approx(float(score([by], image)[by]))
        assert one.rank == sign * one.score


def test_progress_counts_all_seeds(photo: NDArray[np.uint8]) -> None:
    seen: list[tuple[int, int]] = []
    seeds = range(3)
    list(
        candidates(
            MODEL,
            photo,
            size=(96, 128),
            seeds=seeds,
            by=None,
            on_tile=lambda done, total: seen.append((done, total)),
        )
    )
    total = seen[0][1]
    assert total % len(seeds) == 0
    assert seen == [(done, total) for done in range(1, total + 1)]
