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

PAIRS = [tiny.pair(i) for i in range(5)]
ACTION = {"candidates": "action", "sigma": 0.1}


def configured(rollout_: dict[str, Any] | None = None, **settings: Any) -> Config:
    return tiny.settings(finetune={"optimizer": {"lr": 1e-4}, **settings}, rollout=rollout_ or {})


_STORED: dict[str, list[Group]] = {}


def stored(config: Config) -> list[Group]:
    """Five groups, written as rows and read back; each from a forward pass of its own, as the loop
    makes them online. Made once for all configurations that differ in `finetune` alone.
    """
    key = config.model_dump_json(exclude={"finetune"})
    if key not in _STORED:
        model = tiny.model()
        made = [next(rollout(model, [pair], config)) for pair in PAIRS]
        _STORED[key] = [from_row(to_row(group)) for group in made if isinstance(group, Group)]
    return list(_STORED[key])


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
