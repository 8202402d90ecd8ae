"""A NAOSD training of a few steps on tiny pairs."""

from pathlib import Path
from typing import Any

from gdpo.data.shards import Shards
from gdpo.hooks import Hooks
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.pretrain.loop import _Run, pretrain
from tests import tiny


def train(
    pairs: Shards,
    folder: Path,
    *,
    init: Adapters | None = None,
    hooks: Hooks | None = None,
    **settings: Any,
) -> Any:
    config = tiny.settings(pretrain=settings)
    return pretrain(
        tiny.model(),
        pairs,
        config,
        init=init,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
    )


def started(pairs: Shards, **settings: Any) -> tuple[NAOSD, _Run]:
    model = tiny.model()
    return model, _Run(model, pairs, tiny.settings(pretrain=settings), None)
