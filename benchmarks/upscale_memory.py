"""Peak memory of `gdpo-sr upscale` over the size of the result, in megapixels.

    python -m benchmarks.upscale_memory [--write]
        [--megapixels 4 25 100] [--options wavelet adain 16bit]

Each result is made by a process of its own, whose greatest resident memory the kernel counts
(ru_maxrss). A model that only averages stands in for the network (`--real`: the small model that
ships), because what grows with the picture is around it: both have four latents of a quarter of the
picture's sides. The photograph is noise, the worst for PNG. Rows of other sizes that are in
benchmarks/results/upscale_memory.json stay; the table is upscale_memory.md beside it.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from benchmarks.record import REPO, RESULTS, record
from gdpo.images import write_png
from gdpo.model.schedule import add_noise
from gdpo.upscale import resolver
from tasks import __main__ as cli

SHIPPED = REPO / "assets/tiny-sd/naosd"
OPTIONS = {
    "wavelet": ["-o", "out.png"],
    "adain": ["-o", "out.png", "--color-fix", "adain"],
    "16bit": ["-o", "out.png", "--bits", "16"],
    "jpeg": ["-o", "out.jpg"],
}
NAME = "upscale_memory"


class StandIn(nn.Module):
    """NAOSD's methods and shapes for next to no work."""

    factor, multiple, prompt, t_add = 4, 32, "", 250

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of a picture."""
        return 4, height // 4, width // 4

    def embed(self, texts: list[str]) -> torch.Tensor:
        """No words."""
        return torch.zeros(1, 1, 1)

    def encode(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Means of 4 x 4 pixels."""
        small = functional.avg_pool2d(x, 4)
        return torch.cat([small, small[:, :1]], 1) + 0.01 * noise

    def inject(self, z: torch.Tensor, noise: torch.Tensor, t_add: int | None) -> torch.Tensor:
        """As NAOSD."""
        return add_noise(z, noise, self.t_add)

    def denoise(self, z: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Means of the neighbours."""
        return functional.avg_pool2d(z, 3, 1, 1, count_include_pad=False)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Each cell as 4 x 4 pixels."""
        return functional.interpolate(z[:, :3], scale_factor=4.0, mode="nearest").clamp(-1, 1)


def measured(megapixels: float, name: str, real: bool) -> dict[str, Any]:
    """One row: the result's size, peak memory in MB and seconds."""
    side = round((megapixels * 1e6) ** 0.5 / 4)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        write_png(Path(scratch) / "photo.png", pixels)
        command = ["upscale", "photo.png", *OPTIONS[name], "--model", str(SHIPPED)]
        process = os.fork()
        if process == 0:
            os.chdir(scratch)
            if not real:
                resolver.load_models = lambda folders, *_: dict.fromkeys(folders, StandIn)
            os._exit(cli.main(command))
        _, status, usage = os.wait4(process, 0)
        assert status == 0, (megapixels, name, status)
        with Image.open(next(Path(scratch).glob("out.*"))) as image:
            size = image.size
    return {
        "model": "tiny-sd" if real else "stand-in",
        "options": name,
        "width": size[0],
        "height": size[1],
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
    }


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    """What identifies a row."""
    return row["model"], row["options"], round(row["width"] * row["height"] / 1e6)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Memory of `gdpo-sr upscale`",
        "",
        "Greatest resident memory of the process on a CPU, tiles of 512 pixels, one thread; "
        "`python -m benchmarks.upscale_memory --write`.",
        "The stand-in averages; tiny-sd is the small model that ships. "
        "Both have four latents of a quarter of the picture's sides.",
        "",
        "| model | options | result | megapixels | peak memory, MB | processor time, s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['options']} | {row['width']}x{row['height']} | {key(row)[2]} "
        f"| {row['peak_mb']} | {row['cpu_seconds']} |"
        for row in sorted(rows, key=key)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[4, 25, 100])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=["wavelet"])
    parser.add_argument("--real", action="store_true", help="the small model that ships")
    parser.add_argument("--write", action="store_true", help="to benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = RESULTS / f"{NAME}.json"
    old = json.loads(place.read_text())["measured"]["rows"] if place.is_file() else []
    rows = {key(row): row for row in old}
    for megapixels in args.megapixels:
        for name in args.options:
            found = measured(megapixels, name, args.real)
            rows[key(found)] = found
            print(found, flush=True)
            if args.write:
                record(NAME, {"rows": list(rows.values())})
                (RESULTS / f"{NAME}.md").write_text(table(list(rows.values())))
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()
