"""Folders of small made photographs, a configuration for them, and rows of shards by their
hashes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from gdpo.config import Config
from gdpo.data.shards import shard_files
from gdpo.images import write_png

ROOT = Path(__file__).parents[2]


def config(**changes: Any) -> Config:
    """The sample configuration with small crops and photographs from photos/train and
    photos/held.
    """
    values = YAML(typ="safe", pure=True).load(ROOT / "tests/params.yaml")
    values["degrade"] = {
        "train": [{"path": "photos/train"}],
        "evaluation": [{"path": "photos/held"}],
        "parts": ["00"],
        "crop": 32,
        "stride": 16,
        "evaluation_crop": 32,
        "max_failures": 0.0,
        "shard_mb": 0.02,
        **changes,
    }
    return Config.model_validate(values)


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Blocks of random colours."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(
        np.uint8
    )


def write(root: Path, train: int = 2) -> Path:
    """`train` training photographs a, b, ... and one held out, c."""
    for i in range(train):
        write_png(root / f"photos/train/{'ab'[i] if train == 2 else f'p{i:02d}'}.png", photo(i))
    write_png(root / "photos/held/c.png", photo(1000, 72, 72))
    return root


def rows(folder: Path) -> dict[str, str]:
    """id -> SHA-256 of all else in the row, of every pair below `folder`; each id once."""
    found = [row for path in shard_files(folder) for row in _of(path)]
    assert len(dict(found)) == len(found)
    return dict(found)


def _of(path: Path) -> Iterator[tuple[str, str]]:
    table = pq.read_table(path, columns=["id", "sha256"])
    return zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
