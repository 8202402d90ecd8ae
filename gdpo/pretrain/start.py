"""Which adapters pretraining starts from."""

from gdpo.config import Config


def initial_model(config: Config) -> str | None:
    """The model folder whose adapters pretraining starts from; None: fresh adapters.

    `pretrain.init` names the base model for fresh adapters, so that DVC always has a folder to
    compare.
    """
    return None if config.pretrain.init == config.model.base else config.pretrain.init
