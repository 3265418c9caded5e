"""``python -m xplstm prove``: run the trials of the CuPy kernels on a device, and record the results.

Each kernel and data type runs in its own process with a time limit. A kernel that hangs or crashes ends
only that process. The parent process never opens the device, since some devices allow only one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xplstm import BackendError, _values
from xplstm.cli import trials
from xplstm.kernels._cuda import proof
from xplstm.kernels._cuda.proof import Verdict

LIMIT = 300.0
"""Time limit in seconds for the trials of one kernel and data type."""
COLUMNS = f"{'kernel':<16} {'numbers':<9} {'result':<8} {'seconds':>7}  why"


class Outcome(NamedTuple):
    """Result of the process of one trial: a verdict, or the reason for its absence."""

    found: Verdict | None
    why: str
    key: dict[str, str]
    results: dict[str, Any] = {}  # noqa: RUF012 - never written to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the device (default 0)")
    parser.add_argument("--again", action="store_true", help="repeat trials whose results are recorded")
    fit_help = "then measure the device, and choose kernels and partitions by the measured times"
    parser.add_argument("--fit", action="store_true", help=fit_help)
    limit = f"time limit for each kernel and data type (default {LIMIT:g})"
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help=limit)
    parser.add_argument("--trial", nargs=2, metavar=("KERNEL", "KIND"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Print a table of the results; return 1 if a kernel failed or could not be tested."""
    limit, device = _values.positive("limit", args.limit), _values.size("device", args.device, 0)
    if args.trial:
        kernel, kind = args.trial
        return trials.run(kernel, kind, device)
    key = identify(device, limit)
    path = proof.file_of(key)
    with proof.lock_file(path.with_suffix(".lock")):
        before = read_results(path, key)
    print(f"{key['device']}, {key['multiprocessors']} SMs, CuPy {key['cupy']}, NVRTC {key['nvrtc']}")
    print(f"results in {path}\n\n{COLUMNS}")
    passed = True
    for kernel, kinds in trials.SUBJECTS.items():
        for kind in kinds:
            begun = time.monotonic()
            old = before.get(proof.name_of(kernel, kind))
            outcome = settle(kernel, kind, device, limit, key, old, again=args.again)
            passed &= outcome.found is not None and outcome.found.passed
            word = "not run" if outcome.found is None else "passed" if outcome.found.passed else "FAILED"
            line = f"{kernel:<16} {kind:<9} {word:<8} {time.monotonic() - begun:>7.1f}  {outcome.why}"
            print(line.rstrip(), flush=True)
    if args.fit:
        passed &= fit_costs(key, device, limit)
    print("\nNew processes choose a kernel that passed automatically; their results may have different bits.")
    return 0 if passed else 1


def fit_costs(key: dict[str, str], device: int, limit: float) -> bool:
    """Measure the costs of the device in a separate process and record them; return whether it succeeded."""
    outcome = attempt(trials.FIT, trials.FIT, device, limit)
    costs = outcome.results.get("costs")
    if outcome.found is None or not outcome.found.passed or costs is None:
        print(f"\nthe costs were not fitted: {outcome.why}")
        return False
    proof.record_costs(key, costs)
    values = "\n".join(f"    {name} = {value:.3g}" for name, value in costs.items())
    print(f"\ncosts fitted to {outcome.results['fit']}\n{values}\nin {proof.costs_file(key)}")
    return True


def identify(device: int, limit: float) -> dict[str, str]:
    """Return the properties of the device that results depend on, from a separate process."""
    outcome = attempt(trials.IDENTITY, trials.IDENTITY, device, limit)
    if not outcome.key:
        msg = f"device {device} cannot be tested: {outcome.why}"
        raise BackendError(msg)
    return outcome.key


def read_results(path: Path, key: dict[str, str]) -> dict[str, Verdict]:
    """Return the recorded results; empty if `record` did not write the file."""
    try:
        return proof.read(path, key)
    except (OSError, ValueError) as error:
        print(f"{path} is replaced: {error}", file=sys.stderr)
        return {}


def settle(
    kernel: str,
    kind: str,
    device: int,
    limit: float,
    key: dict[str, str],
    old: Verdict | None,
    *,
    again: bool,
) -> Outcome:
    """Return the recorded result of a kernel, or run its trials and record the result."""
    name, path = proof.name_of(kernel, kind), proof.file_of(key)
    with waiting(path.with_name(f"{path.stem}-{kernel}-{kind}.lock")):
        verdict = read_results(path, key).get(name)
        if verdict is not None and (verdict != old or not again):
            return Outcome(verdict, f"recorded on {verdict.date[:10]} {verdict.reason}".rstrip(), key)
        outcome = attempt(kernel, kind, device, limit)
        if outcome.found is not None:
            proof.record(key, name, outcome.found)
        return outcome


@contextlib.contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold a lock; print a message if another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(proof.lock_file(path, wait=False))
        except BlockingIOError:
            print("another process runs these trials; waiting for it", file=sys.stderr)
            stack.enter_context(proof.lock_file(path))
        yield


def attempt(kernel: str, kind: str, device: int, limit: float) -> Outcome:
    """Run the trials of one kernel in a separate process."""
    command = [sys.executable, "-m", "xplstm", "prove", "--trial", kernel, kind, "--device", str(device)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        late = False
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
            end(process)
            printed, errors = process.communicate()
        except BaseException:
            end(process)
            raise
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    how = f"did not end within {limit:g} s" if late else f"{describe_exit(process.returncode)} {last}".strip()
    return parse_output(printed.decode(errors="replace"), how, clean=not late and process.returncode == 0)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def describe_exit(code: int) -> str:
    """Describe an exit code."""
    return f"ended by {signal.Signals(-code).name}:" if code < 0 else f"exit code {code}:"


def parse_output(printed: str, how: str, *, clean: bool) -> Outcome:
    """Parse the output of a trial process; without a verdict, `how` the process ended is the reason."""
    results: dict[str, Any] = {}
    for line in printed.splitlines():
        with contextlib.suppress(ValueError):  # a crash may truncate a line, and other code may print
            results |= json.loads(line)
    key = results.get("begun", {})
    if clean and results.get("passed"):
        return Outcome(proof.verdict(None), "", key, results)
    if clean and "failed" in results:
        return Outcome(proof.verdict(results["failed"]), results["failed"], key)
    if "trial" not in results or "not_run" in results:
        return Outcome(None, results.get("not_run", how), key)
    reason = f"{results['trial']}: {how}"
    return Outcome(proof.verdict(reason), reason, key)
