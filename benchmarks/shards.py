"""Pairs read per second from Parquet shards (SHA-256 checked, both images decoded), against loose
PNG files.

    python -m benchmarks.shards [--photos FOLDER] [--pairs 400] [--side 512]

Both read in the shuffled order of `Shards.order`, split over two workers; the ratio is shards over
loose files. Random crops of the photographs in FOLDER, by default those that ship with
scikit-image. Processor time per pair is given beside the rate: a busy machine changes it less.
Writes benchmarks/results/shards.json.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.record import record
from gdpo.config import Degradation
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.shards import Box, Pair, Shards, shard_files, write_shards
from gdpo.data.sources import photographs
from gdpo.images import decode_image, write_png
from gdpo.seeds import numpy_generator

WORKERS = 2


def pairs(source: str, count: int, side: int) -> Iterator[Pair]:
    """Crops with their low-resolution images."""
    photos = [photo.load() for photo in photographs(source, "train")]
    photos = [photo for photo in photos if min(photo.shape[:2]) >= side]
    for i in range(count):
        number = i * len(photos) // count
        photo, rng = photos[number], numpy_generator("benchmark", i)
        top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
        hr = np.ascontiguousarray(photo[top : top + side, left : left + side])
        drawn = draw(Degradation(), rng)
        lr = low_resolution(hr.astype(np.float32) / 255, drawn)
        yield Pair(f"{i:06d}", f"{number:04d}", Box(top, left, side, side), hr, lr, drawn, 0.0)


def read_shards(folder: Path, rank: int, world: int) -> tuple[int, float]:
    """One worker's part, from shards: pairs and processor seconds."""
    cv2.setNumThreads(1)
    shards, start = Shards(folder), time.process_time()
    count = sum(shards[i].hr.shape[0] > 0 for i in shards.order(0, 0)[rank::world])
    return count, time.process_time() - start


def read_files(folder: Path, rank: int, world: int) -> tuple[int, float]:
    """One worker's part, from two PNG files per pair."""
    cv2.setNumThreads(1)
    names = sorted(folder.glob("*-hr.png"))
    start, done = time.process_time(), 0
    for number in numpy_generator("files").permutation(len(names))[rank::world]:
        for path in (
            names[number],
            names[number].with_name(names[number].name.replace("-hr", "-lr")),
        ):
            done += decode_image(path.read_bytes()).shape[0] > 0
    return done // 2, time.process_time() - start


def rate(
    pool: ProcessPoolExecutor, read: Callable[..., tuple[int, float]], folder: Path, workers: int
) -> dict[str, float]:
    """Pairs per second of `workers` processes together, and processor milliseconds per pair; the
    best of three rounds.
    """
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        counts = list(pool.map(read, [folder] * workers, range(workers), [workers] * workers))
        count = sum(one for one, _ in counts)
        rounds.append(
            (count / (time.perf_counter() - start), 1e3 * sum(cpu for _, cpu in counts) / count)
        )
    return {
        "pairs_per_s": round(max(one for one, _ in rounds), 1),
        "cpu_ms": round(min(cpu for _, cpu in rounds), 3),
    }


def main() -> None:
    """Write both forms once, read each with the same workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", default="scikit-image", help="a folder of photographs")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    sample = list(pairs(args.photos, args.pairs, args.side))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(WORKERS, context) as pool:
        folder, files = Path(scratch, "shards"), Path(scratch, "files")
        start = time.process_time()
        write_shards(folder, sample, 192)
        written = 1e3 * (time.process_time() - start) / len(sample)
        for pair in sample:
            write_png(files / f"{pair.id}-hr.png", pair.hr)
            write_png(files / f"{pair.id}-lr.png", pair.lr)
        start = time.perf_counter()
        Shards(folder)
        opened = 1e3 * (time.perf_counter() - start) / len(shard_files(folder))
        list(pool.map(read_files, [files] * WORKERS, range(WORKERS), [10**9] * WORKERS))  # warm
        measured = {
            "side": args.side,
            "pairs": len(sample),
            "photographs": args.photos if args.photos == "scikit-image" else "a folder",
            "bytes_per_pair": sum(path.stat().st_size for path in shard_files(folder))
            // len(sample),
            "bytes_per_pair_png": sum(path.stat().st_size for path in files.iterdir())
            // len(sample),
            "write_cpu_ms": round(written, 2),
            "open_ms_per_shard": round(opened, 2),
            "read_1": rate(pool, read_shards, folder, 1),
            "read_2": rate(pool, read_shards, folder, WORKERS),
            "files_2": rate(pool, read_files, files, WORKERS),
        }
    record("shards", measured)
    for name in ("read_1", "read_2", "files_2"):
        print(
            f"{name:8} {measured[name]['pairs_per_s']:7.1f} pairs/s, "
            f"{measured[name]['cpu_ms']:.2f} ms of one core per pair"
        )
    print(
        f"bytes per pair {measured['bytes_per_pair']}, as PNG files "
        f"{measured['bytes_per_pair_png']}"
    )
    print(f"ratio {measured['read_2']['pairs_per_s'] / measured['files_2']['pairs_per_s']:.2f}")


if __name__ == "__main__":
    main()
