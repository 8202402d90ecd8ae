"""Stage `vlcot-evaluate`: the models of RealSR-R1 on one benchmark, as the stage `evaluate` scores
its own -> reports/vlcot/evaluate/<benchmark>, in the same format.

The pairs, metrics, reward and colour correction are those of the stage `evaluate`, so that both
systems can stand in one table. The models are the cold start, VLCoT-GRPO and its control.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.evaluate.ahead import Ahead
from gdpo.hooks import Hooks
from gdpo.upscale.protocol import SuperResolver
from gdpo.vlcot.folder import IDENTITIES, load_model
from tasks import paths
from tasks.stages.evaluate import Evaluation, evaluate_benchmark, open_pairs


def run(
    config: Config, root: Path, hooks: Hooks, benchmark: str | None = None, *, keep: bool = False
) -> None:
    """Evaluate the three models. Stops, resumes, keeps and fails as the stage `evaluate`."""
    models = {name: f"{paths.VLCOT_MODELS}/{name}" for name in IDENTITIES}
    own = {"models": models, "noises": config.vlcot.noises}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=own)})
    benchmark = benchmark or config.evaluate.benchmarks[0]

    def load(
        folders: Mapping[str, Path], *, device: str, settings: Any
    ) -> Mapping[str, SuperResolver]:
        pairs = open_pairs(config, root, benchmark, config.evaluate.metrics)[0]
        return {
            name: Ahead(
                load_model(folder, device=device), settings, pairs, config.seed, config.vlcot.noises
            )
            for name, folder in folders.items()
        }

    stage = Evaluation("vlcot-evaluate", __name__, paths.VLCOT_EVALUATED, load)
    evaluate_benchmark(config, root, hooks, benchmark, stage, keep=keep)
