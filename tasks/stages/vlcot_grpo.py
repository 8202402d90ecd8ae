"""Stage `vlcot-grpo`: reinforcement learning with four rewards, from the cold start ->
models/vlcot/vlcot; with the advantages of each group shuffled -> models/vlcot/control.
"""

from pathlib import Path

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.hooks import Hooks
from gdpo.metrics.score import check_available, versions
from gdpo.train.loop import checkpoints
from gdpo.vlcot.folder import IDENTITIES, Card, load_model, save_model
from gdpo.vlcot.loop import grpo
from gdpo.vlcot.rewards import SCALES
from tasks import paths
from tasks.files.chains import FOLDER, Chains
from tasks.run.fingerprint import fingerprint, inputs_of
from tasks.run.training import device, write_history
from tasks.run.vlcot import made_from


def run(config: Config, root: Path, hooks: Hooks, name: str = paths.GRPO_RUNS[0]) -> None:
    """Train `name`, one of `paths.GRPO_RUNS`, and write its model folder and history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/vlcot-grpo/<name>.
    """
    settings = config.grpo
    unknown = [metric for metric in settings.metrics if metric not in SCALES]
    if unknown:
        raise ValueError(
            f"grpo.metrics: {unknown[0]} has no scale as a reward; there is {', '.join(SCALES)}"
        )
    check_available(settings.metrics)
    pairs = Shards(root / paths.TRAIN)
    chains = Chains(root, made_from(config, root), pairs)
    start = root / paths.COLDSTART
    work = paths.work(root, "vlcot-grpo", name)
    values = {
        "run": name,
        "seed": config.seed,
        "grpo": settings.model_dump(exclude={"checkpoint_every"}),
        "metrics": versions(settings.metrics),
        paths.CHAINS: fingerprint({}, [root / FOLDER]),
        paths.TRAIN: pairs.fingerprint(),
        paths.COLDSTART: fingerprint({}, [start]),
    }
    inputs = inputs_of(__name__, values)
    model = load_model(start, device=device())
    history = grpo(
        model.trunk,
        model.tokenizer,
        chains,
        model.vocabulary,
        settings,
        seed=config.seed,
        control=IDENTITIES[name].role == "control",
        folder=work,
        fingerprint=inputs,
        hooks=hooks,
    )
    write_history(root / paths.GRPO_REPORTS / name, history)
    card = Card(**{**model.card.model_dump(), **IDENTITIES[name].model_dump()})
    save_model(root / paths.VLCOT_MODELS / name, card, model.trunk, start / "tokenizer")
    checkpoints(work, inputs).remove()
