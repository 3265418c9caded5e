"""Measure a call on two threads while other processes use the processors, compared with ONNX Runtime.

``python -m tests.benchmarks.under_load`` prints, for each shape, milliseconds of a call on a quiet machine
and with four busy processes, and their ratio. Rounds with and without the load alternate in one run, after a
check that the results are equal.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from xplstm.cli.engines import Engine, calls_of, difference, in_turns
from xplstm.cli.peers import Shape

SHAPES = (Shape(100, 1, 256, 256), Shape(100, 8, 64, 128), Shape(50, 1, 1024, 1024))
NAMES = ("native", "onnxruntime")
BUSY, THREADS, ROUNDS, TURN = 4, 2, 5, 0.4


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` busy processes."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(engines: list[Engine], shape: Shape, rounds: int) -> dict[tuple[str, bool], list[float]]:
    """Return the seconds of a call by engine and by load, one number per round."""
    for engine in engines:
        engine.build(shape)
    first, second = (engine.result("forward") for engine in engines)
    assert difference(first, second, least=1.0) < 1e-4
    calls = {engine: calls_of(engine.time("forward", 1), TURN, 1000) for engine in engines}
    found: dict[tuple[str, bool], list[float]] = {
        (e.name, loaded): [] for e in engines for loaded in (False, True)
    }
    for _ in range(rounds):
        for loaded in (False, True):
            with busy(BUSY if loaded else 0):
                for engine in in_turns(lambda: engines, 2):
                    found[engine.name, loaded].append(engine.time("forward", calls[engine]))
    return found


def main() -> None:
    """Print a row for each engine and shape."""
    processors = len(os.sched_getaffinity(0))
    print(f"{THREADS} threads, {BUSY} busy processes, {processors} processors, ms a call, medians")
    print(f"{'T, B, I, H':>20} {'engine':>12} {'quiet':>8} {'loaded':>8} {'loaded/quiet':>12}")
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(Engine(name, THREADS)) for name in NAMES]
        for shape in SHAPES:
            found = measure(engines, shape, ROUNDS)
            for name in NAMES:
                quiet, loaded = (1e3 * statistics.median(found[name, state]) for state in (False, True))
                sizes = ", ".join(map(str, shape[:4]))
                print(f"{sizes:>20} {name:>12} {quiet:8.2f} {loaded:8.2f} {loaded / quiet:12.2f}")


if __name__ == "__main__":
    main()
