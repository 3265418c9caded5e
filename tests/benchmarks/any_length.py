"""Measure the time of a step in short and long sequences.

``python -m tests.benchmarks.any_length`` prints microseconds per step for T from 100 to 1,000,000 and three
layers, on one thread. The number is the minimum over several rounds of the CPU time in the process. Every
round runs a million steps, in as many calls as needed, because other processes slow long rounds more. The
second number is the CPU time of the system per step, minimum and maximum over the rounds. The system provides
the memory of y, and this time depends on the memory that is available.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import xplstm

LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
LAYERS = {"H=32, B=1": (1, 16, 32), "H=128, B=1": (1, 64, 128), "H=32, B=8": (8, 16, 32)}
ROUNDS = 3
STEPS = 1_000_000


class Times(NamedTuple):
    """Microseconds per step: in the process, and the minimum and maximum in the system."""

    process: float
    least: float
    most: float


def _spent() -> np.ndarray:
    """Return the CPU seconds so far: of the process, and of the system for the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.asarray([usage.ru_utime, usage.ru_stime])


def _rounds(call: Callable[[], object], T: int) -> np.ndarray:
    """Return microseconds per step in each round, (rounds, 2)."""
    calls, found = max(1, STEPS // T), []
    for _ in range(ROUNDS):
        start = _spent()
        for _ in range(calls):
            call()
        found.append((_spent() - start) / calls / T)
    return 1e6 * np.asarray(found)


def measure(T: int, B: int, I: int, H: int) -> Times:
    """Return the times of a step."""
    frozen = xplstm.LSTM(I, H, rng=0).freeze()
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    process, system = _rounds(lambda: frozen(x), T).T
    return Times(float(process.min()), float(system.min()), float(system.max()))


def main() -> int:
    """Print a row for each length."""
    print("T".rjust(9), *(f"{name:>12}     system" for name in LAYERS))
    with xplstm.use_threads(1):
        for T in LENGTHS:
            times = (measure(T, *sizes) for sizes in LAYERS.values())
            print(f"{T:9,}", *(f"{t.process:12.2f} {t.least:4.2f}-{t.most:.2f} " for t in times), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
