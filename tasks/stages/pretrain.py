"""Stage `pretrain`: trains NAOSD's adapters on the base model -> models/naosd and
reports/pretrain/metrics.jsonl.
"""

from pathlib import Path

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.model.checkpoints import base_hashes, load_base, read_adapters, save_model
from gdpo.pretrain.loop import pretrain
from gdpo.train.loop import Hooks
from gdpo.train.world import current
from tasks.run.fingerprint import fingerprint
from tasks.run.training import device, write_history


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Train on data/shards/train and write the model folder and the loss history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/pretrain.
    """
    settings = config.pretrain
    base = root / config.model.base
    pairs = Shards(root / "data/shards/train")
    init = None
    if settings.init is not None:
        init = read_adapters(root / settings.init)[0]
        if init.lora != settings.lora:
            raise ValueError(
                f"pretrain.lora must be {init.lora.model_dump()}, that of pretrain.init "
                f"{settings.init}"
            )
    work = root / "work/pretrain"
    name = fingerprint(
        {
            "seed": config.seed,
            "model": config.model.model_dump(),
            "pretrain": settings.model_dump(),
            "base": base_hashes(base),
            "pairs": pairs.fingerprint(),
        },
        [] if settings.init is None else [root / settings.init],
    )
    adapters, history = pretrain(
        load_base(base).to(device()),
        pairs,
        config,
        init=init,
        folder=work,
        fingerprint=name,
        hooks=hooks,
    )
    if not current().is_main:
        return
    write_history(root / "reports/pretrain", history)
    model = config.model
    save_model(
        root / "models/naosd",
        base,
        [adapters],
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )
    (work / "checkpoint.pt").unlink(missing_ok=True)
