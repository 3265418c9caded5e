"""``python -m xplstm info``: print installed libraries, backends and kernels."""

from __future__ import annotations

import argparse

from xplstm import show_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 - there are none
    """Print the configuration."""
    show_config()
    return 0
