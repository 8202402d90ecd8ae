"""Does bf16 change what the network metrics say about a group of candidates? Scored in fp32 and
under bf16 autocast.

    python -m benchmarks.metric_precision --groups 16                        # on a GPU, with the
    published weights there
    OMP_NUM_THREADS=1 python -m benchmarks.metric_precision --groups 4 --crops 2        # on a CPU:
    2 of MANIQA's 20 crops

A group is G outputs of the shipped NAOSD for one patch of a photograph, by different noises: what a
rollout scores. For each metric: the share of groups whose order changes, whose best and whose worst
candidate changes, and the error of bf16 against the spread it has to resolve, |bf16 - fp32| within
the group over the standard deviation of fp32 within the group (roots of mean squares; a shift that
all candidates share is no error). A metric whose files are not there is built from random weights,
and the row says so: it then shows how the arithmetic rounds, not how far trained outputs lie apart.

Writes benchmarks/results/metric_precision.json; docs/fidelity.md quotes it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch

from benchmarks.record import REPO, record
from gdpo.config import Degradation
from gdpo.data.degrade import degrade
from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.metrics import maniqa
from gdpo.metrics.score import METRICS, missing, score
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast, super_resolve
from gdpo.seeds import numpy_generator
from tasks.run.training import device
from tests.gdpo.metrics import weights

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
NETWORKS = [
    name for name, row in METRICS.items() if row.weights and not row.double and not row.per_set
]
SIDE, GROUP = 256, 6


def main() -> int:
    """Measure every network metric, print a line each, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument(
        "--crops",
        type=int,
        default=maniqa.CROPS,
        help="MANIQA looks at the first so many of its 20 crops",
    )
    parser.add_argument("--metrics", nargs="+", default=NETWORKS, choices=NETWORKS)
    args = parser.parse_args()
    maniqa.CROPS = args.crops
    model = NAOSD.from_pretrained(REPO / "assets/tiny-sd/naosd", device=str(device()))
    groups = [candidates(model, i) for i in range(args.groups)]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.metrics:
            rows[name] = {"weights": provide(name, Path(folder)), **compare(name, groups)}
            sys.stdout.write(f"{name}: {rows[name]}\n")
            sys.stdout.flush()
    settings = {
        "groups": args.groups,
        "candidates": GROUP,
        "side": SIDE,
        "maniqa_crops": args.crops,
        "device": device().type,
    }
    record("metric_precision", {**settings, "metrics": rows})
    return 0


def candidates(model: NAOSD, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """G outputs of the shipped NAOSD for one degraded patch, and the HR patch G times; (G, 3, SIDE,
    SIDE) in [0, 1].
    """
    rng = numpy_generator("metric precision", index)
    photo = getattr(skimage.data, PHOTOS[index % len(PHOTOS)])()
    top, left = (int(rng.integers(0, side - SIDE + 1)) for side in photo.shape[:2])
    hr = to_tensor(photo[top : top + SIDE, left : left + SIDE])
    lr = (degrade(hr.numpy(), Degradation(), rng).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    up = to_tensor(enlarge(lr, (SIDE, SIDE), "bicubic"))[None]
    keys: list[Any] = [("metric precision", index, i) for i in range(GROUP)]
    outputs = super_resolve(model, up, keys, color_fix="wavelet", precision="fp32", per_image=GROUP)
    return outputs.clamp(0, 1), hr[None].expand(GROUP, -1, -1, -1).to(outputs)


def provide(name: str, folder: Path) -> str:
    """`published` if the metric's files are there; otherwise random ones are written and used from
    now on: `random`.
    """
    if not missing([name]):
        return "random" if os.environ.get("TORCH_HOME") == str(folder) else "published"
    weights.write_all(folder / "hub")
    os.environ["TORCH_HOME"] = str(folder)
    return "random"


def compare(name: str, groups: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """What bf16 changes, over all groups."""
    plain, low = (scored(name, groups, precision) for precision in ("fp32", "bf16"))
    other = plain.argsort(1, kind="stable") != low.argsort(1, kind="stable")
    plain, low = (value - value.mean(1, keepdims=True) for value in (plain, low))
    return {
        "order_changed": share(other.any(1)),
        "best_changed": share(other[:, -1]),
        "worst_changed": share(other[:, 0]),
        "error_in_spreads": round(float(np.sqrt((low - plain).var() / plain.var())), 3),
    }


def scored(
    name: str, groups: list[tuple[torch.Tensor, torch.Tensor]], precision: Any
) -> np.ndarray:
    """Scores (groups, G), turned so that higher is better."""
    with autocast(precision, device().type):
        values = [score([name], image, reference)[name] for image, reference in groups]
    return (1 if METRICS[name].higher_is_better else -1) * torch.stack(values).cpu().numpy()


def share(changed: np.ndarray) -> float:
    """Of the groups, rounded."""
    return round(float(changed.mean()), 3)


if __name__ == "__main__":
    raise SystemExit(main())
