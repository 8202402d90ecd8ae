"""Runs of the tiny ablations in this process."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Config
from gdpo.hooks import Hooks
from gdpo.seeds import numpy_generator
from tasks.ablate import pool as ablation_pool
from tasks.ablate.runs import Job, perform
from tests import tiny

COST = {
    "groups": 3,
    "steps": 3,
    "batch": 2,
    "lr": 1e-3,
    "noises": 2,
    "pretrain_steps": 2,
    "processes": 2,
}
CHECKPOINTS = {"finetune": {"checkpoint_every": 1}, "pretrain": {"checkpoint_every": 1}}


def configured(**changes: Any) -> Config:
    return Config.model_validate(
        {**tiny.settings(**CHECKPOINTS).model_dump(), "ablate": {**COST, **changes}}
    )


@contextmanager
def in_this_process(do: Callable[[Job, Path], None]) -> Iterator[list[Job]]:
    """Jobs are done by `do`, with one thread; the list of those that were."""
    did: list[Job] = []

    def run_all(
        jobs: Sequence[Job], root: Path, processes: int, done: Callable[[Job], None]
    ) -> None:
        for job in jobs:
            if not (root / job.output).exists():
                do(job, root)
                did.append(job)
            done(job)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_pool, "run_all", run_all)
        yield did
    torch.set_num_threads(threads)


def really(job: Job, root: Path) -> None:
    perform(job, root, Hooks())


def fabricated(job: Job, root: Path) -> None:
    """The rollouts as they are; of all other runs, scores drawn from the fingerprint."""
    if job.kind == "rollouts":
        return really(job, root)
    rng = numpy_generator(job.fingerprint)
    scores = [{m: rng.normal(5, 1, 2).tolist() for m in job.sources["metrics"]} for _ in range(3)]
    images = [
        {"id": f"{i}", "source": "made", "detail_share": 0.5, "scores": one}
        for i, one in enumerate(scores)
    ]
    path = root / job.output
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "last": None}))
    return None


def reports(root: Path, name: str = "reports/ablate") -> dict[str, bytes]:
    return {key.partition("/")[2]: content for key, content in tiny.tree(root / name).items()}


def runs(root: Path) -> int:
    return len(list((root / "work/ablate/runs").glob("*/result.json")))
