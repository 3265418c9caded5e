"""Compare the memory of one training step of a long sequence with PyTorch, each in a separate process.

``python -m tests.benchmarks.memory`` prints the peak memory of the process during a forward and a backward
pass, minus the memory before. The name of an engine as the argument runs the measured process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
STATUS = Path("/proc/self/status")

T, B, I, H = 512, 32, 192, 256
MEGABYTE = 2**20


def _resident(name: str) -> int:
    """Return the resident memory in bytes: now (VmRSS), or the peak so far (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _ours() -> Callable[[np.ndarray, np.ndarray], object]:
    import xplstm

    lstm = xplstm.LSTM(I, H, rng=0)
    return lambda x, dy: lstm.vjp(x)[2](dy)


def _torch() -> Callable[[np.ndarray, np.ndarray], object]:
    import torch

    torch.set_num_threads(1)
    module = torch.nn.LSTM(I, H)

    def train(x: np.ndarray, dy: np.ndarray) -> object:
        leaf = torch.from_numpy(x).requires_grad_()
        module(leaf)[0].backward(torch.from_numpy(dy))
        return leaf.grad, [p.grad for p in module.parameters()]

    return train


ENGINES = {"xplstm": _ours, "torch": _torch}


def work(engine: str) -> int:
    """Return the bytes of one training step, without x, dy and the memory before."""
    train = ENGINES[engine]()
    train(np.ones((1, 1, I), np.float32), np.ones((1, 1, H), np.float32))  # loads the libraries
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, B, n), dtype=np.float32) for n in (I, H))
    before = _resident("VmRSS")
    kept = train(x, dy)
    after = _resident("VmHWM") - before
    del kept
    return after


def measure(engine: str) -> int:
    """Run `work` in a separate process."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XPLSTM_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    """Print the memory of every engine, and the sizes of x, y, dx and the residuals of `native`."""
    if len(sys.argv) > 1:
        print(work(sys.argv[1]))
        return
    print(f"one training step of T, B, I, H = {T}, {B}, {I}, {H} in float32, beyond x and dy")
    for engine in ENGINES:
        print(f"{engine:8}{measure(engine) / MEGABYTE:8.1f} MiB")
    kept = T * B * (4 * H + H + H) + B * H
    print(f"{'kept':8}{4 * kept / MEGABYTE:8.1f} MiB: gates, c and h of every step")
    print(f"{'arrays':8}{4 * T * B * (H + I) / MEGABYTE:8.1f} MiB: y and dx")


if __name__ == "__main__":
    main()
