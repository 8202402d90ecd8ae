"""Ours in Table 4 of the paper: parameters, multiply-accumulates and the time of one 512 x 512
image.

    python -m benchmarks.inference --images 100        # on a GPU: bf16; on a CPU: fp32, a few
                                                       images are enough

SD2.1-base's size with random weights, which take the same time as trained ones, and the tiny model
that ships. Timed as in OSEDiff's script, whose figures the paper repeats: input already at full
size, batch 1, after warm-up, text encoder included, files and colour correction not. The tagger is
not timed (its part of the MACs is below a tenth). Parameters and MACs of SD2.1-base are counted
like the paper's, tagger included (`gdpo-sr cost`). Writes benchmarks/results/inference.json.
"""

import argparse
import json
import os
import platform
import sys
import time
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.record import REPO, RESULTS, commit
from gdpo.cost import architectures
from gdpo.files import written_aside
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import autocast
from gdpo.prior.architecture import tiny_tokenizer
from tasks.run.training import device
from tasks.tools.cost import inference

RESULT = RESULTS / "inference.json"
SIDE, WARM_UP = 512, 5


def main() -> int:
    """Measure both models, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3)
    args = parser.parse_args()
    tiny = REPO / "assets/tiny-sd"
    counted = inference(architectures.sd21(), SIDE)["published"]["ours_counted_the_same_way"]
    small = inference(architectures.from_folder(tiny), SIDE)["total"]
    rows = [
        row("SD2.1-base", counted["parameters"], counted["macs"], full_size(), args.images),
        row(
            "tiny-sd",
            small["parameters"],
            small["macs_without_attention"],
            NAOSD.from_base(tiny),
            args.images,
        ),
    ]
    content = {"results": rows, "machine": machine()}
    with written_aside(RESULT) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write("".join(f"{r['model']}: {r['seconds']:.3g} s, {r['note']}\n" for r in rows))
    return 0


def full_size() -> NAOSD:
    """SD2.1-base's networks as their libraries initialise them."""
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel(**architectures.UNET), AutoencoderKL(**architectures.VAE)
    text_encoder = CLIPTextModel(CLIPTextConfig(**architectures.TEXT))
    return NAOSD(unet, vae, text_encoder, tiny_tokenizer(), prompt="clean, high-resolution, 8k,")


def row(name: str, parameters: int, macs: int, model: NAOSD, images: int) -> dict[str, Any]:
    """One model's column of Table 4."""
    precision = "bf16" if device().type == "cuda" else "fp32"
    if name == "SD2.1-base":
        what = (
            "parameters and MACs with the tagger, counted as in the paper; time without it, "
            "random weights"
        )
    else:
        what = "no tagger, the weights that ship"
    note = f"{what}, {precision}, mean of {images} images on {where()}."
    return {
        "model": name,
        "parameters": parameters,
        "macs": macs,
        "seconds": seconds(model, images, precision),
        "note": note,
    }


@torch.no_grad()
def seconds(model: NAOSD, images: int, precision: Any) -> float:
    """Mean time of an image of SIDE x SIDE, prompt embedding included."""
    place = device()
    model = model.to(place, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    x = torch.rand(1, 3, SIDE, SIDE, device=place) * 2 - 1
    noise, posterior = torch.randn((2, 1, *model.latent_shape(SIDE, SIDE)), device=place)
    x, noise, posterior = (one.to(next(model.parameters()).dtype) for one in (x, noise, posterior))
    times = []
    for _ in range((WARM_UP if place.type == "cuda" else 1) + images):
        start = time.perf_counter()
        with autocast(precision, place.type):
            model(x, model.embed([model.prompt]), noise, posterior)
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sum(times[-images:]) / images


def where() -> str:
    """The device in words."""
    return (
        torch.cuda.get_device_name() if device().type == "cuda" else f"{os.cpu_count()} CPU cores"
    )


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "device": where(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
