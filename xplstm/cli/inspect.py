"""``python -m xplstm inspect FILE``: print the networks and arrays of a weight file."""

from __future__ import annotations

import argparse

from xplstm import io


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the path."""
    parser.add_argument("file", help="a weight file, or the index of a model in several files")


def run(args: argparse.Namespace) -> int:
    """Print the table of `xplstm.io.inspect`."""
    print(io.inspect(args.file))
    return 0
