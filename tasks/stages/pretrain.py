"""Stage `pretrain`: trains NAOSD's adapters on the base model -> models/naosd and
reports/pretrain/metrics.jsonl.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.hooks import Hooks
from gdpo.model.base import base_hashes
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import Adapters, read_adapters, save_model
from gdpo.model.naosd import NAOSD
from gdpo.pretrain.loop import pretrain
from gdpo.pretrain.start import initial_model
from gdpo.train.loop import checkpoints
from gdpo.train.world import current
from tasks import paths
from tasks.run.fingerprint import fingerprint, inputs_of, prompts_of, training
from tasks.run.training import device, write_history


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Train on data/shards/train and write the model folder and the loss history.

    With `pretrain.steps` 0 the adapters of `pretrain.init` are written as they are.
    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/pretrain.
    """
    settings = config.pretrain
    base = root / config.model.base
    pairs = Shards(root / paths.TRAIN)
    init, start = None, initial_model(config)
    if start is not None:
        init = read_adapters(root / start)[0]
        if init.lora != settings.lora:
            raise ValueError(
                f"pretrain.lora must be {init.lora.model_dump()}, that of pretrain.init {start}"
            )
    if init is not None and not settings.steps:
        return _take(config, root, init)
    work, world = paths.work(root, "pretrain"), current()

    # Only rank 0 reads gigabytes to hash them; the others get its result.
    def hashes() -> tuple[dict[str, str], str]:
        base_sha256 = base_hashes(base)
        init_sha256 = None if start is None else fingerprint({}, [root / start])
        keys = ("t_add", "t_diff", "training_prompt", "negative_prompt")
        values = {
            "seed": config.seed,
            "model": {key: getattr(config.model, key) for key in keys},
            "pretrain": training(settings) | {"init": init_sha256},
            "model.base": base_sha256 | {"prompts": prompts_of(base)},
            paths.TRAIN: pairs.fingerprint(),
        }
        return base_sha256, inputs_of(__name__, values)

    base_sha256, inputs = world.from_main(hashes)
    # Named by the inputs, so that the models of a run with other inputs are not overwritten.
    kept = work / f"kept-{hashlib.sha256(inputs.encode()).hexdigest()[:8]}"
    adapters, history = pretrain(
        NAOSD.from_base(base).to(device()),
        pairs,
        config,
        init=init,
        folder=work,
        fingerprint=inputs,
        hooks=hooks,
        keep=lambda step, adapters: _save(
            config, root, kept / f"step-{step:06d}", adapters, base_sha256
        ),
    )
    if not world.is_main:
        return
    write_history(root / paths.PRETRAINED, history)
    _save(config, root, root / paths.NAOSD, adapters, base_sha256)
    # Last: a run that is killed before it finds all steps done and only writes the outputs again.
    checkpoints(work, inputs).remove()


def _take(config: Config, root: Path, init: Adapters) -> None:
    """Write the adapters of `pretrain.init` as the stage's model, without training."""
    if not current().is_main:
        return
    write_history(root / paths.PRETRAINED, [])
    _save(config, root, root / paths.NAOSD, init)


def _save(
    config: Config,
    root: Path,
    folder: Path,
    adapters: Adapters,
    base_sha256: dict[str, str] | None = None,
) -> None:
    model = config.model
    save_model(
        folder,
        root / model.base,
        [replace(adapters, name="naosd")],
        IDENTITIES["naosd"],
        base_sha256=base_sha256,
        t_add=model.t_add,
        t_diff=model.t_diff,
        prompt=model.prompt,
    )
