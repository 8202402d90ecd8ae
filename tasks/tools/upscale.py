"""Tool `upscale`: super-resolves one photograph, `gdpo-sr upscale photo.jpg -o out.png`."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tqdm import tqdm

EXAMPLE = "gdpo-sr upscale photo.jpg -o out.png"
# Extension -> how Pillow saves it.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photograph, the output file, and the options."""
    parser.add_argument("photo", type=Path, metavar="PHOTO", help="any common kind of image file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"one of {', '.join(FORMATS)}",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("models/gdpo"),
        metavar="FOLDER",
        help="default: models/gdpo, from `make demo`",
    )
    parser.add_argument(
        "--scale", type=float, default=4.0, metavar="X", help="default: 4, which the models learn"
    )
    parser.add_argument(
        "--seed", type=_whole(0, None), default=0, metavar="N", help="of the noise; default: 0"
    )
    parser.add_argument(
        *("--t-add",),
        type=_whole(0, 999),
        default=None,
        metavar="T",
        help="timestep at which noise is added: less keeps closer to the photograph; default: the "
        "model's (250)",
    )
    parser.add_argument(
        "--color-fix",
        choices=["none", "adain", "wavelet"],
        default="wavelet",
        help="default: wavelet",
    )
    parser.add_argument(
        *("--tile",),
        type=_whole(1, None),
        default=512,
        metavar="PX",
        help="side of a tile in output pixels: less needs less memory; default: 512",
    )
    parser.add_argument(
        "--prompt",
        default="",
        metavar="WORDS",
        help='what is in the photograph: "a lighthouse, rocks"',
    )
    parser.add_argument(
        *("--tagger",),
        type=Path,
        default=None,
        metavar="FOLDER",
        help="let RAM with DAPE say what is in it; the folder is made by `gdpo-sr "
        "import-weights`; default: no tags",
    )
    parser.add_argument(
        "--json", action="store_true", help="print output, size, prompt and seconds as JSON"
    )


def _whole(low: int, high: int | None) -> Callable[[str], int]:
    """An argument type: a whole number from `low` to `high`."""

    def number(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low} {f'to {high}' if high else 'up'}"
            )
        return value

    number.__name__ = "whole number"  # what argparse calls the type when int() fails
    return number


def main(args: argparse.Namespace) -> int:
    """Read, upscale, write; 0, or ValueError naming the file or argument that is wrong."""
    _check_paths(args)
    import torch
    from tqdm import tqdm

    from gdpo.images import read_photo
    from gdpo.model.naosd import NAOSD
    from gdpo.tagger.tagger import Tagger
    from gdpo.upscale.pipeline import upscale

    photo = read_photo(args.photo)
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tagger = (
        None if args.tagger is None else Tagger.from_folder(args.tagger, dape=True, device=device)
    )
    model = NAOSD.from_pretrained(args.model, device=device)
    prompts: list[str] = []
    with tqdm(desc="upscale", unit="tile", disable=None) as bar:  # only on a terminal
        image = upscale(
            model,
            photo,
            scale=args.scale,
            seed=args.seed,
            t_add=args.t_add,
            color_fix=args.color_fix,
            tile=args.tile,
            tagger=tagger,
            words=args.prompt,
            on_prompt=prompts.append,
            on_tile=lambda done, total: _advance(bar, total),
        )
    _write(args.output, image)
    height, width = image.shape[:2]
    seconds = round(time.perf_counter() - start, 3)
    result = {
        "output": str(args.output),
        "size": [width, height],
        "prompt": prompts[0],
        "seconds": seconds,
    }
    told = f"; prompt: {prompts[0]}" if tagger else ""
    line = (
        json.dumps(result) if args.json else f"{args.output}: {width}x{height} in {seconds} s{told}"
    )
    sys.stdout.write(f"{line}\n")
    return 0


def _advance(bar: "tqdm[NoReturn]", total: int) -> None:
    bar.total = total
    bar.update()


def _check_paths(args: argparse.Namespace) -> None:
    """Check the paths before the slow work begins. ValueError naming the wrong one."""
    if args.output.suffix.lower() not in FORMATS:
        raise ValueError(f"{args.output}: unknown extension; use one of {', '.join(FORMATS)}")
    if not args.photo.is_file():
        raise ValueError(f"{args.photo}: no such photograph")
    if args.output.exists() and args.output.samefile(args.photo):
        raise ValueError(f"{args.output}: is the photograph itself; choose another --output")
    if not args.model.is_dir():
        raise ValueError(
            f"{args.model}: no such model folder; run `make demo` first, or pass --model"
        )


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    """Write to a temporary file, then rename it."""
    from PIL import Image

    from gdpo.files import written_aside

    with written_aside(path) as part:
        Image.fromarray(image).save(part, **FORMATS[path.suffix.lower()])
