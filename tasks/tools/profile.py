"""Tool `profile`: writes the values of a profile into params.yaml, which DVC reads.

gdpo-sr profile paper && dvc repro
"""

import argparse
from pathlib import Path

from tasks import params

EXAMPLE = "gdpo-sr profile paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The name of the profile."""
    parser.add_argument("name", metavar="NAME", help="a file of profiles/, without .yaml")
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="default: params.yaml",
    )


def main(args: argparse.Namespace) -> int:
    """Rewrite the file, keeping its comments, and print how to undo the change."""
    new = not args.params.exists()
    source = params.apply_profile(args.params, args.name)
    back = f"rm {args.params}" if new else f"git checkout {args.params}"
    print(f"{args.params} now holds profiles/{source.name}; back: {back}")
    return 0
