"""Held-out evaluation: every model on the same photographs with the same noises.

    input     the LR image enlarged bicubically to the size of the HR image
    baselines this input, `bicubic`, and other methods' outputs, one each, unchanged
    outputs   N per image and model; noise n is drawn from key (seed, "evaluate", pair id, n), the
              same for every model
    scores    of the output rounded to 8 bits (as a user would save it), against the HR image
    reward    s' = +-(s - mean_n s_ref) / sigma_ref   for each metric, + where higher is better
              R  = (1 - d) mean(fidelity s') + d mean(perception s')
              d: detail share of the HR image, or 0.5 with equal weighting

In training, the attribute-aware reward is min-max normalised within a group of candidates. That
reward ranks the members of one group and cannot compare the groups of two models. The reward here
keeps the paper's weights and normalises by a reference model, NAOSD: by the mean over noises of its
scores of that image, and by its within-image standard deviation of that metric, pooled over all
images. So the mean reward of the reference is 0 by construction, and the unit is that deviation.

Legend: B C H W batch, channels, height, width; I images; N noises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gdpo.config import Reward
from gdpo.config.evaluation import BICUBIC
from gdpo.data.operations import INFERENCE_MODE
from gdpo.data.shards import Pair, enlarge
from gdpo.evaluate.statistics import Array, Scores, within_image_std
from gdpo.images import to_tensor
from gdpo.metrics.score import higher_is_better, score
from gdpo.rewards.attribute_aware import perception_weight
from gdpo.seeds import Key

REWARD = "reward"
VALIDATION = "validation_"  # begins the names of what a training logs on validation photographs

# (lr_up_BCHW in [0, 1], B keys) -> image_BCHW in [0, 1]
Upscaler = Callable[[torch.Tensor, list[Key]], torch.Tensor]


@dataclass(frozen=True)
class ImageResult:
    """One image: uint8 outputs (N, H, W, C) and scores {metric: (N,)} by model.

    N = 1 for baselines.
    """

    outputs: dict[str, np.ndarray]
    scores: dict[str, dict[str, Array]]


def noise_keys(seed: int, pair_id: str, noises: int) -> list[Key]:
    """The generator keys of an image's noises; they do not depend on the model."""
    return [(seed, "evaluate", pair_id, noise) for noise in range(noises)]


def _eight_bit(image_BCHW: torch.Tensor) -> np.ndarray:
    # Scored as it would be saved: metrics without a reference see the difference between 8 bits and
    # float.
    levels = (image_BCHW.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _scores(
    metrics: Sequence[str], output_BHWC: np.ndarray, hr_CHW: torch.Tensor
) -> dict[str, Array]:
    image_BCHW = torch.stack([to_tensor(output) for output in output_BHWC])
    values = score(list(metrics), image_BCHW, hr_CHW.expand_as(image_BCHW))
    return {metric: values[metric].double().cpu().numpy() for metric in metrics}


def _checked(pair: Pair, scores: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """Return `scores` if all are finite: one NaN would make the means of the run NaN."""
    for model, metrics in scores.items():
        for metric, values in metrics.items():
            if not np.isfinite(values).all():
                raise ValueError(
                    f"image {pair.id}: {metric} of {model} is not a finite number; leave out the "
                    "image or the metric"
                )
    return scores


def evaluate_image(
    pair: Pair,
    upscalers: Mapping[str, Upscaler],
    metrics: Sequence[str],
    *,
    seed: int,
    noises: int,
    batch: int,
    baselines: Mapping[str, np.ndarray] | None = None,
) -> ImageResult:
    """Outputs and scores of bicubic, of other methods and of every model on one pair.

    batch: outputs per call of an upscaler. baselines: {method: its uint8 output, of the HR image's
    size}. Errors: ValueError naming image, metric and model for a score that is not finite; the
    errors of `gdpo.metrics.score.score`.
    """
    height, width = pair.hr.shape[:2]
    # Bicubic for every image, whatever mode its degradation drew: at test time a user's image has
    # no such mode.
    bicubic = enlarge(pair.lr, (height, width), INFERENCE_MODE)
    keys = noise_keys(seed, pair.id, noises)
    outputs = {
        BICUBIC: bicubic[None],
        **{name: output[None] for name, output in (baselines or {}).items()},
    }
    for name, upscale in upscalers.items():
        parts = [keys[start : start + batch] for start in range(0, noises, batch)]
        lr_up_CHW = to_tensor(bicubic)
        outputs[name] = np.concatenate(
            [_eight_bit(upscale(lr_up_CHW.expand(len(part), -1, -1, -1), part)) for part in parts]
        )
    hr_CHW = to_tensor(pair.hr)
    scores = {name: _scores(metrics, output, hr_CHW) for name, output in outputs.items()}
    return ImageResult(outputs, _checked(pair, scores))


def stack(results: Sequence[Mapping[str, Mapping[str, Array]]]) -> Scores:
    """Per-image scores {model: {metric: (N,)}} -> {model: {metric: (I, N)}}."""
    return {
        model: {
            metric: np.stack([result[model][metric] for result in results]) for metric in metrics
        }
        for model, metrics in results[0].items()
    }


def rewards(
    scores: Scores, detail_share_I: Array, reward: Reward, reference: str
) -> dict[str, Array]:
    """The reward of every output, {model: (I, N)}, as defined in the module docstring.

    A metric counts 0 if the reference's within-image deviation is 0, because it then has no unit.
    Fidelity or perception counts 0 if it has no metrics.
    """

    def normalised(model: str, metric: str) -> Array:
        reference_IN = scores[reference][metric]
        # The reference's own spread, so that the unit does not depend on the evaluated model.
        unit = within_image_std(reference_IN)
        if unit == 0:
            return np.zeros_like(scores[model][metric])
        sign = 1.0 if higher_is_better(metric) else -1.0
        # Image by image: a hard image lowers the scores of all models alike, and the difference
        # removes that.
        shifted: Array = scores[model][metric] - reference_IN.mean(axis=1, keepdims=True)
        return sign / unit * shifted

    def mean(model: str, metrics: Sequence[str]) -> Array:
        total: Array = sum((normalised(model, metric) for metric in metrics), np.zeros(1))
        return total / max(len(metrics), 1)

    # The weights of the training's reward (Eq. 7), so that the number says what the training was
    # for.
    weights = [perception_weight(reward, share) for share in detail_share_I]
    detail_I1 = np.array(weights, dtype=np.float64)[:, None]
    sides = {
        model: (mean(model, reward.fidelity), mean(model, reward.perception)) for model in scores
    }
    return {
        model: (1 - detail_I1) * faithful + detail_I1 * perceived
        for model, (faithful, perceived) in sides.items()
    }
