"""Export a model for diffusers or the released code: `gdpo-sr export models/gdpo -o out`."""

import argparse
import sys
from pathlib import Path

EXAMPLE = "gdpo-sr export models/gdpo -o exported --format merged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model folder, where the copy goes, and its format."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model folder, e.g. models/gdpo"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not be there yet"
    )
    parser.add_argument(
        *("--format",),
        choices=["merged", "lora"],
        default="merged",
        help="merged (default): a diffusers folder; lora: the last adapter set alone, to load on "
        "the merged model before it",
    )


def main(args: argparse.Namespace) -> int:
    """Merge or convert, and write; 0, or ValueError naming the file."""
    if not args.model.is_dir():
        raise ValueError(f"{args.model}: no such model folder")
    from gdpo.released.convert import LORA_FILE, export_lora, export_merged

    if args.format == "lora":
        export_lora(args.model, args.output)
        line = f"{args.output / LORA_FILE}: belongs on the UNet of the model before it, merged"
    else:
        export_merged(args.model, args.output)
        line = (
            f"{args.output}: unet/ and vae/ merged in fp32, with the text encoder, tokenizer "
            "and scheduler of the base"
        )
    sys.stdout.write(f"{line}\n")
    return 0
