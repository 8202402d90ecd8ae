"""Pairs read per second from Parquet shards (SHA-256 checked, both PNGs decoded), against loose PNG files.

    python benchmarks/shards.py [--pairs 200] [--side 512] [--workers 2]

Both read in the shuffled order of `Shards.order`, split over the workers; the ratio is shards over loose files.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from gdpo.data.shards import Box, Pair, Shards, write_shards
from gdpo.data.sources import photographs
from gdpo.images import decode_image, write_png
from gdpo.training import numpy_generator


def pairs(count: int, side: int) -> Iterator[Pair]:
    """Crops of real photographs with their quarter-size means."""
    photos = [photo.load() for photo in photographs("scikit-image", "train")]
    for i in range(count):
        photo, rng = photos[i % len(photos)], numpy_generator("benchmark", i)
        top, left = (int(rng.integers(max(1, length - side + 1))) for length in photo.shape[:2])
        hr = np.ascontiguousarray(photo[top : top + side, left : left + side])
        lr = cv2.resize(hr, (hr.shape[1] // 4, hr.shape[0] // 4), interpolation=cv2.INTER_AREA)
        yield Pair(f"{i:06d}", str(i % len(photos)), Box(top, left, *hr.shape[:2]), hr, lr, {}, 0.0)


def read_shards(folder: Path, rank: int, world: int) -> int:
    """One worker's part, from shards."""
    shards = Shards(folder)
    return sum(shards[i].hr.shape[0] > 0 for i in shards.order(0, 0, rank, world))


def read_files(folder: Path, rank: int, world: int) -> int:
    """One worker's part, from two PNG files per pair."""
    names = sorted(folder.glob("*-hr.png"))
    numbers = numpy_generator("files").permutation(len(names))[rank::world]
    done = 0
    for number in numbers:
        for path in (names[number], names[number].with_name(names[number].name.replace("-hr", "-lr"))):
            done += decode_image(path.read_bytes()).shape[0] > 0
    return done // 2


def main() -> None:
    """Write both forms once, read each with the same workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rates = {}
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(args.workers) as pool:
        shards, files = Path(scratch, "shards"), Path(scratch, "files")
        write_shards(shards, pairs(args.pairs, args.side), 192)
        for pair in pairs(args.pairs, args.side):
            write_png(files / f"{pair.id}-hr.png", pair.hr)
            write_png(files / f"{pair.id}-lr.png", pair.lr)
        list(pool.map(read_files, [files] * args.workers, range(args.workers), [10**9] * args.workers))  # warm
        for name, read, folder in (("shards", read_shards, shards), ("files", read_files, files)):
            start = time.perf_counter()
            counts = pool.map(read, [folder] * args.workers, range(args.workers), [args.workers] * args.workers)
            assert sum(counts) == args.pairs
            rates[name] = args.pairs / (time.perf_counter() - start)
    print(f"shards {rates['shards']:.0f}, loose files {rates['files']:.0f} pairs/s; {args.workers} workers, {args.side}px")
    print(f"ratio {rates['shards'] / rates['files']:.2f}")


if __name__ == "__main__":
    main()
