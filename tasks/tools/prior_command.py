"""Tool `prior`: its arguments; the training is gdpo/prior/ by tasks/tools/prior.py."""

import argparse
from pathlib import Path

from tasks.tools.training_photos import KODAK, VALIDATION

EXAMPLE = "gdpo-sr prior photos/ -o assets/tiny-sd"
LEFT_OUT = (Path(VALIDATION), Path(KODAK))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `gdpo-sr prior`."""
    parser.add_argument(
        "photos", type=Path, help="a folder of photographs (its sub-folders are sets of their own)"
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="a tiny prior to continue from, of at most as many latent channels; without it the "
        "weights are random",
    )
    parser.add_argument(
        "--leave-out",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        default=LEFT_OUT,
        help="photographs here, or that show the same picture as one here, are not trained on "
        f"(default: {' '.join(map(str, LEFT_OUT))})",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("assets/tiny-sd"), help="default: assets/tiny-sd"
    )


def main(args: argparse.Namespace) -> int:
    """Train the missing parts and write the folder."""
    from tasks.tools.prior import run  # torch and the model classes: seconds

    run(args)
    return 0
