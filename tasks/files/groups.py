"""Reading groups from a file of rollouts, whatever the parameters are.

`finetune` reads its groups with tasks/files/rollouts.py, which also compares the files with the
parameters of the run. The file's format is described there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.data.shards import shard_files
from gdpo.errors import one_line
from gdpo.preference.group import Group, from_row, row_hash
from tasks import paths

AGAIN = "run the rollout stage again"


def read_group_columns(root: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of every stored group, a dict per group, sorted by pair id as in `Rollouts`.

    Errors: ValueError if there are no rollouts, or naming a damaged file.
    """
    rows = []
    for path in shard_files(root / paths.ROLLOUTS):
        with damage(path):
            rows += opened(path).read(columns=list(columns)).to_pylist()
    if not rows:
        raise ValueError(f"{paths.ROLLOUTS}: no rollouts; run the stage `rollout`, or `dvc repro`")
    return sorted(rows, key=lambda row: str(row["id"]))


def read_groups(path: Path, every: int = 1) -> list[Group]:
    """Every N-th group of one file. ValueError naming the file if a group is damaged."""
    with damage(path):
        rows = opened(path).read().to_pylist()[::every]
    for row in rows:
        check_hash(path, row)
    return [from_row(row) for row in rows]


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn errors of reading into a ValueError naming the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged rollouts ({one_line(error)}); {AGAIN}") from error


def check_hash(path: Path, row: dict[str, Any]) -> None:
    """ValueError naming the group whose content does not have the hash that is stored with it."""
    if row_hash(row) != row["sha256"]:
        raise ValueError(f"{path}: group {row['id']} is damaged, its SHA-256 differs; {AGAIN}")


def opened(path: Path) -> pq.ParquetFile:
    """An open file whose pages are verified when they are read. ValueError if it is damaged."""
    with damage(path):
        # Verified on reading: latents have no hash of their own, and a flipped bit would only be
        # another latent.
        return pq.ParquetFile(path, page_checksum_verification=True)
