"""Measure the cost of a step for short and long sequences.

``python -m tests.benchmarks.any_length`` prints microseconds of a step for T from 100 to 1,000,000 and
three layers, on one thread: the least processor time of several rounds. Every round runs a million steps, in
as many calls as it takes, because other work on the machine slows long rounds more. Next to it is the time in
which NumPy fills a new array as large as y, which the system has to provide.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

import xplstm

LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
LAYERS = {"H=32, B=1": (1, 16, 32), "H=128, B=1": (1, 64, 128), "H=32, B=8": (8, 16, 32)}
ROUNDS = 3
STEPS = 1_000_000


def least(call: Callable[[], object], T: int, rounds: int, steps: int) -> float:
    """Return the least microseconds of processor time of a step of a call."""
    calls, found = max(1, steps // T), float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            call()
        found = min(found, (time.process_time() - start) / calls / T)
    return 1e6 * found


def measure(T: int, B: int, I: int, H: int, rounds: int = ROUNDS, steps: int = STEPS) -> tuple[float, float]:
    """Return microseconds of a step, and of its part of a new array that is filled."""
    frozen = xplstm.LSTM(I, H, rng=0).freeze()
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)

    def fill() -> object:
        return np.full((T, B, H), 1.0, np.float32)

    return least(lambda: frozen(x), T, rounds, steps), least(fill, T, rounds, steps)


def main() -> int:
    """Print a row for each length."""
    print("T".rjust(9), *(f"{name:>12}  fill" for name in LAYERS))
    with xplstm.use_threads(1):
        for T in LENGTHS:
            times = (measure(T, *sizes) for sizes in LAYERS.values())
            print(f"{T:9,}", *(f"{step:12.2f}{fill:6.2f}" for step, fill in times), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
