"""Rates of the stages `index` and `degrade` on 512-pixel patches, one process and two at once.

    python -m benchmarks.stages [--photos 8]

Photographs of 768 x 768 pixels are cut from those that ship with scikit-image, nine patches each
(stride 128, which has no influence on the rate). With two processes each does the whole work in a
place of its own; the ratio is their common rate over that of one. `index_over_decode` is the CPU
time of `index` over that of a loop that only decodes the same files with Pillow. Writes
benchmarks/results/stages.json.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.record import REPO, record
from gdpo.config import Config
from gdpo.data.sources import photographs
from gdpo.hooks import Hooks
from gdpo.images import write_png
from gdpo.seeds import numpy_generator
from tasks.params import load
from tasks.stages import degrade, index

SIDE = 768


def configured() -> Config:
    """params.yaml with the paper's patches, from photos/train and photos/held."""
    plain = load(REPO / "params.yaml").model_dump()
    plain["degrade"] |= {
        "train": [{"path": "photos/train"}],
        "evaluation": [{"path": "photos/held"}],
        "parts": ["00"],
        "crop": 512,
        "stride": 128,
        "evaluation_crop": 512,
        "shard_mb": 192.0,
    }
    return Config.model_validate(plain)


def write_photographs(root: Path, count: int) -> None:
    """Crops of the larger photographs, and one held out."""
    large = [
        pixels
        for photo in photographs("scikit-image", "train")
        if min((pixels := photo.load()).shape[:2]) >= SIDE
    ]
    for i in range(count + 1):
        pixels, rng = large[i % len(large)], numpy_generator("stages", i)
        top, left = (int(rng.integers(length - SIDE + 1)) for length in pixels.shape[:2])
        name = f"train/{i:04d}" if i < count else "held/first"
        write_png(
            root / f"photos/{name}.png",
            np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE]),
        )


def timed(root: Path) -> dict[str, float]:
    """Index and degrade everything below `root`: wall and processor seconds of each."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config = configured()
    spent: dict[str, float] = {}
    for name, stage in (
        ("index", index.run),
        ("degrade", lambda c, r, h: degrade.run(c, r, h, "00")),
    ):
        start, cpu = time.perf_counter(), time.process_time()
        stage(config, root, Hooks())
        spent[name], spent[f"{name}_cpu"] = time.perf_counter() - start, time.process_time() - cpu
    cpu = time.process_time()
    for file in (root / "photos").glob("*/*.png"):
        with Image.open(file) as image:
            np.array(image)
    return spent | {"decode_cpu": time.process_time() - cpu}


def main() -> None:
    """One process, then two, after a round that warms both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=8)
    args = parser.parse_args()
    pairs = args.photos * ((SIDE - 512) // 128 + 1) ** 2
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(2, context) as pool:
        places = [Path(scratch, name) for name in ("a", "b")]
        for place in places:
            write_photographs(place, args.photos)
        list(pool.map(timed, places))
        (one,) = pool.map(timed, places[:1])
        two = list(pool.map(timed, places))
    rates = {"one": pairs / one["degrade"], "two": 2 * pairs / max(each["degrade"] for each in two)}
    measured = {
        "side": 512,
        "pairs": pairs,
        "photographs": args.photos,
        "megapixels_per_photograph": SIDE * SIDE / 1e6,
        "index_cpu_ms_per_megapixel": round(
            1e3 * one["index_cpu"] / (args.photos + 1) / (SIDE * SIDE / 1e6), 2
        ),
        "index_over_decode": round(one["index_cpu"] / one["decode_cpu"], 2),
        "degrade_cpu_ms_per_pair": round(1e3 * one["degrade_cpu"] / pairs, 2),
        "degrade_pairs_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "two_over_one": round(rates["two"] / rates["one"], 3),
    }
    record("stages", measured)
    for name, value in measured.items():
        print(name, value)


if __name__ == "__main__":
    main()
