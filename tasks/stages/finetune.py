"""Stage `finetune`: preference fine-tuning -> models/gdpo; with shuffled advantages, the control ->
models/control.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.hooks import Hooks
from gdpo.metrics.score import versions
from gdpo.model.base import base_hashes
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import read_folder, save_model
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import base_dtype
from gdpo.preference.loop import finetune
from gdpo.train.loop import checkpoints
from gdpo.train.world import current
from tasks import paths
from tasks.files.rollouts import Rollouts, header
from tasks.files.selection import Selected
from tasks.files.validation import validation_pairs
from tasks.run.fingerprint import inputs_of, training
from tasks.run.training import device, write_history


def run(config: Config, root: Path, hooks: Hooks, name: str = paths.FINETUNE_RUNS[0]) -> None:
    """Train `name`, one of `paths.FINETUNE_RUNS`, and write its model folder and history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/finetune/<name>.
    """
    groups: Rollouts | None = None
    pairs: Selected | None = None
    # Before anything slow: an unusable photograph is reported at once.
    validation = validation_pairs(config, root)
    world = current()
    # Rank 0 hashes the files and tells the others: N ranks would read gigabytes N times.
    made_from = world.from_main(partial(header, config, root))
    if config.finetune.rollouts == "online":
        pairs = _selected(root)
    else:
        groups = Rollouts(config, root, made_from)
    # Each rank reads the weights, but only rank 0 hashes the base: `from_main` hands the hashes on.
    naosd = read_folder(
        root / paths.NAOSD,
        root / config.model.base,
        lambda base: world.from_main(partial(base_hashes, base)),
    )
    model = NAOSD.from_folder(naosd).to(device(), base_dtype(config.rollout.precision))
    work = paths.work(root, "finetune", name)

    # Rank 0 alone: the hashes of all groups take minutes to read.
    inputs = world.from_main(partial(_inputs, config, name, made_from, groups or pairs, validation))
    adapters, history = finetune(
        model,
        groups or [],
        config,
        control=IDENTITIES[name].role == "control",
        folder=work,
        fingerprint=inputs,
        hooks=hooks,
        pairs=pairs or [],
        validation=validation,
    )
    if not world.is_main:
        return
    write_history(root / paths.FINETUNED / name, history)
    save_model(
        root / paths.MODEL_DIR / name,
        naosd.base,
        [*naosd.adapters, adapters],
        IDENTITIES[name],
        # `read_folder` has compared them with the base; it need not be read again.
        base_sha256=naosd.card.base_sha256,
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )
    # Last: a run that is killed before it finds all steps done and only writes the outputs again.
    checkpoints(work, inputs).remove()


def _inputs(
    config: Config,
    name: str,
    made_from: dict[str, Any],
    source: Rollouts | Selected | None,
    validation: list[Pair],
) -> str:
    """Everything that the checkpoint depends on."""
    data: dict[str, Any] = {}
    if isinstance(source, Rollouts):
        data = {paths.ROLLOUTS: source.fingerprint()}
    elif source is not None:
        data = {
            paths.SELECTED: source.fingerprint(),
            # The size of a batch changes the rounding of what is computed in it.
            "rollout.batch": config.rollout.batch,
            "metrics": versions(config.rollout.metrics),
        }
    settings = {
        "run": name,
        "finetune": training(config.finetune),
        "reward": config.reward.model_dump(),
        # Pixels and no paths: DVC does not see what is in the folder of these photographs.
        "validation": [hashlib.sha256(pair.hr.tobytes()).hexdigest() for pair in validation],
        **made_from,
        **data,
    }
    return inputs_of(__name__, settings)


def _selected(root: Path) -> Selected:
    """The pairs for online rollouts. DVC does not fetch them: this stage depends on the rollouts
    instead.

    Errors: ValueError naming the manifest or shard.
    """
    try:
        return Selected(root, by_id=True)
    except ValueError as error:
        raise ValueError(
            f"{error}, or `dvc pull select degrade` (finetune.rollouts: online reads the pairs)"
        ) from error
