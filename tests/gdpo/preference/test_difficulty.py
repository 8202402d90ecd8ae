"""gdpo.preference.difficulty: NAOSD's result on a pair, from the pair's own noise."""

import pytest
import torch

from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.model.sampling import super_resolve
from gdpo.preference.difficulty import difficulty_scores
from tests import tiny

CONFIG = tiny.settings(rollout={"color_fix": "adain"}).rollout


def _scores(indices, metric="psnr_y", **changes):
    given = {"seed": 0, "prompt": "sharp", **changes}
    return difficulty_scores(tiny.model(), [tiny.pair(i) for i in indices], metric, CONFIG, **given)


@pytest.mark.parametrize("metric", ["psnr_y", "niqe"])
def test_a_score_is_that_of_the_one_output(metric):
    """By hand: the enlarged LR patch, noise from (seed, "difficulty", id), colours corrected,
    against the HR patch.
    """
    pair = tiny.pair(3)
    lr, hr = (
        to_tensor(enlarge(pair.lr, pair.hr.shape[:2], pair.degradation["enlarge"]))[None],
        to_tensor(pair.hr)[None],
    )
    key = (0, "difficulty", pair.id)
    image = super_resolve(
        tiny.model(), lr, [key], color_fix="adain", precision="fp32", prompts=["sharp"]
    )
    assert _scores([3], metric) == score([metric], image, hr)[metric].tolist()


def test_the_rest_of_the_batch_does_not_matter_and_the_seed_does():
    """Up to rounding of the last bits: convolutions of another batch size."""
    together = torch.tensor(_scores([0, 1, 2]))
    alone = torch.tensor([_scores([i])[0] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together - torch.tensor(_scores([0, 1, 2], seed=1))).abs().min() > 1e-4
    assert _scores([0], prompt="blurry") != _scores([0])
