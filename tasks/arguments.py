"""The options that several commands share."""

import argparse
from pathlib import Path

# The bucket that a new Prefect server is set up with (flows/setup.py), and that tools use.
DEFAULT_STORE = "s3://gdpo-sr"


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store: the bucket of published runs and promoted models."""
    parser.add_argument(
        "--store", default=DEFAULT_STORE, metavar="URL", help=f"default: {DEFAULT_STORE}"
    )


def add_params(parser: argparse.ArgumentParser) -> None:
    """--params, --profile and --set: the arguments of `tasks.params.load`."""
    parser.add_argument(
        "--params", type=Path, default="params.yaml", metavar="FILE", help="default: params.yaml"
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="override the parameters by profiles/NAME.yaml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, as YAML",
    )


def port(text: str) -> int:
    """An argument type: a port that a page can be served at; 0: any that is free."""
    if text.isascii() and text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
