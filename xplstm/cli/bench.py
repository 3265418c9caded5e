"""``python -m xplstm bench``: compare the kernels with installed peers in one interleaved run."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xplstm import ArgumentError, XplstmError, _values
from xplstm.cli import results
from xplstm.cli.engines import Engine, calls_of, difference, in_turns
from xplstm.cli.peers import (
    ALLOWED,
    EQUAL,
    PEERS,
    Shape,
    available,
    available_arrays,
    available_choices,
    available_precisions,
    available_variants,
    engine_names,
    option_of,
)

FORWARD = tuple(
    Shape.parse(shape)
    for shape in (
        *("100,1,3,8", "100,1,16,32", "100,1,64,128", "100,1,256,256", "100,1,512,512", "50,1,1024,1024"),
        *("100,8,64,128", "100,32,128,128", "100,32,256,256", "50,32,512,512", "50,64,512,512"),
        *("25,64,1024,1024", "20,256,512,512"),
    )
)
TRAIN = (FORWARD[2], *FORWARD[6:12])
STEP = (Shape(1, 1, 3, 8), Shape(1, 1, 32, 32), Shape(1, 1, 64, 64), Shape(1, 1, 128, 128))

# Few units and large batches, for which `native` uses few vector lanes.
TINY = (Shape(50, 1000, 1, 1), Shape(10, 10000, 2, 2), Shape(50, 1000, 3, 3), Shape(10, 10000, 4, 4))

THREADS = (1, 2)
ROUNDS = 15
# Largest number of bytes of one layer with its residuals, in each engine.
MOST_BYTES = 4 * 2**30
# Seconds and largest number of calls of an engine's turn.
TURN, MOST_CALLS = 0.03, 100_000


class UnequalError(XplstmError, AssertionError):
    """Two engines returned different results, so that their times cannot be compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: shapes, threads, rounds and files."""
    add_shape(parser)
    threads_help = "numbers of threads for every engine, separated by commas (default 1,2)"
    parser.add_argument("--threads", type=_counts, default=THREADS, metavar="N,...", help=threads_help)
    variants_help = "compare LSTM options and other cells with the standard LSTM and with peers"
    precisions_help = "compare bfloat16 and int8 weights with float32 and with peers"
    choices_help = "compare the automatic choice with every kernel and partition, and print the regret"
    arrays_help = "compare the kernel on PyTorch and JAX arrays with the LSTMs of both libraries"
    group = parser.add_mutually_exclusive_group()
    for name, engines, text in (
        ("--variants", available_variants, variants_help),
        ("--precisions", available_precisions, precisions_help),
        ("--arrays", available_arrays, arrays_help),
        ("--choices", available_choices, choices_help),
    ):
        group.add_argument(name, dest="compared", action="store_const", const=engines, help=text)
    add_engines(group, engine_names)
    add_output(parser, ROUNDS)


def add_engines(parser: Any, known: Callable[[], Sequence[str]]) -> None:
    """Add the option ``--engines`` with the names from `known`."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known()]
        if unknown:
            msg = f"engine {unknown[0]!r} is unknown, expected one of {', '.join(known())}"
            raise argparse.ArgumentTypeError(msg)
        return names

    parser.add_argument(
        "--engines", type=parse, metavar="NAME,...", help="engines to run, separated by commas"
    )


def add_shape(parser: Any) -> None:
    """Add the option ``--shape``."""
    shape_help = "shape to time instead of the default ones; T = 1 is a streaming step; may be repeated"
    parser.add_argument("--shape", action="append", type=_shape, metavar="T,B,I,H", help=shape_help)


