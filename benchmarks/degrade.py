"""Times the degradation against a plain rendering of the published recipe, on one core, and over
two processes.

    OMP_NUM_THREADS=1 python -m benchmarks.degrade [--patches 40] [--side 512] [--rounds 5]

Both get the same patches and the same drawn parameters and take turns, patch by patch; processor
time is counted and each ratio is the median over the rounds, so that a busy machine changes little.
The table below compares what the two make of the patches: deciles of PSNR (enlarged, against the
patch), gradient energy, high-frequency noise and blockiness. The last line is the throughput of two
processes over that of one, by the clock: it needs two free cores. Writes
benchmarks/results/degrade.json.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import cv2
import numpy as np
import torch

from benchmarks.published_recipe import degraded, enlarged
from benchmarks.record import record
from gdpo.config import Degradation
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.kernels import Draw
from gdpo.data.shards import enlarge
from gdpo.data.sources import photographs
from gdpo.seeds import numpy_generator

LABELS = ("PSNR dB", "gradient energy", "noise", "blockiness")


def figures(lr: np.ndarray, up: np.ndarray, hr: np.ndarray) -> list[float]:
    """PSNR of the enlarged image; of the luma of the small one: gradient energy, median absolute
    Laplacian, and steps across 8-pixel borders over steps elsewhere. All images in levels."""
    gray = lr.astype(np.float64) @ [0.299, 0.587, 0.114]
    steps = np.abs(np.diff(gray, axis=1))
    border = np.arange(steps.shape[1]) % 8 == 7
    return [
        10 * np.log10(255**2 / np.mean((up.astype(np.float64) - hr) ** 2)),
        float(np.mean(np.diff(gray, axis=0) ** 2) + np.mean(steps**2)),
        float(np.median(np.abs(cv2.Laplacian(gray, cv2.CV_64F)))),
        float((steps[:, border].mean() + 0.1) / (steps[:, ~border].mean() + 0.1)),
    ]


def figures_of_ours(hr: np.ndarray, drawn: Draw) -> list[float]:
    """Figures of the LR image that our degradation makes of float (H, W, 3) in [0, 1]."""
    lr = low_resolution(hr, drawn)
    return figures(lr, enlarge(lr, hr.shape[:2], drawn["enlarge"]), np.round(hr * 255))


def figures_of_published(hr: np.ndarray, drawn: Draw) -> list[float]:
    """The same of the published recipe, which rounds after it has enlarged."""
    lr = degraded(hr, drawn)
    up = np.round(255 * enlarged(lr, hr.shape[:2], drawn["enlarge"]))
    return figures(np.round(255 * lr), up, np.round(hr * 255))


def cut_patches(count: int, side: int) -> list[np.ndarray]:
    """`count` crops, float32 (side, side, 3) in [0, 1], of the photographs that ship inside
    scikit-image.
    """
    photos = [photo.load() for photo in photographs("scikit-image", "train")]
    patches = []
    for i in range(count):
        photo, rng = photos[i % len(photos)], numpy_generator("crop", i)
        top, left = (int(rng.integers(max(1, length - side + 1))) for length in photo.shape[:2])
        patches.append(photo[top : top + side, left : left + side].astype(np.float32) / 255)
    return patches


def one_thread() -> None:
    """This process computes on one core."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


@cache
def work(count: int, side: int) -> list[tuple[np.ndarray, Draw]]:
    """The patches of this benchmark with what is drawn for them, made once in each process."""
    return [
        (patch, draw(Degradation(), numpy_generator("benchmark", i)))
        for i, patch in enumerate(cut_patches(count, side))
    ]


def degrade_all(count: int, side: int) -> None:
    """What each process does in the last comparison."""
    for patch, drawn in work(count, side):
        low_resolution(patch, drawn)


def over_two(count: int, side: int, rounds: int) -> list[float]:
    """Throughput of two processes over that of one, each process with the same patches, per
    round.
    """
    ratios = []
    with ProcessPoolExecutor(2, initializer=one_thread) as pool:
        for _ in range(rounds + 1):
            seconds = []
            for processes in (1, 2):
                start = time.perf_counter()
                for job in [pool.submit(degrade_all, count, side) for _ in range(processes)]:
                    job.result()
                seconds.append(time.perf_counter() - start)
            ratios.append(2 * seconds[0] / seconds[1])
    return ratios[1:]  # the first round makes the patches


def main() -> None:
    """Print milliseconds of both per patch, their ratio, the deciles of what they made, and the
    gain of two processes.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error(
            "one core is measured: set OMP_NUM_THREADS=1, which NumPy reads when it starts"
        )
    one_thread()
    pairs = work(args.patches, args.side)
    seconds = np.zeros((args.rounds + 1, 2))
    for round_seconds in seconds:
        for patch, drawn in pairs:
            start = time.process_time()
            degraded(patch, drawn)
            middle = time.process_time()
            low_resolution(patch, drawn)
            round_seconds += middle - start, time.process_time() - middle
    plain, ours = 1e3 * np.median(seconds[1:], axis=0) / args.patches  # the first round warms up
    ratios = seconds[1:, 0] / seconds[1:, 1]
    print(f"plain {plain:.1f} ms, ours {ours:.1f} ms per {args.side}px patch, one core")
    print(f"ratio {np.median(ratios):.2f} (rounds {ratios.min():.2f} to {ratios.max():.2f})")
    for name, of in (("plain", figures_of_published), ("ours", figures_of_ours)):
        deciles = np.percentile([of(*pair) for pair in pairs], [10, 30, 50, 70, 90], axis=0)
        for label, column in zip(LABELS, deciles.T, strict=True):
            print(
                f"{label:16s} {name:6s} deciles 1 3 5 7 9: "
                + " ".join(f"{value:8.3f}" for value in column)
            )
    gains = over_two(args.patches, args.side, args.rounds)
    print(
        f"two processes {np.median(gains):.2f} times the throughput of one (rounds "
        f"{min(gains):.2f} to {max(gains):.2f})"
    )
    record(
        "degrade",
        {
            "plain_ms": round(float(plain), 2),
            "ours_ms": round(float(ours), 2),
            "ratio": round(float(np.median(ratios)), 2),
            "two_over_one": round(float(np.median(gains)), 2),
        },
    )


if __name__ == "__main__":
    main()
