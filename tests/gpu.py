"""Run all checks that need an NVIDIA GPU, and print one table: ``python -m tests.gpu [PART ...]``.

Parts, which run in this order by default:

- ``prove``: the trials of each kernel, as in ``python -m xplstm prove``;
- ``tests``: every test of CuPy, with each kernel of CuPy in turn;
- ``spec``: the specification on CuPy, with each kernel pinned;
- ``sanitizer``: small problems under memcheck and racecheck of NVIDIA's compute-sanitizer;
- ``bench``: the quick benchmark, which writes to ``--out``.

The command needs CuPy, NumPy, ml_dtypes, pytest and array-api-compat, each installed or as a wheel on
PYTHONPATH. PyTorch, JAX, cuDNN and matplotlib are optional. Nothing is installed or downloaded.
The exit status is 1 if anything failed.
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
# This runs in a separate process, because a CUDA context would persist. Some GPUs allow only one process with
# a context.
ASK = "from xplstm import _array; print(_array.why_unusable('cupy') or '')"
# Each run requires these kernels, so they are selected. In the second run, one kernel runs what both support.
REQUIRED = {
    "elementwise": "cupy,cupy_elementwise",
    "fused": "cupy,cupy_fused",
    "block and fused": "cupy,cupy_block,cupy_fused",
    "persistent and fused": "cupy,cupy_persistent,cupy_fused",
}
SUBJECTS = ("reference", "cupy_elementwise", "cupy_fused", "cupy_block", "cupy_persistent")
# These tests pin their kernels. One process runs one kernel, because nothing else can run after a kernel
# fails.
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
# Time limits in seconds: pytest names and ends a hanging test, and the second limit ends the step.
STUCK, LONGEST = 60, 1800
# Each pytest run has one process. The reasons of skipped tests would fill pages.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--no-header")
PYTEST += ("--tb=short", "-o", f"faulthandler_timeout={STUCK}", "-o", "faulthandler_exit_on_timeout=true")
# Warnings of other packages during collection are ignored.
PYTEST += ("--continue-on-collection-errors", *(f"-Wdefault::{kind}" for kind in WARNINGS))
BENCH_MINUTES = 6


class Step(NamedTuple):
    """Command, or the reason why it is missing."""

    part: str
    name: str
    command: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012 - never written to
    reason: str = ""


class Outcome(NamedTuple):
    """Result of a step."""

    step: Step
    state: str
    seconds: float
    reason: str = ""


def prove(_: Path) -> Iterator[Step]:
    yield Step("prove", "every kernel", (sys.executable, "-m", "xplstm", "prove", "--again"))


def tests(_: Path) -> Iterator[Step]:
    """Run the tests with CuPy instead of its emulation. The kernel that could hang runs last."""
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
        # CuPy queries attributes that an older driver does not have, and handles the error.
        options = ("--tool", checker, "--error-exitcode", "9", "--target-processes", "all")
        options += ("--report-api-errors", "no") if checker == "memcheck" else ()
        # The checker follows every access to shared memory, and waiting blocks make many accesses.
        few = ("bidirectional_ragged",) if checker == "racecheck" else ()
        yield Step(
            "sanitizer", checker, (found, *options, sys.executable, "-m", "tests.support.cupy_runs", *few)
        )


def bench(out: Path) -> Iterator[Step]:
    """Run the benchmark into a new file, because it rejects a file of other kernel sources."""
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
    """Return the path of NVIDIA's memory checker, and the places that were searched."""
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(root) for root in (*roots, "/usr/local/cuda") if root]
    places = [place for folder in folders for place in (folder / "bin", folder / SANITIZER)]
    found = shutil.which(SANITIZER) or next(
        (str(place / SANITIZER) for place in places if os.access(place / SANITIZER, os.X_OK)), None
    )
    return found, ["PATH", *map(str, places)]


def why_not_here() -> str:
    """Return the missing requirement, or an empty string."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; a wheel on PYTHONPATH is enough"
    asked = subprocess.run((sys.executable, "-c", ASK), check=False, cwd=ROOT, capture_output=True, text=True)
    return (asked.stdout or asked.stderr).strip()


def do(step: Step, end: float) -> Outcome:
    """Run one step, whose output goes to the output of this process."""
    begun = time.monotonic()
    if step.reason or begun >= end:
        return Outcome(step, "skipped", 0.0, step.reason or "the time is up")
    print(f"\n=== {step.part}: {step.name}\n{' '.join(step.command)}", flush=True)
    environment = {**os.environ, **step.variables}
    with subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(min(LONGEST, end - begun))
        except subprocess.TimeoutExpired:
            # This also ends the child processes, because a hanging kernel would occupy the GPU.
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
        parser.error(f"part {unknown[0]!r} is unknown, expected one of {', '.join(PARTS)}")
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
