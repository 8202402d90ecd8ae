"""The fault campaign: break every stage, the bucket and the cache; nothing may be lost or wrong.

    python -m benchmarks.chaos --minutes 15            a seeded choice that fits into the time
    python -m benchmarks.chaos --write                 all trials, and a table of them in
                                                       benchmarks/results
    python -m benchmarks.chaos --only kept_flipped --stage pretrain

A trial breaks one thing while one stage of a small pipeline runs (benchmarks/faults), runs the same
command again, and compares the SHA-256 of all outputs with those of an undisturbed run. Then no
process and no scratch file may be left. Finished trials are kept in --kept, and a later call with
the same code goes on from them. Some faults need root (a small tmpfs, read-only
mounts); without it they are skipped and counted. Exit code 1 if a trial found a difference.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import REPO, RESULTS
from gdpo.files import written_aside
from gdpo.seeds import numpy_generator

NEED_ROOT = ("disk_full", "read_only")
PLAIN = {
    "killed": "SIGKILL at a random point",
    "terminated": "SIGTERM at a random point",
    "disk_full": "the disk is full",
    "kept_flipped": "a flipped bit in a checkpoint, chunk or image",
    "kept_cut": "a checkpoint, chunk or image cut off",
    "input_flipped": "a flipped bit in a shard, rollout, token file or model",
    "input_cut": "such a file cut off",
    "clock_jumped": "files from the future or from 1980",
    "read_only": "inputs on a read-only file system",
    "two_at_once": "two workers on one stage",
    "published": "publish and promote: the store answers 5xx, cuts off, is slow, lies",
    "two_promoters": "two promoters at once",
    "object_damaged": "a published model is damaged in the bucket",
    "transferred": "dvc push and pull: the store answers 5xx, cuts off, is slow, lies",
    "remote_damaged": "an object of DVC's remote is damaged",
    "cache_damaged": "a file of DVC's cache is damaged",
}


def plan(world: Any, seed: int) -> list[tuple[str, str]]:
    """All trials, as (fault, stage or kind), in a seeded order."""
    from benchmarks.faults import stages, store

    trials = stages.everywhere(world)
    trials += [(name, kind) for name, (_, kinds) in store.KINDS.items() for kind in kinds]
    order = np.random.default_rng(seed).permutation(len(trials))
    return [trials[i] for i in order]


def trial(world: Any, fault: str, where: str, seed: int) -> dict[str, Any]:
    """One row of the table."""
    from benchmarks.faults import stages, store

    rng = numpy_generator("chaos", seed, fault, where)
    run = store.KINDS[fault][0] if fault in store.KINDS else getattr(stages, fault)
    start = time.perf_counter()
    try:
        outcome = asdict(run(world, where, rng))
    except Exception:
        outcome = {"code": "", "message": "", "problems": [traceback.format_exc()[-1500:]]}
    finally:
        stages.clear(world)
    row = {"fault": fault, "where": where, "seed": seed, **outcome}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def kept(file: Path, code: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows of earlier calls with this code."""
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["commit"] == code]
    return {(row["fault"], row["where"], row["seed"]): row for row in rows}


def state_of_code() -> str:
    """The commit, and a mark if tracked files differ from it."""
    head, changed = (
        subprocess.run(
            ["git", *words], cwd=REPO, capture_output=True, text=True, check=True
        ).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    )
    return head + ("+changes" if changed else "")


def table(rows: list[dict[str, Any]], skipped: Counter[str], code: str) -> str:
    """The rows as Markdown: how many trials by fault and stage, and what each said."""
    bad = [row for row in rows if row["problems"]]
    lines = [
        "# What was broken, and what became of it",
        "",
        f"`python -m benchmarks.chaos --write` at commit {code[:12]}: "
        f"{len(rows)} trials, {len(bad)} with a lasting difference.",
        "After each, the same command was run again and all outputs were compared by SHA-256 "
        "with those of an undisturbed run.",
        "",
        "| fault | trials | stages or kinds | stopped by it | went on | differences |",
        "|---|---|---|---|---|---|",
    ]
    for fault, text in PLAIN.items():
        mine = [row for row in rows if row["fault"] == fault]
        if not mine:
            continue
        places = len({row["where"] for row in mine})
        on = sum(str(row["code"]) in ("0", "0, 0") for row in mine)
        wrong = sum(bool(row["problems"]) for row in mine)
        lines.append(f"| {text} | {len(mine)} | {places} | {len(mine) - on} | {on} | {wrong} |")
    lines += [
        f"| {PLAIN[fault]} | {count} skipped: needs root | | | | |"
        for fault, count in skipped.items()
    ]
    wheres = sorted({row["where"] for row in rows if row["where"]})
    lines += ["", "| stage or kind | trials | differences |", "|---|---|---|"]
    for where in wheres:
        mine = [row for row in rows if row["where"] == where]
        lines.append(f"| {where} | {len(mine)} | {sum(bool(row['problems']) for row in mine)} |")
    for row in bad:
        lines += [
            "",
            f"**{row['fault']} of {row['where']}** (seed {row['seed']}): "
            f"{row['problems'][0][:300]}",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trials that are wanted and not kept; print each, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="of trials; then begin none")
    parser.add_argument("--kept", type=Path, default=REPO / "work/chaos/trials.jsonl")
    parser.add_argument("--only", choices=PLAIN, nargs="+", help="these faults")
    parser.add_argument("--stage", help="this stage or kind")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/chaos.md")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    code = state_of_code()
    done = kept(args.kept, code)
    from benchmarks.faults.world import World

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        world = World(Path(folder), print)
        start = time.monotonic()
        try:
            rows, skipped = [], Counter[str]()
            for fault, where in plan(world, args.seed):
                if (args.only and fault not in args.only) or args.stage not in (None, where):
                    continue
                if fault in NEED_ROOT and os.geteuid():
                    skipped[fault] += 1
                    continue
                row = done.get((fault, where, args.seed))
                if row is None:
                    if time.monotonic() - start > 60 * args.minutes:
                        continue
                    row = trial(world, fault, where, args.seed)
                    args.kept.parent.mkdir(parents=True, exist_ok=True)
                    with args.kept.open("a") as file:
                        file.write(json.dumps({**row, "commit": code}) + "\n")
                    shown = "DIFFERS " + str(row["problems"]) if row["problems"] else "same"
                    print(
                        f"{fault} {where}: {row['code']} {row['message'][:120]}: {shown}",
                        flush=True,
                    )
                rows.append(row)
        finally:
            world.close()
    text = table(rows, skipped, code)
    print(text)
    if args.write:
        with written_aside(RESULTS / "chaos.md") as part:
            part.write_text(text)
    return int(any(row["problems"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
