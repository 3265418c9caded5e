"""``python -m tests.gpu [PART ...]`` checks on an NVIDIA GPU all that needs one, and closes with one table.

Parts, in this order where none is named:

- ``prove``: the trials of each kernel, as ``python -m xplstm prove`` runs them;
- ``tests``: every test that has CuPy in it, on each kernel of CuPy in turn;
- ``spec``: the specification on CuPy, each kernel pinned;
- ``sanitizer``: small problems under NVIDIA's compute-sanitizer, its memcheck and its racecheck;
- ``bench``: the quick benchmark, into ``--out``.

It needs CuPy, NumPy, ml_dtypes, pytest and array-api-compat in this Python; wheels on PYTHONPATH will do.
PyTorch, JAX, cuDNN and matplotlib are used where they are. Nothing is installed or fetched. Ends with 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
NEEDS = ("numpy", "array_api_compat", "ml_dtypes", "pytest", "cupy")
# Asked in a process of its own, since a context would stay: some GPUs let one process alone have one.
ASK = "from xplstm import _array; print(_array.why_unusable('cupy') or '')"
# Each run requires these kernels and so has them chosen; the second leaves to one what both can run.
REQUIRED = {
    "elementwise": "cupy,cupy_elementwise",
    "fused": "cupy,cupy_fused",
    "block and fused": "cupy,cupy_block,cupy_fused",
    "persistent and fused": "cupy,cupy_persistent,cupy_fused",
}
SUBJECTS = ("reference", "cupy_elementwise", "cupy_fused", "cupy_block", "cupy_persistent")
# Tests that pin their kernels, one kernel a process: after a broken one nothing else runs in its process.
PINNED = {
    "training's parts": ("tests/kernels/test_cuda_training.py", "cupy"),
    "elementwise alone": ("tests/kernels/test_cupy.py", "cupy_elementwise"),
    "fused alone": ("tests/kernels/test_cupy.py", "cupy_fused"),
    "block alone": ("tests/kernels/test_cupy.py", "cupy_block"),
    "persistent, float32 and float64": (
        "tests/kernels/test_cupy.py",
        "cupy_persistent and (float32 or float64)",
    ),
    "persistent, the rest": (
        "tests/kernels/test_cupy.py",
        "not cupy_fused and not cupy_block and not cupy_elementwise and not float32 and not float64",
    ),
}
SANITIZER = "compute-sanitizer"
CHECKERS = ("memcheck", "racecheck")
WARNINGS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
# Seconds after which pytest names the test that waits for ever and ends, and after which a step is ended.
STUCK, LONGEST = 60, 1800
# One run of pytest after another in one process each; the reasons for skips would fill pages.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--no-header")
PYTEST += ("--tb=short", "-o", f"faulthandler_timeout={STUCK}", "-o", "faulthandler_exit_on_timeout=true")
# What other packages warn of while their tests are collected is not asked here.
PYTEST += ("--continue-on-collection-errors", *(f"-Wdefault::{kind}" for kind in WARNINGS))
BENCH_MINUTES = 6


class Step(NamedTuple):
    """A command, or why there is none."""

    part: str
    name: str
    command: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012 - never written to
    reason: str = ""


class Outcome(NamedTuple):
    """What became of a step."""

    step: Step
    state: str
    seconds: float
    reason: str = ""


def prove(_: Path) -> Iterator[Step]:
    yield Step("prove", "every kernel", (sys.executable, "-m", "xplstm", "prove", "--again"))


def tests(_: Path) -> Iterator[Step]:
    """The emulated kernels stand in for CuPy, which is here; the kernel that may wait for ever is last."""
    for name, (file, chosen) in PINNED.items():
        yield Step("tests", name, (*PYTEST, file, "-k", chosen), {"XPLSTM_REQUIRE": "cupy"})
    ignored = ("tests/kernels/test_cupy_emulated.py", *dict.fromkeys(file for file, _ in PINNED.values()))
    command = (*PYTEST, "tests", "--backend", "cupy", *(f"--ignore={file}" for file in ignored))
    for name, required in REQUIRED.items():
        yield Step("tests", name, command, {"XPLSTM_REQUIRE": required, "XPLSTM_THOROUGH": "1"})


def spec(_: Path) -> Iterator[Step]:
    for kernel in SUBJECTS:
        command = (*PYTEST, "spec", f"--subject=xplstm:cupy:{kernel}")
        yield Step("spec", kernel, command, {"XPLSTM_REQUIRE": "cupy"})


def sanitizer(_: Path) -> Iterator[Step]:
    found, places = find_sanitizer()
    for checker in CHECKERS:
        if found is None:
            yield Step("sanitizer", checker, reason=f"no {SANITIZER} in {', '.join(places)}")
            continue
        # CuPy asks the driver for what an older one does not know, and lives with the answer.
        options = ("--tool", checker, "--error-exitcode", "9", "--target-processes", "all")
        options += ("--report-api-errors", "no") if checker == "memcheck" else ()
        # It follows every access to shared memory, and blocks that wait for each other make many.
        few = ("bidirectional_ragged",) if checker == "racecheck" else ()
        yield Step(
            "sanitizer", checker, (found, *options, sys.executable, "-m", "tests.support.cupy_runs", *few)
        )


def bench(out: Path) -> Iterator[Step]:
    """Anew each time: a file of kernels that have changed since would be refused."""
    (out / "gpu.json").unlink(missing_ok=True)
    command = (sys.executable, "-m", "tests.benchmarks.gpu", "--quick")
    command += ("--minutes", str(BENCH_MINUTES), "--json", str(out / "gpu.json"))
    if importlib.util.find_spec("matplotlib"):
        command += ("--plot", str(out / "gpu.svg"))
    yield Step("bench", "quick", command)


PARTS: dict[str, Callable[[Path], Iterator[Step]]] = {
    "prove": prove,
    "tests": tests,
    "spec": spec,
    "sanitizer": sanitizer,
    "bench": bench,
}


def find_sanitizer() -> tuple[str | None, list[str]]:
    """NVIDIA's checker of memory, and where it was looked for."""
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(root) for root in (*roots, "/usr/local/cuda") if root]
    places = [place for folder in folders for place in (folder / "bin", folder / SANITIZER)]
    found = shutil.which(SANITIZER) or next(
        (str(place / SANITIZER) for place in places if os.access(place / SANITIZER, os.X_OK)), None
    )
    return found, ["PATH", *map(str, places)]


