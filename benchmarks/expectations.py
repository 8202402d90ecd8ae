"""Seconds that the checks of select and rollout take, on fabricated tables of paper size, after
Great Expectations is imported.

    python -m benchmarks.expectations [--rows 120000]

Writes benchmarks/results/expectations.json. Beside the checks: reading the same tables from
Parquet, and what a stage pays once (import, and the first use on 100 rows).
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import commit
from gdpo.config import Rollout, Select
from gdpo.data.selection import choose, manifest
from tasks import paths
from tasks.checks.tables import check_rollouts, check_selection
from tasks.files.selection import MANIFEST

RESULTS = Path(__file__).parent / "results" / "expectations.json"
PER_PHOTO = 10
LIMIT = 2.0  # seconds for 120,000 rows


def ids(count: int, what: str = "") -> pa.Array:
    """Names like those of patches and hashes."""
    return pa.array([f"{what}{i:020x}" for i in range(count)])


def write(path: Path, **columns: object) -> None:
    """One Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def fabricate(root: Path, rows: int, rule: Select, settings: Rollout) -> None:
    """What the stages before leave: lists of photographs, held-out ids, a selection, rollouts
    without latents.
    """
    rng = np.random.default_rng(0)
    photos = -(-rows // PER_PHOTO)
    names = np.char.add("photo", np.arange(photos).astype(str))
    write(root / paths.photo_list("00"), name=names, sha256=[f"{i:064x}" for i in range(photos)])
    write(root / paths.photo_list("evaluation"), name=["held"], sha256=["f" * 64])
    write(root / f"{paths.HELD_OUT}/00000.parquet", id=ids(1000, "held"))
    patches = pa.table(
        {
            "id": ids(rows),
            "source": np.repeat(names, PER_PHOTO)[:rows],
            "score": rng.normal(60, 10, rows),
            "detail_share": rng.uniform(0.1, 1, rows),
            "hash": rng.integers(0, 2**63, rows, dtype=np.uint64),
        }
    )
    table = choose(patches, rule, higher_is_better=True)
    chosen = manifest(table)
    (root / paths.SELECTED).mkdir()
    pq.write_table(table, root / f"{paths.SELECTED}/scores.parquet")
    pq.write_table(chosen, root / paths.SELECTED / MANIFEST)
    values = rng.random((len(chosen), settings.group))
    seeds = list(rng.integers(0, 2**62, values.shape))
    metrics = pa.StructArray.from_arrays(
        [pa.array(list(values))] * len(settings.metrics), settings.metrics
    )
    write(
        root / f"{paths.ROLLOUTS}/00/00000.parquet",
        id=chosen["id"],
        prompt=[""] * len(chosen),
        detail_share=chosen["detail_share"],
        seeds=seeds,
        metrics=metrics,
        noise_seeds=[[row] for row in seeds],
        reference_error=[[row] for row in values],
    )


def seconds(action: Callable[[], object]) -> float:
    """The least of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, object]:
    """Where the figures come from."""
    versions = {
        name: metadata.version(name) for name in ("great-expectations", "pandas", "pyarrow")
    }
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": commit(),
    }


def main() -> None:
    """Import, warm up, then time both checks and the reading alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=120_000)
    rows = parser.parse_args().rows
    rule = Select(count=rows, min_hash_distance=0)
    settings = Rollout()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fabricate(root, 100, rule, settings)
        start = time.perf_counter()
        check_selection(root / paths.SELECTED, root, rule)
        figures: dict[str, Any] = {
            "rows": rows,
            "import and first use": round(time.perf_counter() - start, 2),
        }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fabricate(root, rows, rule, settings)
        files = sorted((root / "data").rglob("*.parquet"))
        figures["reading the tables"] = round(
            seconds(lambda: [pq.read_table(file) for file in files]), 2
        )
        figures["select"] = round(
            seconds(lambda: check_selection(root / paths.SELECTED, root, rule)), 2
        )
        selected = pq.read_table(root / paths.SELECTED / MANIFEST)["id"].to_pylist()
        part = (root / f"{paths.ROLLOUTS}/00", "00", root, settings, selected)
        figures["rollout"] = round(seconds(lambda: check_rollouts(*part)), 2)
        pages = [page.stat().st_size for page in (root / "reports").rglob("*.html")]
        figures |= {"kB of Data Docs": sum(pages) // 1000, "pages": len(pages)}
    slower = max(figures["select"], figures["rollout"])
    figures |= {
        "MB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **machine(),
    }
    print(json.dumps(figures, indent=1))
    print(f"ratio {LIMIT / slower:.1f} ({LIMIT:g} s over the slower check)")
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
