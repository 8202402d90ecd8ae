"""CPU seconds of our metrics against pyiqa's own, on the same batch, with the same values.

    OMP_NUM_THREADS=1 python -m benchmarks.metrics [--images 24] [--side 256] [--rounds 5]

The batch is that of an evaluation: crops of the photographs that ship, slightly blurred, against
the crops. Both take turns and CPU time is counted, so that a busy machine slows both alike; the
ratio is the median over the rounds. pyiqa's NIQE reads our parameter file. The largest difference
of the values is given beside the ratio.

Writes benchmarks/results/metrics.json.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.record import REPO, record
from gdpo.images import read_photo, to_tensor
from gdpo.metrics.niqe import BLOCK
from gdpo.metrics.score import NIQE_FILE, score
from gdpo.seeds import numpy_generator

# pyiqa's name and options for each metric of the sample profile.
PYIQA: dict[str, tuple[str, dict[str, Any]]] = {
    "psnr_y": ("psnr", {"test_y_channel": True, "color_space": "ycbcr"}),
    "ssim_y": ("ssim", {"test_y_channel": True, "color_space": "ycbcr"}),
    "niqe": ("niqe", {"pretrained_model_path": str(NIQE_FILE)}),  # blocks: see `pyiqa_metric`
    "piqe": ("piqe", {}),
}


def crops(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(blurred, sharp) crops of the shipped photographs, float BCHW RGB in [0, 1]."""
    files = sorted((REPO / "assets/photos").glob("*/*.webp"))
    sharp = []
    for i in range(count):
        pixels = read_photo(files[i % len(files)])
        rng = numpy_generator("metrics", i)
        top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
        sharp.append(to_tensor(np.ascontiguousarray(pixels[top : top + side, left : left + side])))
    batch = torch.stack(sharp)
    padded = torch.nn.functional.pad(batch, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1), batch


def pyiqa_metric(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """pyiqa's metric as a function of (image, reference)."""
    import pyiqa

    theirs, options = PYIQA[name]
    module = pyiqa.create_metric(theirs, device="cpu", **options)
    if name.endswith("_y"):
        return lambda image, reference: module(image, reference)
    if name == "niqe":
        # pyiqa reads means and covariance from the file but not the size of the blocks.
        niqe_arch = importlib.import_module("pyiqa.archs.niqe_arch")
        niqe_arch.niqe = partial(niqe_arch.niqe, block_size_h=BLOCK, block_size_w=BLOCK)
    # In double precision as ours: PIQE compares deviations with thresholds.
    return lambda image, reference: module(image.double())


def cpu_seconds(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Processor time of a call, and its result."""
    start = time.process_time()
    values = work()
    return time.process_time() - start, values.double().reshape(-1)


def compared(
    name: str, image: torch.Tensor, reference: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Milliseconds per image of both, their ratio, and the largest difference of the values."""
    theirs = pyiqa_metric(name)
    ratios, ours_ms, theirs_ms, difference = [], [], [], 0.0
    for i in range(rounds + 1):
        spent, values = cpu_seconds(lambda: score([name], image, reference)[name])
        plain, expected = cpu_seconds(lambda: theirs(image, reference))
        difference = float((values - expected).abs().max())
        if i:  # the first round warms both up
            ratios.append(plain / spent)
            ours_ms.append(1e3 * spent / len(image))
            theirs_ms.append(1e3 * plain / len(image))
    return {
        "ours_ms": round(statistics.median(ours_ms), 2),
        "pyiqa_ms": round(statistics.median(theirs_ms), 2),
        "ratio": round(statistics.median(ratios), 2),
        "difference": difference,
    }


def main() -> None:
    """Measure each metric, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if torch.get_num_threads() != 1:
        parser.error("one thread is measured: set OMP_NUM_THREADS=1")
    image, reference = crops(args.images, args.side)
    measured: dict[str, Any] = {"images": args.images, "side": args.side}
    for name in PYIQA:
        measured[name] = compared(name, image, reference, args.rounds)
        print(name, measured[name])
    record("metrics", measured)


if __name__ == "__main__":
    main()
