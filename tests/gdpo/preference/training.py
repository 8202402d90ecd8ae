"""A fine-tuning run on five stored groups of the tiny model."""

from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.hooks import Hooks
from gdpo.model.checkpoints import Adapters
from gdpo.preference.group import Group, from_row, to_row
from gdpo.preference.loop import History, _Run, finetune
from gdpo.preference.rollout import rollout
from tests import tiny


def stored(config: Config) -> list[Group]:
    """Five groups after their way through the file; made one by one, as the loop makes them
    online.
    """
    model = tiny.model()
    found = [next(rollout(model, [tiny.pair(i)], config)) for i in range(5)]
    return [from_row(to_row(group)) for group in found if isinstance(group, Group)]


PAIRS = [tiny.pair(i) for i in range(5)]
ACTION = {"candidates": "action", "sigma": 0.1}


def configured(rollout_: dict[str, Any] | None = None, **settings: Any) -> Config:
    return tiny.settings(finetune={"optimizer": {"lr": 1e-4}, **settings}, rollout=rollout_ or {})


def train(
    groups: list[Group],
    folder: Path,
    *,
    control: bool = False,
    hooks: Hooks | None = None,
    pairs: list[Pair] | None = None,
    rollout_: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Adapters, History]:
    return finetune(
        tiny.model(),
        groups,
        configured(rollout_, **settings),
        control=control,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
        pairs=pairs or [],
    )


def started(groups: list[Group], *, control: bool = False, **settings: Any) -> _Run:
    return _Run(tiny.model(), groups, tiny.settings(finetune=settings), control)


OBJECTIVES = ["gdpo", "dpo", "dance_grpo", "dgpo", "nft", "awm"]
