"""Tool `import-weights`: imports released weights. Files are checked and never unpickled as code.

    gdpo-sr import-weights NAOSD.pkl -o models/released --base models/sd2.1-base
    gdpo-sr import-weights ram_swin_large_14m.pth -o models/tagger --dape DAPE.pth

The second command makes the tagger: 5.6 GB -> 0.85 GB.
"""

import argparse
import sys
from pathlib import Path

from tasks import paths

STAGES_WRITE = [Path(paths.NAOSD), *(Path(paths.MODEL_DIR, run) for run in paths.FINETUNE_RUNS)]
EXAMPLE = "gdpo-sr import-weights model_35001.pkl -o models/released --base models/sd2.1-base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The released file or folder, the output folder, and the model to which the weights apply."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="a .pkl of NAOSD, GDPO-SR or OSEDiff (never unpickled as code), a merged folder with "
        "unet/ and vae/, "
        "or RAM's ram_swin_large_14m.pth",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet"
    )
    below = parser.add_mutually_exclusive_group()
    below.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the base model, in diffusers layout; for a GDPO-SR file the merged NAOSD; default: "
        "model.base of params.yaml",
    )
    below.add_argument(
        "--naosd",
        type=Path,
        metavar="FOLDER",
        help="for a GDPO-SR file: the model folder whose adapters come first",
    )

    tagger = parser.add_argument_group("of the tagger, with RAM's checkpoint")
    tagger.add_argument(
        "--dape",
        type=Path,
        metavar="FILE",
        help="DAPE.pth; without it only HR images can be tagged",
    )
    for name, file in (("tags", "ram_tag_list.txt"), ("thresholds", "ram_tag_list_threshold.txt")):
        tagger.add_argument(
            f"--{name}", type=Path, metavar="FILE", help=f"default: {file} beside the checkpoint"
        )


def main(args: argparse.Namespace) -> int:
    """Check and convert; 0, or ValueError naming the file and its problem."""
    from gdpo.released.tagger import import_tagger, kind

    file_kind = kind(args.source) if args.source.is_file() else None
    if file_kind == "dape":
        raise ValueError(
            f"{args.source}: is DAPE's; give it to --dape, with RAM's checkpoint as the source"
        )
    if file_kind == "ram":
        if args.base or args.naosd:
            raise ValueError(
                f"{args.source}: is RAM's, which belongs on no model; leave out --base and --naosd"
            )
        _tell(
            import_tagger(
                args.source, args.output, dape=args.dape, tags=args.tags, thresholds=args.thresholds
            )
        )
        sys.stdout.write(
            f"{args.output}: tagger made from "
            f"{args.source}{f' and {args.dape}' if args.dape else ''}\n"
        )
        return 0
    if args.dape or args.tags or args.thresholds:
        raise ValueError(
            f"{args.source}: is not RAM's checkpoint, to which --dape, --tags and --thresholds "
            "belong"
        )
    return _import_model(args)


def _import_model(args: argparse.Namespace) -> int:
    from tasks import params

    base = args.naosd or args.base or Path(params.load(Path("params.yaml")).model.base)
    from gdpo.model.card import NAME
    from gdpo.released.convert import import_released

    if args.naosd is not None and not (args.naosd / NAME).is_file():
        raise ValueError(
            f"{args.naosd / NAME}: no such file; a folder in diffusers layout goes to --base"
        )
    _tell(import_released(args.source, args.output, base))
    if Path("dvc.yaml").is_file() and args.output in STAGES_WRITE:
        _tell(
            (
                f"a stage of dvc.yaml writes {args.output}, and `dvc repro` will replace it: "
                "import to another folder and name that in pretrain.init (pretrain.steps: 0 takes "
                "it as it is)",
            )
        )
    sys.stdout.write(f"{args.output}: made from {args.source}, over {base}\n")
    return 0


def _tell(notes: tuple[str, ...]) -> None:
    for note in notes:
        sys.stderr.write(f"gdpo-sr: note: {note}\n")
