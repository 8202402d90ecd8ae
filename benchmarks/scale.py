"""The data plane at paper scale, computed from what was measured: files, bytes, hours, S3 requests
and cost.

    python -m benchmarks.scale [--write]

Reads benchmarks/results/{shards,stages,memory}.json; the constants below are stated, not measured.
A worker is one process on one core with one part of `degrade.parts`. `--write` puts the tables into
docs/operations.md.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks.record import REPO, recorded
from gdpo.files import written_aside

PAIRS = 1_500_000  # the paper
PHOTOGRAPHS = 84_991 + 10_000  # LSDIR's training set, and the first of FFHQ
MEGAPIXELS = (
    1.2  # of a photograph, and megabytes of its file: guesses, replace them by those of your copy
)
PHOTOGRAPH_MB = 1.6
SHARD_MB = 192
SELECTED = 120_000
TRAINING_PAIRS_PER_S = 16 / 0.45  # 16 pairs per step of about 0.45 s on four A100s (an estimate)
# S3 Standard and on-demand c7i, us-east-1, list prices as of 2025; traffic inside a region is free.
USD_PER_GB_MONTH, USD_PER_1000_PUT, USD_PER_1000_GET, USD_PER_CORE_HOUR = (
    0.023,
    0.005,
    0.0004,
    0.0446,
)
TRANSFER_MB_S = 100  # of one worker to and from S3
UPLOAD_PART_MB = (
    50  # dvc-s3 uploads in parts of this size: one request each, and two to begin and end
)
WORKERS = (1, 8, 64)
BEGIN, END = "<!-- benchmarks/scale.py begin -->\n", "<!-- benchmarks/scale.py end -->\n"


@dataclass(frozen=True)
class Requirements:
    """What does not depend on the number of workers."""

    shards: int
    gigabytes: float
    index_hours: float
    degrade_hours: float
    puts: int
    gets: int
    training_gets: int


def requirements(shards: dict[str, Any], stages: dict[str, Any]) -> Requirements:
    """From seconds of one core per megapixel and per pair, and bytes per pair."""
    total = PAIRS * shards["bytes_per_pair"]
    files = -(-total // (SHARD_MB * 10**6))
    requests = -(-SHARD_MB // UPLOAD_PART_MB)
    return Requirements(
        shards=files,
        gigabytes=total / 1e9,
        index_hours=PHOTOGRAPHS * MEGAPIXELS * stages["index_cpu_ms_per_megapixel"] / 3.6e6,
        degrade_hours=PAIRS * stages["degrade_cpu_ms_per_pair"] / 3.6e6,
        puts=files * (requests + 2),
        gets=2 * PHOTOGRAPHS + 2 * -(-PHOTOGRAPHS // 1000),
        training_gets=files * requests,
    )


def tables(
    needs: Requirements,
    shards: dict[str, Any],
    memory: dict[str, Any],
    stages: dict[str, Any],
    machine: dict[str, Any],
) -> str:
    """The section's tables as Markdown."""
    once = [
        ("photographs", f"{PHOTOGRAPHS:,}, {PHOTOGRAPHS * PHOTOGRAPH_MB / 1e3:,.0f} GB"),
        ("pairs", f"{PAIRS:,}, {shards['bytes_per_pair'] / 1e3:.0f} kB each"),
        ("shards", f"{needs.shards:,} files of {SHARD_MB} MB, {needs.gigabytes:,.0f} GB"),
        (
            "`index`, one core",
            f"{needs.index_hours:.1f} h; it reads four photographs at once where there are cores",
        ),
        ("`degrade`, all cores together", f"{needs.degrade_hours:.0f} core-hours"),
        ("requests to write", f"{needs.puts:,} PUT, ${needs.puts / 1e3 * USD_PER_1000_PUT:.2f}"),
        (
            "requests to read the photographs, twice",
            f"{needs.gets:,} GET, ${needs.gets / 1e3 * USD_PER_1000_GET:.2f}",
        ),
        (
            "requests to fetch the shards, per training machine",
            f"{needs.training_gets:,} GET, ${needs.training_gets / 1e3 * USD_PER_1000_GET:.2f}",
        ),
        ("storage", f"${needs.gigabytes * USD_PER_GB_MONTH:.0f} per month"),
        (
            "processors",
            f"${(needs.index_hours + needs.degrade_hours) * USD_PER_CORE_HOUR:.0f} once",
        ),
        (
            "manifest of the selection",
            f"{SELECTED:,} references, about {SELECTED * 40 / 1e6:.0f} MB; no pixels are copied",
        ),
        (
            "memory of a worker",
            f"{memory['peak_mb']} MB at most over {memory['photographs']:,} small photographs, "
            f"plus three row groups of {256 * shards['bytes_per_pair'] / 1e6:.0f} MB",
        ),
        (
            "reading",
            f"{shards['read_1']['pairs_per_s']:.0f} pairs/s with one process, "
            f"{shards['read_2']['pairs_per_s']:.0f} with two; training takes about "
            f"{TRAINING_PAIRS_PER_S:.0f}",
        ),
        (
            "opening the set",
            f"{needs.shards * shards['open_ms_per_shard'] / 1e3:.0f} s per process",
        ),
    ]
    lines = ["| once | |", "|---|---|", *(f"| {name} | {value} |" for name, value in once), ""]
    lines += [
        "| workers = parts | pairs of each | GB of each | `degrade` | transfer | together |",
        "|---|---|---|---|---|---|",
    ]
    for workers in WORKERS:
        degrade = needs.degrade_hours / workers
        transfer = (
            (needs.gigabytes * 1e3 + PHOTOGRAPHS * PHOTOGRAPH_MB) / TRANSFER_MB_S / 3600 / workers
        )
        lines.append(
            f"| {workers} | {PAIRS // workers:,} | {needs.gigabytes / workers:,.1f} | "
            f"{degrade:.1f} h | {transfer:.2f} h "
            f"| {degrade + transfer:.1f} h |"
        )
    lines += [
        "",
        f"Measured on {machine['cores']} cores of {machine['processor']} ({machine['date']}, "
        "commit "
        f"{machine['commit'][:12]}): `degrade` takes {stages['degrade_cpu_ms_per_pair']:.0f} ms "
        "of one core per "
        f"512-pixel pair, two processes make {stages['two_over_one']:.2f} times as many pairs as "
        "one, `index` takes "
        f"{stages['index_cpu_ms_per_megapixel']:.0f} ms per megapixel. Stated, not measured: the "
        "constants at the top of "
        "`benchmarks/scale.py` (sizes of the photographs, prices, bandwidth).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/operations.md")
    args = parser.parse_args()
    shards, stages, memory = (recorded(name) for name in ("shards", "stages", "memory"))
    figures = [result["measured"] for result in (shards, memory, stages)]
    text = tables(requirements(figures[0], figures[2]), *figures, stages["machine"])
    print(text)
    if args.write:
        path = REPO / "docs/operations.md"
        before, _, rest = path.read_text().partition(BEGIN)
        with written_aside(path) as part:
            part.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