def add_output(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options ``--repeats`` (`rounds` by default), ``--json`` and ``--plot``."""
    rounds_help = f"number of rounds, with one turn of each engine (default {rounds})"
    parser.add_argument("--repeats", type=_positive, default=rounds, metavar="N", help=rounds_help)
    parser.add_argument("--json", type=_file, metavar="FILE", help="also write all measurements")
    parser.add_argument("--plot", type=_file, metavar="FILE", help="also draw the ratios; needs matplotlib")


def _positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} must be an integer of at least 1"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _file(text: str) -> Path:
    """Parse the path of a file to write, and check before any measurement that it can be written."""
    file = Path(text)
    if not file.parent.is_dir():
        msg = f"{text!r} cannot be written: the folder {str(file.parent)!r} does not exist; create it first"
        raise argparse.ArgumentTypeError(msg)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        msg = f"{text!r} cannot be written: {'it is a folder' if file.is_dir() else 'permission denied'}"
        raise argparse.ArgumentTypeError(msg)
    return file


def _counts(text: str) -> tuple[int, ...]:
    """Parse positive integers, separated by commas."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        msg = f"{text!r} must be positive integers, separated by commas"
        raise argparse.ArgumentTypeError(msg)
    return numbers


def _shape(text: str) -> Shape:
    """Parse four positive integers, separated by commas."""
    numbers = [int(part) for part in text.split(",")]
    if len(numbers) != 4 or min(numbers) < 1:
        msg = f"{text!r} must be four positive integers T,B,I,H"
        raise argparse.ArgumentTypeError(msg)
    return Shape(*numbers)


def _check_size(shapes: list[Shape] | None) -> None:
    """Check, before an engine is built, that the shapes fit into memory."""
    for T, B, I, H in shapes or []:
        most = _values.LARGEST
        numbers = T * B * (I + 6 * H) + 4 * H * (I + H)
        if max(T, B, I, H) > most or 4 * numbers > MOST_BYTES:
            shown = f"{4 * numbers / 2**30:.3g} GiB" if numbers < 2**200 else "an absurd amount of memory"
            msg = f"shape={T},{B},{I},{H} needs about {shown} an engine, more than {MOST_BYTES // 2**30} GiB"
            raise ArgumentError(msg)


def _cases(shapes: list[Shape] | None, choices: bool) -> list[tuple[str, Shape]]:
    """List the measurements of each shape."""
    if not shapes:
        groups: dict[str, tuple[Shape, ...]] = {"forward": FORWARD, "train": TRAIN, "step": STEP}
        if choices:
            groups = {"forward": (*FORWARD, *TINY), "train": (*TRAIN, *TINY)}
        return [(what, shape) for what, group in groups.items() for shape in group]
    steps = [("step", s) for s in shapes if s.T == 1]
    return [(w, s) for w in ("forward", "train") for s in shapes if s.T > 1] + steps


def run(args: argparse.Namespace) -> int:
    """Measure, print a table for each operation and number of threads, and write the files."""
    if args.plot:
        results.check_plot(args.plot)
    _check_size(args.shape)
    missing = [name for name in args.engines or () if name.partition("+")[0] not in available()]
    if missing:
        msg = f"engine {missing[0]!r} is not installed here, expected one of {', '.join(available())}"
        raise ArgumentError(msg)
    names = args.engines or (args.compared or available)()
    report = measure(
        names, _cases(args.shape, args.compared is available_choices), args.threads, args.repeats
    )
    print(report.text(results.pairs))
    if args.compared is available_choices:
        print("\n" + results.regrets(report.rows))
    if args.json:
        report.save(args.json)
    if args.plot:
        results.draw(report.rows, args.plot, results.pairs)
    return 0


def measure(
    names: list[str], cases: list[tuple[str, Shape]], threads: tuple[int, ...], rounds: int
) -> results.Report:
    """Time every engine at every case on each number of threads, after a check that results are equal."""
    rows: list[results.Row] = []
    with ExitStack() as stack:
        # Suspended processes must not outlive this process.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)))
        engines = [stack.enter_context(Engine(name, n)) for n in threads for name in names]
        peaks = dict.fromkeys(threads, 0.0)
        measures = [engine for engine in engines if engine.name in (names[0], "torch")]
        advance = stack.enter_context(_bar(len(cases) * len(threads) * rounds))
        for what, shape in cases:
            # Measured at every shape, since other work on the machine lowers the peak.
            for engine in measures:
                peaks[engine.threads] = max(peaks[engine.threads], engine.product())
            trains = [engine.build(shape) for engine in engines]
            able = [e for e, train in zip(engines, trains, strict=True) if train or what != "train"]
            if len({engine.name for engine in able}) < min(2, len(names)):
                continue
            _check_equal(able, what, shape)
            # Measured separately, since the system migrates other work when the number of busy processors
            # changes, which would slow the first engine after the change.
            for n in threads:
                group = [engine for engine in able if engine.threads == n]
                times = _interleave(group, what, shape, rounds, advance)
                rows += [results.Row(shape, _setting(n), what, name, found) for name, found in times.items()]
    return results.Report(_describe(rounds, peaks), rows)


def _setting(threads: int) -> str:
    """Return a number of threads in words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def _describe(rounds: int, peaks: dict[int, float]) -> dict[str, Any]:
    """Return the data that is needed to repeat and interpret the measurements."""
    needed = (package for peer in PEERS.values() for package in peer.needs)
    return {
        **results.describe_run("python", "-m", "xplstm"),
        "processor": results.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": results.versions(["xplstm", "numpy", *needed]),
        "rounds": rounds,
        "unit": "microseconds per step, float32, one layer of one direction, results checked equal first",
        "tables": "medians; x/peer: time of the peer divided by ours, same option; above 1, ours is faster",
        # Of the fastest large matrix product.
        results.PEAKS: {_setting(n): float(f"{peak:.4g}") for n, peak in peaks.items()},
    }


@contextmanager
def _bar(rounds: int) -> Iterator[Callable[[], object]]:
    """Yield the function that advances the progress bar; without a terminal or tqdm there is no bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=rounds, unit="round", file=sys.stderr, disable=None, dynamic_ncols=True) as bar:
        yield bar.update


def _check_equal(engines: list[Engine], what: str, shape: Shape) -> None:
    """Check that the results of all engines agree within the tolerance of their options and precisions."""
    first: dict[str, tuple[str, np.ndarray]] = {}
    for engine in engines:
        option, result = option_of(engine.name), engine.result(what)
        # Low precisions are compared with float32, and other options with each other.
        name, reference = first.setdefault("" if option in ALLOWED else option, (engine.name, result))
        worst = difference(result, reference, least=1.0)
        if not worst <= ALLOWED.get(option, EQUAL):
            msg = f"{what} at {shape}: results of {engine.name} and {name} differ by {worst:.1e}"
            raise UnequalError(msg)


def _interleave(
    engines: list[Engine], what: str, shape: Shape, rounds: int, advance: Callable[[], object]
) -> dict[str, list[float]]:
    """Return microseconds per step for each engine, one number for each round."""
    calls = {engine: calls_of(engine.time(what, 1), TURN, MOST_CALLS) for engine in engines}
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for n, engine in enumerate(in_turns(lambda: engines, rounds), 1):
        times[engine.name].append(engine.time(what, calls[engine]) / shape.T * 1e6)
        if n % len(engines) == 0:
            advance()
    return times
