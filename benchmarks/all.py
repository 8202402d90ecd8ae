"""Runs the benchmarks of speed and prints one table: what was measured, its target, and whether it
holds.

    python benchmarks/all.py                # runs all of them: half an hour on two idle cores
    python benchmarks/all.py startup degrade    # runs these; the others as recorded
    python benchmarks/all.py --recorded     # runs none

Every figure is a ratio, or CPU seconds, measured in one run by a script beside this one; a line
names the commit that it was measured at. Writes benchmarks/results/all.md; exits 1 when a target is
missed or was never measured.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks/results"

# Name of the script and of its results: arguments. All on one thread but where the script itself
# starts processes. benchmarks/gpu.py and benchmarks/fleet.py have other machines and hours.
SCRIPTS: dict[str, list[str]] = {
    "startup": [],
    "degrade": ["--rounds", "3", "--patches", "20"],
    "complexity": ["--rounds", "5"],
    "shards": [],
    "stages": [],
    "metrics": ["--images", "8", "--rounds", "3"],
    "rl_step": ["--rounds", "3"],
    "vlcot_sampler": [],
}


@dataclass(frozen=True)
class Target:
    """One line of the table.

    script: the results file; path: keys of the value below `measured`; limit: the least value, or
    the greatest if at_most.
    """

    what: str
    script: str
    path: tuple[str, ...]
    limit: float
    at_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value meets the target."""
        return value <= self.limit if self.at_most else value >= self.limit


TARGETS = (
    Target(
        "import of the core, CPU s",
        "startup",
        ("cpu_seconds", "from gdpo import NAOSD"),
        4.0,
        at_most=True,
    ),
    Target(
        "gdpo-sr --help, CPU s", "startup", ("cpu_seconds", "gdpo-sr --help"), 0.15, at_most=True
    ),
    Target(
        "upscale of a small picture by the command, CPU s",
        "startup",
        ("cpu_seconds", "gdpo-sr upscale"),
        5.0,
        at_most=True,
    ),
    Target(
        "policy update, cached, own input: x released", "rl_step", ("faster", "cached-lr"), 15.0
    ),
    Target("policy update, cached: x released", "rl_step", ("faster", "cached"), 5.0),
    Target("step with rollouts, own input: x released", "rl_step", ("faster", "online-lr"), 2.0),
    Target("degrade: x plain rendering", "degrade", ("ratio",), 6.0),
    Target("degrade: two processes over one", "degrade", ("two_over_one",), 1.6),
    Target("detail share: x loop over cells", "complexity", ("ratio",), 20.0),
    Target("pairs read per second, two processes", "shards", ("read_2", "pairs_per_s"), 400.0),
    Target("index over decoding alone", "stages", ("index_over_decode",), 1.3, at_most=True),
    Target("NIQE: x pyiqa", "metrics", ("niqe", "ratio"), 3.0),
    Target("PSNR: x pyiqa", "metrics", ("psnr_y", "ratio"), 3.0),
    Target("SSIM: x pyiqa", "metrics", ("ssim_y", "ratio"), 3.0),
    Target("PIQE: x pyiqa", "metrics", ("piqe", "ratio"), 3.0),
    Target("RealSR-R1's sampler: x one at a time", "vlcot_sampler", ("ratio",), 3.0),
)


def run(name: str) -> bool:
    """Run one script on one thread; whether it ended well."""
    print(f"{name} ...", flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *SCRIPTS[name]]
    done = subprocess.run(command, cwd=REPO, env=env, check=False)
    print(f"{name}: exit {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def recorded(name: str) -> dict[str, Any]:
    """What a script left behind; empty if it never ran."""
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def value_of(target: Target, content: dict[str, Any]) -> float | None:
    """The target's value in a script's results; None if it is not there."""
    value: Any = content.get("measured", {})
    for key in target.path:
        if key not in value:
            return None
        value = value[key]
    return float(value)


def line(target: Target, content: dict[str, Any]) -> tuple[str, bool]:
    """A row of the table, and whether the target holds."""
    value = value_of(target, content)
    holds = value is not None and target.holds(value)
    measured = "not measured" if value is None else f"{value:.2f}"
    limit = f"{'<=' if target.at_most else '>='} {target.limit:g}"
    at = content.get("machine", {}).get("commit", "")
    commit = at[:10] + ("+changes" if at.endswith("+changes") else "")
    verdict = "yes" if holds else "NO"
    return (
        f"| {target.what} | {measured} | {limit} | {verdict} | {target.script} | {commit} |",
        holds,
    )


def table() -> tuple[str, bool]:
    """The table in Markdown, and whether every target holds."""
    lines = [line(target, recorded(target.script)) for target in TARGETS]
    head = ["| What | Measured | Target | Holds | Script | Commit |", "|---|---:|---:|---|---|---|"]
    return "\n".join([*head, *(text for text, _ in lines)]) + "\n", all(ok for _, ok in lines)


def main() -> int:
    """Run the scripts, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join(SCRIPTS))
    parser.add_argument("--recorded", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.scripts) - SCRIPTS.keys():
        parser.error(f"{min(unknown)}: not one of {', '.join(SCRIPTS)}")
    names = [] if args.recorded else args.scripts or list(SCRIPTS)
    ended = [run(name) for name in names]
    text, holds = table()
    (RESULTS / "all.md").write_text(text)
    print(text)
    return int(not (holds and all(ended)))


if __name__ == "__main__":
    sys.exit(main())
