"""Times `detail_map` against the loop over cells that the release runs, on one thread and the same photographs.

    python benchmarks/complexity.py        # prints seconds, the ratio, and whether the maps are equal

The photographs are those that ship inside scikit-image, cut to 512x512.
"""

import time
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray

from gdpo.rewards.complexity import detail_map

PHOTOS = ("astronaut", "coffee", "chelsea", "retina", "immunohistochemistry")


def cell_by_cell(gray: NDArray[Any]) -> NDArray[np.bool_]:
    """The rule of the release, one cell of 10x10 pixels after the other (uint8 HW -> bool HW)."""
    scaled = gray / 255
    out = np.zeros(gray.shape, bool)
    for top in range(0, gray.shape[0], 10):
        for left in range(0, gray.shape[1], 10):
            cell = scaled[top : top + 10, left : left + 10]
            big = cv2.resize(cell, (64, 64))
            x, y = (cv2.Sobel(big, cv2.CV_64F, dx, 1 - dx, ksize=3, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0))
            counts, _ = np.histogram(np.sqrt(x**2 + y**2), bins=512, range=(-5.5, 5.5))
            share = counts / (counts.sum() + 1e-5)
            entropy = -np.sum(share * np.log2(share + 1e-10))
            out[top : top + 10, left : left + 10] = entropy * cell.size > 50
    return out


def main() -> None:
    """Best of three runs of each, over all photographs."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    photos = [np.ascontiguousarray(getattr(skimage.data, name)()[:512, :512, :3]) for name in PHOTOS]
    images = [torch.from_numpy(photo).permute(2, 0, 1)[None] / 255 for photo in photos]
    grays = [cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in photos]
    seconds, maps = {}, {}
    for name, run in (
        ("loop", lambda: [cell_by_cell(gray) for gray in grays]),
        ("ours", lambda: [detail_map(image)[0].numpy() for image in images]),
    ):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            maps[name] = run()
            times.append(time.perf_counter() - start)
        seconds[name] = min(times) / len(photos)
    different = sum(int((a != b).sum()) for a, b in zip(maps["loop"], maps["ours"], strict=True))
    print(f"loop {seconds['loop'] * 1e3:.1f} ms, ours {seconds['ours'] * 1e3:.1f} ms per photograph")
    print(f"ratio {seconds['loop'] / seconds['ours']:.1f}, pixels that differ {different}")


if __name__ == "__main__":
    main()
