"""Stage `evaluate`: bicubic, NAOSD, GDPO-SR and the control on held-out photographs, the same noises for all.

    python -m tasks evaluate

Reads data/shards/evaluation and models/{naosd,gdpo,control}; writes reports/evaluate (see tasks/evaluation_files.py).
gdpo/evaluate/benchmark.py says what is scored and how the reward is defined.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.evaluate.benchmark import MODELS, Upscaler, evaluate_image, stack
from gdpo.evaluate.statistics import Array
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.rewards.metrics import check_available
from gdpo.training import Hooks, Stopped, written_aside
from tasks.evaluation_files import describe, folder_name, write_candidates, write_images, write_results

CANDIDATE_IMAGES = 3  # images, each the first of a photograph, whose whole group of candidates is kept for the report


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Evaluate every model on every held-out pair; raises `Stopped` between images, and then leaves nothing behind."""
    settings = config.evaluate
    metrics = list(dict.fromkeys([*settings.metrics, *config.rollout.fidelity, *config.rollout.perception]))
    check_available(metrics)
    pairs = Shards(root / "data/shards/evaluation")
    if not len(pairs):
        raise ValueError("data/shards/evaluation: no pairs; check degrade.evaluation and degrade.evaluation_crop")
    upscalers = _upscalers(config, root)
    scores: list[dict[str, dict[str, Array]]] = []
    images: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    with written_aside(root / "reports/evaluate") as out:
        for index in range(len(pairs)):
            pair = pairs[index]
            result = evaluate_image(pair, upscalers, metrics, seed=config.seed, noises=settings.noises, batch=settings.batch)
            folder = out / "images" / folder_name(index, pair.id)
            write_images(folder, pair, result)
            if len(candidates) < CANDIDATE_IMAGES and pair.source not in {image["source"] for image in images}:
                candidates.append(write_candidates(folder, pair, result, config))
            scores.append(result.scores)
            images.append(describe(pair, folder.name))
            hooks.log(index, {metric: float(values.mean()) for metric, values in result.scores["gdpo"].items()})
            if hooks.should_stop():
                raise Stopped(index + 1)
        write_results(out, config, stack(scores), images, candidates)


def _upscalers(config: Config, root: Path) -> dict[str, Upscaler]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: Any = {"color_fix": config.evaluate.color_fix, "precision": config.evaluate.precision}
    models = {name: NAOSD.from_pretrained(root / "models" / name, device=device) for name in MODELS}
    return {name: partial(super_resolve, model, **settings) for name, model in models.items()}
