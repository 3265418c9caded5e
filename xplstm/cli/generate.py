"""``python -m xplstm generate``: write text with a saved character model."""

from __future__ import annotations

import argparse

from xplstm import _values
from xplstm.models import CharLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    default = "default: %(default)s"
    parser.add_argument("file", metavar="FILE", help="a checkpoint of the demo, or a file of CharLM.save")
    parser.add_argument("--prompt", default="The ", help=f"text to continue; {default}")
    parser.add_argument("--length", type=int, default=600, help=f"characters to generate; {default}")
    parser.add_argument(
        "--temperature", type=float, default=0.6, help=f"0 selects the most probable character; {default}"
    )
    parser.add_argument("--seed", type=int, default=0, help=default)


def run(args: argparse.Namespace) -> int:
    """Load the model, and print the prompt with its continuation."""
    _values.seed("seed", args.seed)
    model = CharLM.load(args.file)
    text = model.generate(args.prompt, args.length, temperature=args.temperature, rng=args.seed)
    print(args.prompt + text)
    return 0
