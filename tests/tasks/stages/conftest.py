"""Tiny roots after some stages, and inputs of an evaluation."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.hooks import Hooks
from gdpo.images import write_png
from gdpo.seeds import seed_of, seeded_noise
from gdpo.upscale.protocol import Settings
from tasks.stages import evaluate, pretrain, rollout
from tests import tiny
from tests.tasks.stages.evaluations import EVIL, PAIR_NAMES, STRENGTH, changed, with_reward
from tests.tasks.stages.rollouts import PAIRS


@pytest.fixture(scope="session")
def after_rollout(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a NAOSD and the groups of seven pairs; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("rollout") / "root", tiny_base, PAIRS + 1)
    pretrain.run(tiny.settings(pretrain={"steps": 1}), root, Hooks())
    rollout.run(tiny.settings(), root, Hooks())
    return root


@pytest.fixture(scope="session")
def after_training(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root after pretrain and rollout; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("training") / "root", tiny_base)
    pretrain.run(tiny.settings(), root, Hooks())
    rollout.run(tiny.settings(), root, Hooks())
    return root


@pytest.fixture
def evaluation(sample_config: Config) -> Config:
    return changed(
        with_reward(sample_config, "adaptive"), metrics=["psnr_y", "ssim_y"], noises=3, batch=2
    )


@pytest.fixture
def evaluation_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Held-out shards, folders of pairs, and models whose strength is told by their folder's
    name.
    """
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("photo-00", EVIL):
        lr = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        hr = lr.repeat(4, 0).repeat(4, 1)
        pairs.append(Pair(name, name.rpartition("-")[0], Box(0, 0, 32, 32), hr, lr, {}, 0.5))
    write_shards(tmp_path / "data/shards/evaluation", pairs, 8.0)
    for name in PAIR_NAMES:
        lr = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        for place, image in (
            ("LR", lr),
            ("HR", lr.repeat(4, 0).repeat(4, 1)),
            ("peer", lr.repeat(4, 0).repeat(4, 1) // 2),
        ):
            (tmp_path / "pairs" / place).mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "pairs" / place / f"{name}.png", image)
    for name in STRENGTH:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "weights").write_text(name)

    def load(
        folders: dict[str, Path], *, device: str, settings: Settings
    ) -> dict[str, SimpleNamespace]:
        assert settings == Settings(color_fix="wavelet", precision=settings.precision)

        def resolve(strength: float, lr_up_BCHW: torch.Tensor, keys: list[Any]) -> torch.Tensor:
            noise = seeded_noise([seed_of(*key) for key in keys], tuple(lr_up_BCHW.shape[1:]))[0]
            return (lr_up_BCHW + strength * noise.to(lr_up_BCHW.device)).clamp(0, 1)

        return {
            name: SimpleNamespace(batch=partial(resolve, STRENGTH[folder.name]))
            for name, folder in folders.items()
        }

    monkeypatch.setattr(evaluate, "OWN", replace(evaluate.OWN, load=load))
    return tmp_path


@pytest.fixture
def evaluation_of_pairs(evaluation: Config) -> Config:
    """The same on folders of pairs, with a peer and its own number of noises."""
    realsr = {
        "lr": "pairs/LR",
        "hr": "pairs/HR",
        "noises": 2,
        "baselines": {"OSEDiff": "pairs/peer"},
    }
    return changed(evaluation, benchmarks=["realsr", "sample"], pairs={"realsr": realsr})
