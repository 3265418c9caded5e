"""``python -m xplstm info | inspect | example | demo | generate | bench | prove``."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys

import xplstm

COMMANDS = {
    "info": "versions, backends, devices and kernels",
    "inspect": "the networks and arrays of a file of weights",
    "example": "the documents' worked example, gate by gate",
    "demo": "train a character model on real text",
    "generate": "write text with a character model that the demo trained",
    "bench": "compare the kernels with the installed peers",
    "prove": "test CuPy's kernels on this GPU, so that those that pass are chosen",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its module in `xplstm.cli` is imported only then."""
    parser = argparse.ArgumentParser(prog="python -m xplstm", description="An LSTM for any array library.")
    parser.add_argument("--version", action="version", version=f"xplstm {xplstm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:
            importlib.import_module(f"xplstm.cli.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    _show_what_the_encoding_lacks()
    try:
        code = int(importlib.import_module(f"xplstm.cli.{args.command}").run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has what it wanted, as `head` does; nothing more can be said to it.
        _discard_output()
        return 141
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except xplstm.XplstmError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        _discard_output()
        return 1
    return code


def _show_what_the_encoding_lacks() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Send what standard output still holds nowhere, so that the interpreter's exit does not fail on it."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
