"""Count the instructions of `native` for a few shapes with valgrind's callgrind.

Unlike times on a busy machine, these numbers are the same in every run. ``python -m
tests.benchmarks.instructions`` updates `instructions.json` after a change that intends to change them. The
argument ``work`` is for the process under valgrind.
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

# The cases: T, B, I, H.
FORWARD = ((100, 1, 16, 32), (20_000, 1, 16, 32), (20, 1, 256, 256), (20, 8, 64, 128), (5, 32, 256, 256))
TRAINING = ((20, 1, 64, 128), (10, 8, 64, 128), (4, 32, 128, 256))
STEP = ((1, 1, 3, 8), (1, 1, 16, 32), (1, 1, 64, 64))

# The functions of the extension module that are counted.
ENTERED = ("forward", "backward", "step")
# valgrind does not know AVX-512.
ENVIRONMENT = {"XPLSTM_NATIVE_ISA": "avx2", "XPLSTM_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def cases() -> list[tuple[str, tuple[int, ...]]]:
    """Return kind and shape of each case."""
    kinds = {"forward": FORWARD, "training": TRAINING, "step": STEP}
    return [(kind, shape) for kind, shapes in kinds.items() for shape in shapes]


def name_of(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} {','.join(map(str, shape))}"


def call_of(kind: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """Return the call whose instructions are counted."""
    T, B, I, H = shape
    lstm, x = xplstm.LSTM(I, H, rng=0), np.ones((T, B, I), "float32")
    frozen = lstm.freeze()
    if kind == "forward":
        return lambda: frozen(x)
    if kind == "training":
        return lambda: lstm.vjp(x)[2](x[..., :1] + np.zeros(H, "float32"))
    _, state = frozen.step(x[0])
    return lambda: frozen.step(x[0], state)


def entries(call: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Return how often a call enters the functions of `ENTERED`, and its result."""
    found = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal found
        found += event == "c_call" and argument.__name__ in ENTERED

    sys.setprofile(note)
    result = call(*arguments)
    sys.setprofile(None)
    return found, result


def work() -> None:
    """Make every case and call it twice; print how often each of the three entered `ENTERED`."""
    with xplstm.use_kernel("native"):
        for case in cases():
            before, call = entries(call_of, *case)
            print(before, entries(call)[0], entries(call)[0])


def count() -> dict[str, int]:
    """Return the instructions of the second call by case, from a process under valgrind."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command.append("--collect-atstart=no")
        for function in ENTERED:
            command += [f"--toggle-collect={function}", f"--dump-after={function}"]
        command += [sys.executable, "-m", "tests.benchmarks.instructions", "work"]
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.findall(r"^totals: (\d+)$", path.read_text(), re.MULTILINE)[0]) for path in parts]
    found, at = {}, 0
    for case, line in zip(cases(), done.stdout.splitlines(), strict=True):
        before, first, second = map(int, line.split())
        at += before + first
        found[name_of(*case)] = sum(totals[at : at + second])
        at += second
    if at != len(totals):
        msg = f"{len(totals)} dumps, expected {at}: valgrind and Python count other entries of {ENTERED}"
        raise RuntimeError(msg)
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        STATED.write_text(json.dumps(count(), indent=1) + "\n", encoding="utf-8")
