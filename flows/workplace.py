"""The clone that a flow runs in: where it is, and its dvc.lock as a ledger that travels.

    enter()                 prefect.yaml's pull step: a run works in the clone its worker's
                            environment was installed from
    read_ledger(root)       dvc.lock: stage -> what it was made from and what it made, every file by
                            its hash
    write_ledger(root, ..)  entries made elsewhere, laid over those here: `dvc pull` then brings
                            just those outputs

A worker never commits and never pushes to git; what it made goes to the DVC remote, and its ledger
entry to the caller.
"""

import io
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
Ledger = dict[str, Any]
RESULTS_BLOCK = "gdpo-results"
RESULTS = f"s3-bucket/{RESULTS_BLOCK}"  # where results of runs lie; flows/setup.py makes the block


def enter() -> dict[str, str]:
    """The working directory of a run, as a Prefect pull step reports it."""
    return {"directory": str(ROOT)}


def read_ledger(root: Path) -> Ledger:
    """The entries of dvc.lock, {} if there is none."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return dict(content.get("stages") or {})


def write_ledger(root: Path, entries: Ledger) -> None:
    """Lay `entries` over those of dvc.lock; a stage that is not among them keeps its own."""
    merged = {**read_ledger(root), **entries}
    yaml = YAML()
    yaml.default_flow_style = False
    content = io.BytesIO()
    yaml.dump({"schema": "2.0", "stages": merged}, content)
    replace_ledger(root, content.getvalue())


def replace_ledger(root: Path, content: bytes) -> None:
    """Make `content` the clone's dvc.lock, written aside and renamed."""
    part = root / ".dvc.lock.part"
    part.write_bytes(content)
    os.replace(part, root / "dvc.lock")
