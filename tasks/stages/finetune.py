"""Stage `finetune`: preference fine-tuning -> models/gdpo; with shuffled advantages, the control ->
models/control.
"""

from collections.abc import Sequence
from pathlib import Path

from gdpo.config import Config
from gdpo.model.checkpoints import load_model, read_adapters, save_model
from gdpo.model.sampling import base_dtype
from gdpo.preference.group import Group
from gdpo.preference.loop import finetune
from gdpo.train.loop import Hooks
from gdpo.train.world import current
from tasks.files.rollouts import Rollouts, Selected, header
from tasks.run.fingerprint import fingerprint
from tasks.run.training import device, write_history


def run(config: Config, root: Path, hooks: Hooks, name: str = "gdpo") -> None:
    """Train `name` ("gdpo" or "control") and write its model folder and history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/finetune/<name>.
    """
    groups: Sequence[Group] = []
    pairs: Selected | None = None
    if config.finetune.rollouts == "online":
        pairs = _selected(root)
    else:
        groups = Rollouts(config, root)
    base, naosd = root / config.model.base, root / "models/naosd"
    model = load_model(naosd, base).to(device(), base_dtype(config.rollout.precision))
    work = root / "work/finetune" / name
    settings = {
        "name": name,
        "seed": config.seed,
        "finetune": config.finetune.model_dump(),
        "reward": config.reward.model_dump(),
        "header": header(config, root),
        "pairs": pairs.fingerprint() if pairs else None,
    }
    inputs = [] if pairs else [root / "data/rollouts"]
    adapters, history = finetune(
        model,
        groups,
        config,
        control=name == "control",
        folder=work,
        fingerprint=fingerprint(settings, inputs),
        hooks=hooks,
        pairs=pairs or [],
    )
    if not current().is_main:
        return
    write_history(root / "reports/finetune" / name, history)
    chain = [*read_adapters(naosd), adapters]
    save_model(
        root / "models" / name,
        base,
        chain,
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )
    (work / "checkpoint.pt").unlink(missing_ok=True)


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
