"""Provenance of an evaluation: the commit and hash of its code, hashes of weights and data,
versions of the metrics.
"""

from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.metrics.score import versions
from tasks.run.code import code_hash, commit
from tasks.run.fingerprint import fingerprint

STAGE = "tasks.stages.evaluate"


def origin(
    config: Config, root: Path, benchmark: str, metrics: list[str], data: list[Path]
) -> dict[str, Any]:
    """Everything that the results of one benchmark depend on, as plain values; the metadata of
    per_image.parquet.

    data: the folders of LR and HR images, or of shards. The result is equal for equal code,
    weights, data and settings.
    """
    settings = config.evaluate
    peers = settings.pairs[benchmark].peers if benchmark in settings.pairs else {}
    return {
        "benchmark": benchmark,
        "commit": commit(STAGE),
        "code": code_hash(STAGE)[:16],
        "weights": {
            name: fingerprint({}, [root / folder]) for name, folder in settings.models.items()
        },
        "tagger": None
        if config.model.tagger is None
        else fingerprint({}, [root / config.model.tagger]),
        "peers": {name: fingerprint({}, [root / folder]) for name, folder in peers.items()},
        "data": fingerprint({}, data),
        "metrics": versions(metrics),
        "seed": config.seed,
        "noises": noises(config, benchmark),
        "color_fix": settings.color_fix,
        "precision": settings.precision,
        "batch": settings.batch,  # affects rounding in low precision
        "reward": config.reward.model_dump(),
    }


def noises(config: Config, benchmark: str) -> int:
    """Noise seeds per image on a benchmark."""
    own = config.evaluate.pairs[benchmark].noises if benchmark in config.evaluate.pairs else None
    return own or config.evaluate.noises
