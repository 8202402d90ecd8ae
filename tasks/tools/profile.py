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
        "--params", type=Path, default="params.yaml", metavar="FILE", help="default: params.yaml"
    )


def main(args: argparse.Namespace) -> int:
    """Rewrite the file, keeping its comments, and print how to undo the change."""
    source = params.apply_profile(args.params, args.name)
    print(f"{args.params} now holds profiles/{source.name}; back: git checkout {args.params}")
    return 0
