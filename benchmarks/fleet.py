"""One worker against two, and both against a plain `dvc repro`: python -m benchmarks.fleet [--full]
[--write]

Starts a Prefect server, an S3 server and workers in clones, runs `gdpo-pipeline/head` on the sample
profile (cut short, or --full), and prints wall times and whether all outputs are the same, by hash.
The walls count what orchestration costs too: a run's start, its transfers, Prefect's polling. Two
workers of one host share its cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import record
from tests.flows.clones import outputs
from tests.flows.fleet import QUICK, Fleet
from tests.flows.processes import wait_for


def on_workers(count: int, changes: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """(seconds, outputs) of the pipeline on a fresh fleet of `count` workers, from empty caches."""
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), changes) as fleet:
        fleet.worker("head", "head")
        for number in range(count):
            fleet.worker(f"worker-{number}", "cpu")
        wait_for(
            lambda: len(fleet.post("work_pools/cpu/workers/filter")) == count,
            300,
            f"{count} workers",
        )
        begun = time.perf_counter()
        state = fleet.finished(
            fleet.start("gdpo-pipeline/head", fan_out=True, gpu="gdpo-stage/cpu"), 3600
        )
        seconds = time.perf_counter() - begun
        if state["type"] != "COMPLETED":
            raise SystemExit(f"the pipeline ended as {state['type']}: {state['message']}")
        return seconds, outputs(fleet.folder / "head")


def plain(changes: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The same by `dvc repro` in one clone, one core as the workers have."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), changes)  # not started: its snapshot and environment
        clone = fleet.clone("plain")
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "-q", "report"],
            cwd=clone,
            env=fleet.environment(clone),
            check=True,
        )
        return time.perf_counter() - begun, outputs(clone)


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="the whole sample profile, not a short one"
    )
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/fleet.json")
    args = parser.parse_args()
    changes = {} if args.full else QUICK
    seconds, wanted = plain(changes)
    walls = {"plain": seconds}
    same = {}
    for count in (1, 2):
        walls[f"workers_{count}"], runs = on_workers(count, changes)
        same[f"workers_{count}"] = runs == wanted
        for path in sorted(
            path for path in {**wanted, **runs} if wanted.get(path) != runs.get(path)
        ):
            print(f"{path} differs on {count} worker(s): {wanted.get(path)} and {runs.get(path)}")
    result = {
        "profile": "sample" if args.full else "sample, cut short",
        "outputs": len(wanted),
        "identical": same,
        "seconds": {name: round(value, 1) for name, value in walls.items()},
        "two_workers_over_one": round(walls["workers_1"] / walls["workers_2"], 2),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if args.write:
        record("fleet", result)
    sys.exit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    main()
