"""``python -m xplstm info | example | demo | bench``."""

from __future__ import annotations

import argparse
import importlib
import sys

from xplstm._errors import XplstmError

COMMANDS = {
    "info": "versions, backends, devices and kernels",
    "example": "the documents' worked example, gate by gate",
    "demo": "train a character model on real text",
    "bench": "time the kernels beside the peers that are installed",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its module in `xplstm.cli` is imported only then."""
    parser = argparse.ArgumentParser(prog="python -m xplstm", description="An LSTM for any array library.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:
            importlib.import_module(f"xplstm.cli.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(f"xplstm.cli.{args.command}").run(args))
    except XplstmError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
