"""A rollout set of the tiny root: its configuration and its rows."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from tasks.files.rollouts import Rollouts, header
from tests import tiny

PAIRS = 7
FILE = "data/rollouts/00/00000.parquet"


def parted(count: int, **settings: Any) -> Config:
    return tiny.settings(rollout={"parts": [f"{part:02d}" for part in range(count)], **settings})


def opened(config: Config, root: Path) -> Rollouts:
    """The rollout set as finetune opens it."""
    return Rollouts(config, root, header(config, root))


def reselect(root: Path) -> Config:
    pq.write_table(pa.table({"id": ["pair1", "pair0"]}), root / "data/selected/manifest.parquet")
    return tiny.settings()


def other_reference(root: Path) -> Config:
    card = root / "models/naosd/model.json"
    card.write_text(card.read_text().replace('"t_diff": 100', '"t_diff": 101'))
    return tiny.settings()
