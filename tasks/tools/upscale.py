"""Tool `upscale`: super-resolves photographs, `gdpo-sr upscale photo.jpg`.

    gdpo-sr upscale photo.jpg                      photo_x4.png beside it
    gdpo-sr upscale holiday/ -o large --format webp
    gdpo-sr upscale face.png --best-of 4           four noises; the result with the best NIQE

Results are tagged sRGB; EXIF, resolution and transparency are kept. A photograph that cannot be
read is named and the others are done; the exit code is then 1. Before a result of more than 32
megapixels is begun, its memory and time are stated.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdpo.errors import one_line, shown
from gdpo.metrics.table import METRICS
from tasks.paths import GDPO

EXAMPLE = "gdpo-sr upscale photo.jpg -o out.png"
KINDS = ("png", "jpg", "webp", "tif", "avif", "heic")
JUDGES = [
    name for name, metric in METRICS.items() if not metric.needs_reference and not metric.per_set
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photographs, where results go, their size, the model and its options."""
    add = parser.add_argument
    add(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="files, folders (with all their subfolders) or quoted patterns",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="a file for one photograph, else a folder; default: beside each photograph, as "
        "NAME_x4.png",
    )
    add("--suffix", metavar="TEXT", help="appended to the name; default: none with -o FOLDER")
    add("--format", choices=KINDS, default="png", help="of names made here; default: png")
    add("--bits", type=int, choices=[8, 16], default=8, help="16 for .png and .tif; default: 8")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--skip-existing", action="store_true", help="keep results that already exist"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="overwrite results that already exist"
    )
    add(
        "--scale",
        type=_positive,
        default=4.0,
        metavar="X",
        help="default: 4, the scale of the training",
    )
    add("--width", type=_whole(1, None), metavar="PX", help="of the result, instead of --scale")
    add(
        "--height",
        type=_whole(1, None),
        metavar="PX",
        help="of the result; with --width: fits into both",
    )
    _add_model_arguments(parser)
    add("--json", action="store_true", help="print one line of JSON for each result")
    add(
        "--explain",
        action="store_true",
        help="print the chain of thought of a RealSR-R1 model; of others the prompt",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        metavar="FOLDER",
        help=f"default: {GDPO} of this folder, which `make demo` trains, else the small model that "
        "ships; tiny-vlcot: the small RealSR-R1 that ships",
    )
    add("--base", type=Path, metavar="FOLDER", help="replaces the base that model.json names")
    add("--device", choices=["cpu", "cuda", "mps"], help="default: cuda if there is one, else cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--seed", type=_whole(0, None), default=0, metavar="N", help="of the noise; default: 0")
    add(
        "--best-of",
        type=_whole(1, 64),
        default=1,
        metavar="N",
        help="try N seeds from --seed on, keep the best by --by",
    )
    add(
        "--by",
        choices=JUDGES,
        default="niqe",
        metavar="METRIC",
        help=f"metric that chooses: {', '.join(JUDGES)}; default: niqe",
    )
    add(
        "--t-add",
        type=_whole(0, 999),
        metavar="T",
        help="timestep at which noise is added: less keeps closer to the photograph; default: the "
        "model's (250)",
    )
    add(
        "--color-fix",
        choices=["none", "adain", "wavelet"],
        default="wavelet",
        help="default: wavelet",
    )
    add(
        "--tile",
        type=_whole(1, None),
        default=512,
        metavar="PX",
        help="greatest side of a tile in output pixels: less needs less memory, beside the 12 "
        "bytes that each pixel of the result takes, and gives slightly other pixels; default: 512",
    )
    add(
        "--prompt",
        default="",
        metavar="WORDS",
        help='what is in the photograph: "a lighthouse, rocks"',
    )
    add(
        "--tagger",
        type=Path,
        metavar="FOLDER",
        help="let RAM with DAPE say what is in it; the folder is made by `gdpo-sr "
        "import-weights`; default: no tags",
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


def _positive(text: str) -> float:
    """An argument type: a number above 0."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError("must be a number above 0")


def main(args: argparse.Namespace) -> int:
    """Upscale every photograph; 0, or 1 if one failed. ValueError if the arguments are wrong."""
    from tasks.tools.upscale_jobs import check, jobs
    from tasks.tools.upscale_work import Upscaling

    work = jobs(args.photos, args.output, args.suffix, f".{args.format}", f"_x{args.scale:g}")
    if args.best_of > 1:
        from gdpo.metrics.score import check_available

        check_available([args.by])
    with _Failures(len(work)) as failures:
        ready = []
        for job in work:
            with failures.of_one():
                check(
                    job,
                    overwrite=args.overwrite,
                    skip=args.skip_existing,
                    deep=args.bits == 16,
                )
                ready.append(job)
        todo = [job for job in ready if not (args.skip_existing and job.output.exists())]
        for job in ready:
            if job not in todo:
                _tell(args, {"output": str(job.output), "skipped": True})
        upscaling = Upscaling.of(args) if todo else None
        for number, job in enumerate(todo, 1):
            assert upscaling is not None
            with (
                failures.of_one(),
                _bar(f"{shown(job.photo.name)} ({number}/{len(todo)})") as on_tile,
            ):
                _tell(args, upscaling.run(job, on_tile))
    return 0


@dataclass
class _Failures:
    """A photograph's failure is reported; the others go on, unless it is the only one."""

    total: int
    count: int = 0

    @contextmanager
    def of_one(self) -> Iterator[None]:
        """The work on one photograph."""
        try:
            yield
        except (ValueError, OSError) as error:
            if self.total == 1:
                raise
            self.count += 1
            sys.stderr.write(f"gdpo-sr: {shown(one_line(error))}\n")

    def __enter__(self) -> "_Failures":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.count and kind is None:
            raise ValueError(f"{self.count} of {self.total} photographs failed")


def _tell(args: argparse.Namespace, result: dict[str, Any]) -> None:
    line = json.dumps(result) if args.json else _line(result)
    if args.explain and not args.json and "skipped" not in result:
        line = "\n  ".join(
            [line, *result.get("chain", f"prompt: {result.get('prompt')}").splitlines()]
        )
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _line(result: dict[str, Any]) -> str:
    if "skipped" in result:
        return f"{shown(result['output'])}: already exists"
    width, height = result["size"]
    notes = [f"{name}: {result[name]}" for name in ("seed", "note") if name in result]
    notes += [f"prompt: {result['prompt']}"] if result["tagged"] else []
    took = f"{shown(result['output'])}: {width}x{height} in {result['seconds']} s"
    return "; ".join([took, *notes])


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields what is called after each tile with (done, total)."""
    from tqdm import tqdm

    # Three passes go over the tiles, of unequal cost: a share tells more than a count.
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    with tqdm(desc=name, total=1, bar_format=form, disable=None, leave=False) as bar:

        def passed(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        yield passed