def why_not_here() -> str:
    """What is missing to check anything, or nothing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; a wheel on PYTHONPATH will do"
    asked = subprocess.run((sys.executable, "-c", ASK), check=False, cwd=ROOT, capture_output=True, text=True)
    return (asked.stdout or asked.stderr).strip()


def do(step: Step, end: float) -> Outcome:
    """One step; what it prints goes where this does."""
    begun = time.monotonic()
    if step.reason or begun >= end:
        return Outcome(step, "skipped", 0.0, step.reason or "the time is up")
    print(f"\n=== {step.part}: {step.name}\n{' '.join(step.command)}", flush=True)
    environment = {**os.environ, **step.variables}
    with subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(min(LONGEST, end - begun))
        except subprocess.TimeoutExpired:
            # Whoever it has started too: a kernel that waits for ever would keep the GPU.
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(step, "failed", time.monotonic() - begun, "it had not ended when the time was up")
    state, reason = ("failed", f"exit code {code}") if code else ("passed", "")
    return Outcome(step, state, time.monotonic() - begun, reason)


def table(outcomes: list[Outcome]) -> str:
    lines = [("part", "what", "outcome", "seconds", "why")]
    lines += [(o.step.part, o.step.name, o.state, f"{o.seconds:.0f}", o.reason) for o in outcomes]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Check all that needs a GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default all")
    out_help = "folder of the benchmark's files (default runs)"
    parser.add_argument("--out", type=Path, default=ROOT / "runs", metavar="FOLDER", help=out_help)
    minutes_help = "end after so many; what has not begun by then is skipped"
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help=minutes_help)
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"part {unknown[0]!r} is unknown; known are {', '.join(PARTS)}")
    reason = why_not_here()
    if reason:
        print(f"nothing can be checked here: {reason}", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    steps = [step for part in args.parts or PARTS for step in PARTS[part](args.out)]
    outcomes = [do(step, end) for step in steps]
    print(f"\n{table(outcomes)}")
    return any(outcome.state == "failed" for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
