"""``python -m xplstm info | inspect | example | demo | generate | bench | prove``."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys

import xplstm

COMMANDS = {
    "info": "show versions, backends, devices and kernels",
    "inspect": "list the networks and arrays in a weight file",
    "example": "print a worked example, gate by gate",
    "demo": "train a character model on real text",
    "generate": "write text with a character model that the demo trained",
    "bench": "compare the kernels with other installed libraries",
    "prove": "test the CuPy kernels on this GPU; automatic selection then uses the kernels that pass",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command, and import only its module of `xplstm.cli`."""
    parser = argparse.ArgumentParser(prog="python -m xplstm", description="An LSTM for any array library.")
    parser.add_argument("--version", action="version", version=f"xplstm {xplstm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:
            importlib.import_module(f"xplstm.cli.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    _escape_unencodable()
    try:
        code = int(importlib.import_module(f"xplstm.cli.{args.command}").run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does.
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


def _escape_unencodable() -> None:
    """Print an escape for each character that the terminal cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discard buffered output that cannot be written, so that the interpreter's exit does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
