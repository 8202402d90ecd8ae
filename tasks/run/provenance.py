"""Provenance of an evaluation: the hash of its code, hashes of weights and data, versions of the
metrics.

No commit: a shallow clone does not have the commit that last changed the code, and two workers have
to write the same bytes. `git log -S HASH -- code` finds the commit.
"""

from pathlib import Path
from typing import Any

import torch

from gdpo.config import Config
from gdpo.evaluate.models import EvaluatedModels
from gdpo.metrics.score import versions
from gdpo.model.card import read_identity
from tasks.run.code import code_hash
from tasks.run.fingerprint import fingerprint, model_fingerprint


def origin(
    module: str, config: Config, root: Path, benchmark: str, metrics: list[str], data: list[Path]
) -> dict[str, Any]:
    """Everything that the results of one benchmark depend on, as plain values; the metadata of
    per_image.parquet.

    module: the stage that evaluates. data: the folders of LR and HR images, or of shards. The
    result is equal for equal code, weights, data, settings and number of threads, which changes
    rounding.
    """
    settings = config.evaluate
    baselines = settings.pairs[benchmark].baselines if benchmark in settings.pairs else {}
    return {
        "benchmark": benchmark,
        "code": code_hash(module),
        "weights": {
            name: model_fingerprint(root / folder) for name, folder in settings.models.items()
        },
        "models": evaluated_models(config, root).to_origin(),
        "tagger": None
        if config.model.tagger is None
        else fingerprint({}, [root / config.model.tagger]),
        "baselines": {name: fingerprint({}, [root / folder]) for name, folder in baselines.items()},
        "data": fingerprint({}, data),
        "metrics": versions(metrics),
        "seed": config.seed,
        "noises": noises(config, benchmark),
        "color_fix": settings.color_fix,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),  # affect the order of sums, so rounding
        "batch": settings.batch,  # affects rounding in low precision
        "reward": config.reward.model_dump(),
    }


def evaluated_models(config: Config, root: Path) -> EvaluatedModels:
    """The models of evaluate.models. Errors: ValueError naming a folder or card."""
    folders = config.evaluate.models.items()
    return EvaluatedModels({name: read_identity(root / folder) for name, folder in folders})


def noises(config: Config, benchmark: str) -> int:
    """Noise seeds per image on a benchmark."""
    own = config.evaluate.pairs[benchmark].noises if benchmark in config.evaluate.pairs else None
    return own or config.evaluate.noises
