"""Stage `vlcot-coldstart`: supervised training on chains of thought -> models/vlcot/coldstart and
reports/vlcot/coldstart.
"""

from pathlib import Path

from gdpo.config import Config
from gdpo.config.vlcot import Coldstart
from gdpo.hooks import Hooks
from gdpo.train.loop import checkpoints
from gdpo.vlcot.coldstart import coldstart
from gdpo.vlcot.folder import (
    IDENTITIES,
    Card,
    load_tokenizer,
    new_trunk,
    save_model,
    started_trunk,
    vocabulary_of,
)
from gdpo.vlcot.start import initial_model
from tasks import paths
from tasks.files.chains import FOLDER, Chains
from tasks.run.fingerprint import fingerprint, inputs_of
from tasks.run.training import device, write_history
from tasks.run.vlcot import made_from

# What of the section `vlcot` a trunk and its tokens depend on; its positions are listed apart.
TRUNK = {"stages", "prompt_side", "evidence", "width", "layers", "heads"}


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Train a trunk, new or vlcot.init's, on data/vlcot and write the model folder and its history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/vlcot-coldstart.
    """
    settings, folder = config.coldstart, root / paths.TOKENIZER
    init = initial_model(config)
    chains = Chains(root, made_from(config, root))
    if chains.longest() > config.vlcot.positions:
        raise ValueError(
            f"vlcot.positions is {config.vlcot.positions}, the longest chain of {FOLDER} has "
            f"{chains.longest()} tokens"
        )
    words = vocabulary_of(load_tokenizer(folder), config.vlcot.stages, config.vlcot.prompt_side)
    work = paths.work(root, "vlcot-coldstart")
    values = {
        "seed": config.seed,
        "vlcot": config.vlcot.model_dump(include=TRUNK),
        "vlcot.positions": config.vlcot.positions,
        "vlcot.init": None if init is None else fingerprint({}, [root / init]),
        "coldstart": _inputs(settings),
        paths.CHAINS: fingerprint({}, [root / FOLDER]),
    }
    inputs = inputs_of(__name__, values)
    trunk = (
        new_trunk(config.vlcot, words, config.seed)
        if init is None
        else started_trunk(config.vlcot, root / init)
    ).to(device())
    history = coldstart(
        trunk,
        chains,
        words,
        settings,
        seed=config.seed,
        folder=work,
        fingerprint=inputs,
        hooks=hooks,
    )
    write_history(root / paths.COLDSTART_REPORTS, history)
    card = Card.of(IDENTITIES["coldstart"], config.vlcot, config.degrade.degradation.scale)
    save_model(root / paths.COLDSTART, card, trunk, folder)
    checkpoints(work, inputs).remove()


def _inputs(settings: Coldstart) -> dict[str, object]:
    """What a checkpoint depends on; a run of constant rate may go on to more steps."""
    free = {"checkpoint_every"} | ({"steps"} if settings.schedule == "constant" else set())
    return settings.model_dump(exclude=free)
