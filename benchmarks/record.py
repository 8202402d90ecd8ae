"""What the benchmarks leave behind: benchmarks/results/NAME.json, with the machine and the commit
it was measured on.
"""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gdpo.files import written_aside

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks/results"


def commit() -> str:
    """The commit that is checked out, `+changes` if tracked files differ; `unknown` without git."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True)
        return result.stdout.strip()

    changed = git("status", "--porcelain", "-uno")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if changed else "")


def record(name: str, measured: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the figures of one benchmark to NAME.json in the folder."""
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "pyarrow": version("pyarrow"),
        "opencv": version("opencv-python-headless"),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    with written_aside(folder / f"{name}.json") as part:
        part.write_text(json.dumps({"measured": measured, "machine": machine}, indent=1) + "\n")


def recorded(name: str) -> dict[str, Any]:
    """The figures of one benchmark. ValueError naming the script if it has not been run."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path.relative_to(REPO)}: not there; run python benchmarks/{name}.py")
    content: dict[str, Any] = json.loads(path.read_text())
    return content
