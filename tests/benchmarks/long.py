"""Measure time and memory of exact gradients of a sequence that is longer than memory.

``python -m tests.benchmarks.long`` measures a million steps of a memory map on one thread. It prints the CPU
time of `training.gradients_over` divided by that of a forward pass, which each repetition also runs. It also
prints the peak memory of the process during the first `gradients_over`, minus the memory before. Pages of the
map that the process has read count as its memory until the system reclaims them.

A forward pass multiplies by W_ih and W_hh. `gradients_over` runs the chunks twice, and the weight gradients
cost a third pass. The backward steps multiply only by W_hh. The sum is 3 + H / (I + H) forward passes, here
3.8. If a file stored y of all steps, the second run could multiply many steps at once, which waits less for
the weights. The forward pass, the backward steps and the weight gradients would still take longer than the
goal.

One call on the complete x also needs memory for the complete y. The system may take as long to provide it as
the computation takes. The second ratio therefore shows only the cost of the gradients.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.memory import MEGABYTE, ROOT, _resident

T, B, I, H = 1_000_000, 1, 16, 64
CHUNK = 10_000
REPEATS = 5
PEAK_GOAL, COST_GOAL = 110, 2.5


class Chunks:
    """Chunks of a memory map; the loss needs no targets."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __len__(self) -> int:
        return -(-len(self.x) // CHUNK)

    def __getitem__(self, k: int) -> tuple[Any, None]:
        if k >= len(self):
            raise IndexError(k)
        return self.x[k * CHUNK : (k + 1) * CHUNK], None


def half_square(y: Any, _: None) -> tuple[float, Callable[[], Any]]:
    """Return half the sum of squares, whose gradient is y."""
    return float(0.5 * np.vdot(y, y)), lambda: y


def write(path: Path) -> None:
    """Write T steps of normal random numbers."""
    rng = np.random.default_rng(0)
    x: Any = np.lib.format.open_memmap(path, "w+", "float32", (T, B, I))
    for lo in range(0, T, CHUNK):
        x[lo : lo + CHUNK] = rng.standard_normal(x[lo : lo + CHUNK].shape, dtype="float32")


def work(path: str) -> None:
    """Print the peak memory, and the CPU times of all passes."""
    import xplstm
    from xplstm.training import gradients_over

    lstm = xplstm.LSTM(I, H, rng=0)
    fast = lstm.freeze()
    chunks = Chunks(np.load(path, mmap_mode="r"))
    small = [(np.ones((10, B, I), np.float32), None)] * 2
    gradients_over(lstm, small, half_square)  # loads all modules and data
    before = _resident("VmRSS")
    gradients_over(lstm, chunks, half_square)
    print(_resident("VmHWM") - before)

    def whole() -> None:
        fast(chunks.x)

    def in_chunks() -> None:
        state = None
        for x, _ in chunks:
            _, state = fast(x, state)

    passes = [whole, in_chunks, lambda: gradients_over(lstm, chunks, half_square)]
    for _ in range(REPEATS):
        for run in passes:
            start = time.process_time()
            run()
            print(time.process_time() - start, end=" ")
        print()


def measure() -> tuple[int, list[list[float]]]:
    """Return the peak in bytes, and the seconds of each pass and repetition, from a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write(path)
        command = [sys.executable, "-m", "tests.benchmarks.long", str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XPLSTM_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    first, *lines = done.stdout.splitlines()
    return int(first), [[float(word) for word in line.split()] for line in lines]


def main() -> None:
    """Print the results and both goals."""
    if len(sys.argv) > 1:
        work(sys.argv[1])
        return
    peak, times = measure()
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    ratio = statistics.median(line[2] / line[0] for line in times)
    in_chunks = statistics.median(line[2] / line[1] for line in times)
    print(
        f"T, B, I, H = {T}, {B}, {I}, {H} in float32, chunks of {CHUNK}, medians of {len(times)} repetitions"
    )
    print(f"forward, one call      {seconds[0]:8.2f} s")
    print(f"forward, in chunks     {seconds[1]:8.2f} s")
    print(f"gradients_over         {seconds[2]:8.2f} s")
    print(f"cost / one call        {ratio:8.2f}    goal {COST_GOAL}")
    print(f"cost / in chunks       {in_chunks:8.2f}")
    print(f"peak                   {peak / MEGABYTE:8.1f} MiB goal {PEAK_GOAL}")


if __name__ == "__main__":
    main()
