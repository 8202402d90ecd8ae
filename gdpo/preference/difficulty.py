"""Scores of NAOSD on training pairs, for the selection rule `difficulty` of gdpo/data/selection.py.

NAOSD super-resolves each pair once, with the noise of the key (seed, "difficulty", pair id). The
output is scored in the same way as a rollout candidate.
"""

from collections.abc import Sequence

import torch

from gdpo.config import Rollout
from gdpo.data.shards import Pair, enlarge
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose
from gdpo.model.sampling import super_resolve
from gdpo.seeds import Key


def difficulty_scores(
    model: NAOSD, pairs: Sequence[Pair], metric: str, config: Rollout, *, seed: int, prompt: str
) -> list[float]:
    """The metric of NAOSD's output on each pair, with the HR patch as the reference image.

    A score does not depend on the other pairs of the batch. pairs: all of one size. config: its
    colour correction and precision apply. prompt: the text that follows the tags.
    Errors: ValueError naming the argument or metric.
    """
    lr = torch.stack(
        [to_tensor(enlarge(p.lr, p.hr.shape[:2], p.degradation["enlarge"])) for p in pairs]
    )
    hr = torch.stack([to_tensor(p.hr) for p in pairs])
    # A key of its own: with the rollouts' noise, pairs would be chosen for how one candidate came
    # out.
    keys: list[Key] = [(seed, "difficulty", p.id) for p in pairs]
    prompts = [compose(p.tags, prompt) for p in pairs]
    image = super_resolve(
        model, lr, keys, color_fix=config.color_fix, precision=config.precision, prompts=prompts
    )
    return score([metric], image, hr.to(image))[metric].tolist()
