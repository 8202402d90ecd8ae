"""The clone that a flow runs in: its folder, and the lock entries in its dvc.lock (`LockEntries`).

    enter()                 the pull step in prefect.yaml: a flow run works in the clone from which
                            its worker's environment was installed
    read_lock_entries(root) the entries of dvc.lock: stage -> its dependencies and outputs, every
                            file with its hash
    write_lock_entries(root, ..)
                            merges another clone's lock entries into dvc.lock; `dvc pull` then
                            fetches exactly those outputs

A worker never commits and never pushes to git. A stage's outputs go to the DVC remote, its lock
entry goes to the caller.
"""

import io
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
LockEntries = dict[str, Any]
RESULTS_BLOCK = "gdpo-results"
RESULTS = f"s3-bucket/{RESULTS_BLOCK}"  # storage of flow run results; made by flows/setup.py


def enter() -> dict[str, str]:
    """The working directory of a flow run, in the form that a Prefect pull step returns."""
    return {"directory": str(ROOT)}


def read_lock_entries(root: Path) -> LockEntries:
    """The entries of dvc.lock, {} if there is none."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return dict(content.get("stages") or {})


def write_lock_entries(root: Path, entries: LockEntries) -> None:
    """Merge `entries` into dvc.lock; stages that are not among them keep theirs."""
    merged = {**read_lock_entries(root), **entries}
    yaml = YAML()
    yaml.default_flow_style = False
    content = io.BytesIO()
    yaml.dump({"schema": "2.0", "stages": merged}, content)
    replace_lock(root, content.getvalue())


def replace_lock(root: Path, content: bytes) -> None:
    """Replace the clone's dvc.lock with `content`: written to a temporary file, then renamed."""
    part = root / ".dvc.lock.part"
    part.write_bytes(content)
    os.replace(part, root / "dvc.lock")
