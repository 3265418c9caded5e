"""Measure small calls and steps of frozen LSTMs, and the part of the interpreter.

``python -m tests.benchmarks.small_calls`` prints microseconds of `FrozenLSTM.__call__` with one batch entry,
of the same call with all checks, and of `step`. Each number is the minimum of many interleaved rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import xplstm

STEPS = (1, 5, 20)
SIZES = (8, 16, 32, 64)
ROUNDS, CALLS = 40, 100
PINNED = "native"


def least(calls: list[Callable[[], object]]) -> list[float]:
    """Return the minimum microseconds of each call, in interleaved rounds."""
    found = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            found[k] = min(found[k], (time.perf_counter() - start) / CALLS * 1e6)
    return found


def checked(lstm: xplstm.LSTM) -> Any:
    """Return a frozen copy whose calls run all checks."""
    frozen = lstm.freeze()
    frozen._callers[PINNED] = None
    return frozen


def calls_of(H: int) -> list[Callable[[], object]]:
    """Return a step, and a call with and without all checks for each of STEPS."""
    lstm = xplstm.LSTM(H, H, rng=0)
    short, long = lstm.freeze(), checked(lstm)
    rng = np.random.default_rng(0)
    xs: list[Any] = [rng.standard_normal((T, 1, H), dtype=np.float32) for T in STEPS]
    _, state = short.step(xs[0][0])
    calls: list[Callable[[], object]] = [lambda: short.step(xs[0][0], state)]
    for x in xs:
        calls += [lambda x=x: short(x), lambda x=x: long(x)]  # type: ignore[misc]
    return calls


def measure(H: int) -> list[float]:
    """Return microseconds of each of `calls_of`."""
    with xplstm.use_kernel(PINNED):
        calls = calls_of(H)
        for call in calls:
            call()
        return least(calls)


def main() -> int:
    """Print a row for each hidden size."""
    heads = ["H", "step", *(f"T={T}{way}" for T in STEPS for way in ("", " checked"))]
    print("  ".join(heads))
    for H in SIZES:
        row = [str(H), *(f"{us:.1f}" for us in measure(H))]
        print("  ".join(text.rjust(len(head)) for text, head in zip(row, heads, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
