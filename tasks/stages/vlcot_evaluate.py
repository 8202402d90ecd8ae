"""Stage `vlcot-evaluate`: the models of RealSR-R1 on one benchmark, as the stage `evaluate` scores
its own -> reports/vlcot/evaluate/<benchmark>, in the same format.

The pairs, metrics, reward and colour correction are those of the stage `evaluate`, so that both
systems can stand in one table. The models are the cold start, VLCoT-GRPO and its control.
"""

from pathlib import Path

from gdpo.config import Config
from gdpo.hooks import Hooks
from gdpo.upscale.chains import load_chains
from gdpo.vlcot.folder import IDENTITIES
from tasks import paths
from tasks.stages.evaluate import Evaluation, evaluate_benchmark

OWN = Evaluation("vlcot-evaluate", __name__, paths.VLCOT_EVALUATED, load_chains)


def run(
    config: Config, root: Path, hooks: Hooks, benchmark: str | None = None, *, keep: bool = False
) -> None:
    """Evaluate the three models. Stops, resumes, keeps and fails as the stage `evaluate`."""
    models = {name: f"{paths.VLCOT_MODELS}/{name}" for name in IDENTITIES}
    own = {"models": models, "noises": config.vlcot.noises}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=own)})
    evaluate_benchmark(config, root, hooks, benchmark, OWN, keep=keep)
