"""Export a model for diffusers, peft, transformers or the released code.

gdpo-sr export models/gdpo -o out
"""

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
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet"
    )
    parser.add_argument(
        "--format",
        choices=["merged", "lora"],
        default="merged",
        help="merged (default): a pipeline of diffusers, for a model of RealSR-R1 a folder of "
        "transformers; lora: the last adapters alone, to load on the merged model before it",
    )


def main(args: argparse.Namespace) -> int:
    """Merge or convert, and write; 0, or ValueError naming the file."""
    if not args.model.is_dir():
        raise ValueError(f"{args.model}: no such model folder")
    from gdpo.model.card import NAME, read_identity
    from gdpo.released.export import export_lora, export_merged

    if (args.model / NAME).is_file() and read_identity(args.model).kind == "vlcot":
        return _export_vlcot(args)
    if args.format == "lora":
        export_lora(args.model, args.output)
        line = (
            f"{args.output}: a LoRA for diffusers and peft; it belongs on the merged export of the "
            "model before it"
        )
    else:
        export_merged(args.model, args.output)
        line = (
            f"{args.output}: merged in fp32; "
            f"DiffusionPipeline.from_pretrained({str(args.output)!r}, trust_remote_code=True)"
        )
    sys.stdout.write(f"{line}\n")
    return 0


def _export_vlcot(args: argparse.Namespace) -> int:
    from gdpo.vlcot.export import export

    if args.format == "lora":
        raise ValueError(f"{args.model}: a model of kind vlcot has no adapters; leave --format out")
    export(args.model, args.output)
    sys.stdout.write(
        f"{args.output}: gdpo.vlcot.trunk.Trunk.from_pretrained({str(args.output)!r})\n"
    )
    return 0
