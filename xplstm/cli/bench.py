"""``python -m xplstm bench``: our kernels beside the peers that are installed, in one interleaved run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from xplstm._errors import XplstmError
from xplstm.cli.engines import Engine, Shape, available

SHAPES = (
    Shape(1, 1, 64, 64),
    Shape(100, 1, 64, 128),
    Shape(100, 8, 64, 128),
    Shape(50, 32, 128, 128),
    Shape(50, 32, 256, 256),
    Shape(25, 32, 512, 512),
)

# Long enough for the thread pool of the engine before to fall asleep.
PAUSE = 0.05

# Seconds that an engine works when it is its turn.
TURN = 0.03


class UnequalError(XplstmError, AssertionError):
    """Two engines gave different numbers, so that their times cannot be compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the shapes, threads and repeats."""
    parser.add_argument(
        "--shape", action="append", type=_shape, metavar="T,B,I,H", help="time this shape; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every engine (default 2)")
    parser.add_argument(
        "--repeats", type=int, default=15, help="rounds, each engine once a round (default 15)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement")


def _shape(text: str) -> Shape:
    """Four numbers, separated by commas."""
    numbers = [int(part) for part in text.split(",")]
    if len(numbers) != 4 or min(numbers) < 1:
        msg = f"{text!r} must be four positive integers T,B,I,H"
        raise argparse.ArgumentTypeError(msg)
    return Shape(*numbers)


def run(args: argparse.Namespace) -> int:
    """Print a table for inference and one for training."""
    # Every engine reads these when it is imported, which is in a process that does not exist yet.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    names, shapes = available(), args.shape or SHAPES
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, float32, one layer")
    print(f"microseconds a step: median of {args.repeats} interleaved rounds, results checked equal first")
    print(
        "x/peer: the peer's time over that of our fastest kernel, median of the rounds; above 1 we are faster"
    )
    found: dict[str, dict[str, dict[str, list[float]]]] = {"forward": {}, "train": {}}
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(name, args.threads)) for name in names]
        for shape in shapes:
            trains = {engine.name: engine.build(shape) for engine in engines}
            for what in found:
                able = [engine for engine in engines if what == "forward" or trains[engine.name]]
                if able:
                    _check_equal(able, what, shape)
                    found[what][",".join(map(str, shape))] = _interleave(able, what, shape, args.repeats)
    for what, rows in found.items():
        _print_table(what, rows, names)
    if args.json:
        args.json.write_text(json.dumps(_report(args, found), indent=1) + "\n")
    return 0


def _check_equal(engines: list[Engine], what: str, shape: Shape) -> None:
    """Refuse to compare engines that do not compute the same."""
    reference = engines[0].result(what)
    scale = max(1.0, float(np.abs(reference).max()))
    for engine in engines[1:]:
        result = engine.result(what)
        worst = float(np.abs(result - reference).max()) if result.shape == reference.shape else float("inf")
        if not worst <= 1e-4 * scale:
            msg = f"{what} at {tuple(shape)}: {engine.name} and {engines[0].name} differ by {worst:.1e}"
            raise UnequalError(msg)


def _interleave(engines: list[Engine], what: str, shape: Shape, repeats: int) -> dict[str, list[float]]:
    """Microseconds a step by engine, one number a round."""
    calls = {engine.name: max(1, int(TURN / engine.time(what, 1))) for engine in engines}
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for turn in range(repeats):
        for engine in engines if turn % 2 else reversed(engines):
            time.sleep(PAUSE)
            times[engine.name].append(engine.time(what, calls[engine.name]) / shape.T * 1e6)
    return times


def _print_table(what: str, rows: dict[str, dict[str, list[float]]], names: list[str]) -> None:
    """One row a shape: each engine's median, then our fastest kernel against each other engine."""
    ours, others = names[0], [name for name in names[1:] if any(name in times for times in rows.values())]
    header = [*(f"{name:>14}" for name in (ours, *others)), *(f"{'x/' + name:>14}" for name in others)]
    print(f"\n{what}\n{'T,B,I,H':<18}{''.join(header)}")
    for shape, times in rows.items():
        cells = [
            f"{statistics.median(times[name]):14.1f}" if name in times else f"{'-':>14}"
            for name in (ours, *others)
        ]
        cells += [f"{_ratio(times, ours, name):14.2f}" if name in times else f"{'-':>14}" for name in others]
        print(f"{shape:<18}{''.join(cells)}")


def _ratio(times: dict[str, list[float]], ours: str, other: str) -> float:
    """Median over the rounds of the other's time over ours."""
    return statistics.median(b / a for a, b in zip(times[ours], times[other], strict=True))


def _report(args: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Measurements with what is needed to repeat them."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": args.threads,
        "repeats": args.repeats,
        "unit": "microseconds a step",
        "times": found,
    }
