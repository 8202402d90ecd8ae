"""Take over released weights: `gdpo-sr import-weights NAOSD.pkl -o models/naosd --base models/sd21-base`."""

import argparse
import sys
from pathlib import Path

EXAMPLE = "gdpo-sr import-weights model_35001.pkl -o models/naosd --base models/sd21-base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The released file or folder, where ours goes, and what it belongs on."""
    parser.add_argument(
        "source", type=Path, metavar="FILE_OR_FOLDER",
        help="a .pkl of NAOSD, GDPO-SR or OSEDiff (never unpickled as code), or a merged folder with unet/ and vae/",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not be there yet")
    below = parser.add_mutually_exclusive_group()
    below.add_argument(
        "--base", type=Path, metavar="FOLDER",
        help="the base model, in diffusers layout; for a GDPO-SR file the merged NAOSD; default: model.base of params.yaml",
    )  # fmt: skip
    below.add_argument(
        "--naosd", type=Path, metavar="FOLDER", help="for a GDPO-SR file: the model folder whose adapters come first"
    )


def main(args: argparse.Namespace) -> int:
    """Check and write; 0, or ValueError naming the file and what is wrong in it."""
    from tasks import params

    base = args.naosd or args.base or Path(params.load(Path("params.yaml")).model.base)
    from gdpo.model.convert import import_released

    if args.naosd is not None and not (args.naosd / "model.json").is_file():
        raise ValueError(f"{args.naosd / 'model.json'}: no such file; a folder in diffusers layout goes to --base")
    for note in import_released(args.source, args.output, base):
        sys.stderr.write(f"gdpo-sr: note: {note}\n")
    sys.stdout.write(f"{args.output}: made from {args.source}, over {base}\n")
    return 0
