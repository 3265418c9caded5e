"""Instructions that `native` takes for a few shapes, counted by valgrind's callgrind.

Times on a busy machine say little; these numbers come out the same each time. ``python -m
tests.benchmarks.instructions`` writes them anew to `instructions.json`, for a change that is meant to move
them; the argument ``work`` is for the process under valgrind.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xplstm

ROOT = Path(__file__).parent.parent.parent
STATED = Path(__file__).with_suffix(".json")

# What T, B, I, H are counted.
FORWARD = ((100, 1, 16, 32), (20, 1, 256, 256), (20, 8, 64, 128), (5, 32, 256, 256))
TRAINING = ((20, 1, 64, 128), (10, 8, 64, 128), (4, 32, 128, 256))
STEP = ((1, 1, 3, 8), (1, 1, 16, 32), (1, 1, 64, 64))

# The functions of the extension module that a call of each kind enters, one after the other.
ENTERED = {"forward": ("forward",), "training": ("forward", "backward"), "step": ("step",)}
# valgrind does not know AVX-512.
ENVIRONMENT = {"XPLSTM_NATIVE_ISA": "avx2", "XPLSTM_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def cases() -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape."""
    kinds = {"forward": FORWARD, "training": TRAINING, "step": STEP}
    return [(kind, shape) for kind, shapes in kinds.items() for shape in shapes]


def name_of(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} {','.join(map(str, shape))}"


def call_of(kind: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """What is counted."""
    T, B, I, H = shape
    lstm, x = xplstm.LSTM(I, H, rng=0), np.ones((T, B, I), "float32")
    frozen = lstm.freeze()
    if kind == "forward":
        return lambda: frozen(x)
    if kind == "training":
        return lambda: lstm.vjp(x)[2](x[..., :1] + np.zeros(H, "float32"))
    _, state = frozen.step(x[0])  # the first step goes the long way
    return lambda: frozen.step(x[0], state)


def work() -> None:
    """Every case twice, the second time for the count."""
    with xplstm.use_kernel("native"):
        for kind, shape in cases():
            call = call_of(kind, shape)
            call()
            call()


def count() -> dict[str, int]:
    """Run the cases under valgrind: instructions by case."""
    entered = sorted({function for functions in ENTERED.values() for function in functions})
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command.append("--collect-atstart=no")
        for function in entered:
            command += [f"--toggle-collect={function}", f"--dump-after={function}"]
        command += [sys.executable, "-m", "tests.benchmarks.instructions", "work"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True)
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.findall(r"^totals: (\d+)$", path.read_text(), re.MULTILINE)[0]) for path in parts]
    # The first step of a stream goes by way of `forward`.
    found, at = {}, 0
    for kind, shape in cases():
        each = len(ENTERED[kind])
        at += (kind == "step") + each
        found[name_of(kind, shape)] = sum(totals[at : at + each])
        at += each
    if at != len(totals):
        msg = f"{len(totals)} dumps, expected {at}: a case entered other functions than ENTERED says"
        raise RuntimeError(msg)
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        STATED.write_text(json.dumps(count(), indent=1) + "\n", encoding="utf-8")
