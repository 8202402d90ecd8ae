"""Times `detail_map` against the loop over cells that the release runs, on one thread and the same
photographs.

    OMP_NUM_THREADS=1 python -m benchmarks.complexity [--rounds 9]     # milliseconds, the ratio,
    and pixels that differ

The photographs are those that ship inside scikit-image, cut to 512x512. Both take turns, photograph
by photograph, and processor time is counted, so that a busy machine slows both alike; the ratio is
the median over the rounds. Writes benchmarks/results/complexity.json.
"""

import argparse
import os
import time
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray

from benchmarks.record import record
from gdpo.rewards.detail import detail_map

PHOTOS = ("astronaut", "coffee", "chelsea", "retina", "immunohistochemistry")


def cell_by_cell(gray: NDArray[Any]) -> NDArray[np.bool_]:
    """The rule of the release, one cell of 10x10 pixels after the other (uint8 HW -> bool HW)."""
    scaled = gray / 255
    out = np.zeros(gray.shape, bool)
    for top in range(0, gray.shape[0], 10):
        for left in range(0, gray.shape[1], 10):
            cell = scaled[top : top + 10, left : left + 10]
            big = cv2.resize(cell, (64, 64))
            x, y = (
                cv2.Sobel(big, cv2.CV_64F, dx, 1 - dx, ksize=3, borderType=cv2.BORDER_REPLICATE)
                for dx in (1, 0)
            )
            counts, _ = np.histogram(np.sqrt(x**2 + y**2), bins=512, range=(-5.5, 5.5))
            share = counts / (counts.sum() + 1e-5)
            entropy = -np.sum(share * np.log2(share + 1e-10))
            out[top : top + 10, left : left + 10] = entropy * cell.size > 50
    return out


def main() -> None:
    """Milliseconds of both per photograph, their ratio, and how many pixels differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error(
            "one core is measured: set OMP_NUM_THREADS=1, which NumPy reads when it starts"
        )
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    photos = [
        np.ascontiguousarray(getattr(skimage.data, name)()[:512, :512, :3]) for name in PHOTOS
    ]
    seconds = np.zeros((rounds + 1, 2))
    different = 0
    for i in range(rounds + 1):
        for photo in photos:
            gray, image = (
                cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY),
                torch.from_numpy(photo).permute(2, 0, 1)[None] / 255,
            )
            start = time.process_time()
            plain = cell_by_cell(gray)
            middle = time.process_time()
            ours = detail_map(image)[0].numpy()
            seconds[i] += middle - start, time.process_time() - middle
            different += int((plain != ours).sum())
    loop, ours_ms = 1e3 * np.median(seconds[1:], axis=0) / len(photos)  # the first round warms up
    ratios = seconds[1:, 0] / seconds[1:, 1]
    print(f"loop {loop:.1f} ms, ours {ours_ms:.1f} ms per photograph")
    print(
        f"ratio {np.median(ratios):.1f} (rounds {ratios.min():.1f} to {ratios.max():.1f}), pixels "
        f"that differ {different}"
    )
    record(
        "complexity",
        {
            "loop_ms": round(float(loop), 2),
            "ours_ms": round(float(ours_ms), 2),
            "ratio": round(float(np.median(ratios)), 2),
            "pixels_that_differ": different,
        },
    )


if __name__ == "__main__":
    main()
