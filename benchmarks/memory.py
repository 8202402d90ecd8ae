"""Memory of `index` and `degrade` over many small photographs: it must not grow with their number.

    python -m benchmarks.memory [--photos 20000]

The photographs (40 x 40 pixels, one patch of 32 each) are made in a temporary folder. Prints
resident memory in MB at several points of each stage, and the peak; writes
benchmarks/results/memory.json.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import REPO, record
from gdpo.config import Config
from gdpo.hooks import Hooks
from gdpo.images import encode_png
from tasks.params import load
from tasks.stages import degrade, index

SIDE = 40


class Watch:
    """Resident memory whenever a tenth of the photographs is done."""

    def __init__(self, total: int) -> None:
        self.step = max(1, total // 10)
        self.points: dict[str, int] = {}

    def __call__(self, done: int, values: dict[str, float]) -> None:
        """As `Hooks.log`."""
        if done // self.step > len(self.points):
            self.points[str(done)] = resident()


def resident() -> int:
    """MB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def configured() -> Config:
    """params.yaml with small patches, from photos/train and photos/held."""
    plain = load(REPO / "params.yaml").model_dump()
    plain["degrade"] |= {
        "train": [{"path": "photos/train"}],
        "evaluation": [{"path": "photos/held"}],
        "parts": ["00"],
        "crop": 32,
        "stride": 32,
        "evaluation_crop": 32,
        "shard_mb": 8.0,
    }
    return Config.model_validate(plain)


def main() -> None:
    """Make the photographs, run both stages, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=20000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    measured: dict[str, object] = {"photographs": args.photos}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ["held/first", *(f"train/{i // 1000:02d}/{i:06d}" for i in range(args.photos))]:
            blocks = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3))
            path = root / f"photos/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)))
        config = configured()
        # The first files: everything that is imported late is in memory now.
        index.run(config, root, Hooks())
        for name, stage in (
            ("index", index.run),
            ("degrade", lambda c, r, h: degrade.run(c, r, h, "00")),
        ):
            watch, start = Watch(args.photos), time.perf_counter()
            stage(config, root, Hooks(log=watch))
            measured[name] = {
                "mb_after": watch.points,
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(name, "MB after so many photographs:", watch.points)
    measured["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
    print(f"peak {measured['peak_mb']} MB")
    record("memory", measured)


if __name__ == "__main__":
    main()
