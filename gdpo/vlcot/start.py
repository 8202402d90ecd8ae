"""Which model the training of RealSR-R1 starts from."""

from gdpo.config import Config


def initial_model(config: Config) -> str | None:
    """The model folder whose tokenizer and trunk the training starts from; None: new weights.

    `vlcot.init` names the base model for new weights, so that DVC always has a folder to compare.
    """
    return None if config.vlcot.init == config.model.base else config.vlcot.init
