"""Measure the CuPy kernels and other implementations on one GPU.

The benchmark measures one shape and precision at a time. It prepares every engine, compares its results with
those of a judge, and measures it with CUDA events in interleaved rounds. Each engine runs once per round, on
inputs that change from call to call. An engine that cannot run a shape, or gives wrong results, is reported
with the reason and excluded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from tests.benchmarks.gpu import engines, results
from tests.benchmarks.gpu.engines import ENGINES, JUDGES, PRECISIONS
from tests.benchmarks.gpu.workers import Worker
from xplstm._errors import ArgumentError, BackendError, KernelError, XplstmError
from xplstm.cli import bench as cpu
from xplstm.cli.engines import calls_of, difference, in_turns
from xplstm.cli.peers import Shape
from xplstm.cli.results import Report, Row, check_plot, describe_run, load

ROUNDS = 7
# Seconds that an engine runs in its turn, and the largest number of calls.
TURN, MOST_CALLS = 0.02, 1000
WALKS = 7

BATCHES = (1, 16, 32, 64, 128, 256)
# The sizes of the goals come first, so that an interrupted run contains them.
SIZES = (256, 512, 768, 1024, 1536, 2048, 128, 64)
GRID = tuple(Shape(T, B, H, H) for T in (512, 64) for H in SIZES for B in BATCHES)
DEEPBENCH_TRAIN = (
    *(Shape(25, B, H, H) for H in (512, 1024, 2048, 4096) for B in (16, 32, 64, 128)),
    *(Shape(50, B, 1536, 1536) for B in (8, 16, 32)),
    *(Shape(150, B, 256, 256) for B in (16, 32, 64)),
)
DEEPBENCH_INFERENCE = (
    *(Shape(25, B, H, H) for H in (512, 1024, 2048) for B in (1, 2, 4)),
    *(Shape(50, B, 1536, 1536) for B in (1, 2, 4)),
    *(Shape(150, B, 256, 256) for B in (1, 2, 4)),
)
QUICK = (
    Shape(64, 16, 256, 256),
    Shape(512, 16, 768, 768),
    Shape(64, 64, 1024, 1024),
    Shape(64, 1, 512, 512),
    Shape(64, 128, 128, 128),
)

# Largest allowed differences by precision, as a fraction of the judge's largest number. The judge uses
# float32.
ALLOWED = {"float32": 2e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    description = "Time the CuPy kernels and their peers on one GPU."
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=description)
    shapes = parser.add_mutually_exclusive_group()
    cpu.add_shape(shapes)
    quick_help = "time a few shapes that show most, in a few minutes"
    shapes.add_argument("--quick", action="store_true", help=quick_help)
    cpu.add_output(parser, ROUNDS)
    cpu.add_engines(parser, lambda: list(ENGINES))
    minutes_help = "begin no shape after M minutes; with --json a later run continues. 0 only reports"
    parser.add_argument("--minutes", type=_minutes, metavar="M", default=float("inf"), help=minutes_help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 1 if a result was wrong, and 2 if an argument or the machine is unsuitable."""
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except XplstmError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def _minutes(text: str) -> float:
    """Return the time at which this many minutes will have passed."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = float("nan")
    if not minutes >= 0:
        msg = f"{text!r} must be a number of at least 0"
        raise argparse.ArgumentTypeError(msg)
    return minutes


def shapes_of(args: argparse.Namespace) -> list[Shape]:
    """Return the shapes to measure, each once."""
    if args.shape:
        return list(dict.fromkeys(args.shape))
    return list(dict.fromkeys(QUICK if args.quick else (*GRID, *DEEPBENCH_TRAIN, *DEEPBENCH_INFERENCE)))


def kinds_of(shape: Shape, asked: bool) -> tuple[str, ...]:
    """Return the kinds to measure for a shape: some shapes of DeepBench have only inference."""
    return ("forward",) if shape in DEEPBENCH_INFERENCE and not asked else ("forward", "train")


def left_of(args: argparse.Namespace, rows: list[Row]) -> dict[Shape, tuple[str, ...]]:
    """Return the operations of each shape that have not been measured yet."""
    done, left = {(row.shape, row.what) for row in rows}, {}
    for shape in shapes_of(args):
        kinds = tuple(what for what in kinds_of(shape, bool(args.shape)) if (shape, what) not in done)
        if kinds:
            left[shape] = kinds
    return left


def run(args: argparse.Namespace) -> int:
    """Measure what the file does not contain, and print the results; return 1 if a result was wrong."""
    if args.plot:
        check_plot(args.plot)
    report = load(args.json) if args.json and args.json.exists() else Report({}, [])
    if args.minutes > 0:
        report = _measured(args, report, time.monotonic() + 60 * args.minutes)
    _print(report)
    if args.plot:
        results.draw(report.rows, args.plot)
    return len(results.wrong(report.rows)) > 0


def _measured(args: argparse.Namespace, report: Report, end: float) -> Report:
    """Return the report with the missing measurements, written to its file after each shape."""
    names, rounds = args.engines or engines.available(), args.repeats
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name)) for name in names}
        about = {**_about(next(iter(workers.values()))), "engines": ", ".join(workers), "rounds": rounds}
        about |= {"unit": results.UNIT, "tables": results.COMPARED}
        report = Report(_same(report.about, about), report.rows)
        if "cupy_fused" in workers:
            report.about["microseconds of Python"] = _overheads(workers["cupy_fused"])
        left = left_of(args, report.rows)
        for number, (shape, kinds) in enumerate(left.items(), 1):
            if time.monotonic() > end:
                print(f"the time is up: {len(left) - number + 1} shapes are left", file=sys.stderr)
                break
            print(f"{number} of {len(left)}: {shape}", file=sys.stderr, flush=True)
            report.rows.extend(measure(workers, shape, kinds, rounds))
            if args.json:
                report.save(args.json)
    return report


def _about(worker: Worker) -> dict[str, Any]:
    """Return the properties of the machine, which must have a GPU."""
    try:
        found: dict[str, Any] = worker.ask("about")
    except KernelError as error:
        msg = f"the benchmark needs CuPy and a CUDA device: {error}"
        raise BackendError(msg) from error
    return found


def _overheads(worker: Worker) -> Any:
    """Return the time of a launch and of a product in Python, or why it was not measured."""
    try:
        return worker.ask("overheads")
    except KernelError as error:
        return f"not measured: {error}"


def _same(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of the machine with the new command; reject a report of another machine."""
    for name, value in now.items():
        if name in before and before[name] != value:
            msg = f"--json has measurements with {name} {before[name]}, and here is {value}"
            raise ArgumentError(msg)
    this = describe_run("python", "-m", "tests.benchmarks.gpu")
    commands = dict.fromkeys([*filter(None, before.get("command", "").split(" && ")), this["command"]])
    return {**this, **now, **before, "command": " && ".join(commands)}


def measure(workers: dict[str, Worker], shape: Shape, kinds: tuple[str, ...], rounds: int) -> list[Row]:
    """Measure every engine at a shape, one precision at a time to limit the memory."""
    rows = []
    for what in kinds:
        judge: Results = {}
        for precision in PRECISIONS:
            able = {name: w for name, w in workers.items() if precision in ENGINES[name].precisions}
            cell = Cell(shape, precision, what, able)
            judge = cell.compare(judge)
            cell.interleave(rounds)
            rows += cell.rows()
            cell.release()
    return rows


Results = dict[str, np.ndarray]


class Cell:
    """Engines at one shape in one precision; an engine that fails is excluded with its reason."""

    def __init__(self, shape: Shape, precision: str, what: str, workers: dict[str, Worker]) -> None:
        self._shape, self._precision, self._what = shape, precision, what
        self._workers, self._reasons = workers, dict[str, str]()
        self._times: dict[str, list[float]] = {name: [] for name in workers}
        self._host: dict[str, list[float]] = {name: [] for name in workers}
        for name in workers:
            self._ask(name, "build", shape=list(shape), precision=precision)

    def _able(self) -> list[str]:
        return [name for name in self._workers if name not in self._reasons]

    def _ask(self, name: str, op: str, **request: Any) -> Any:
        """Return an answer, or None if the engine failed and is excluded."""
        try:
            return self._workers[name].ask(op, **request)
        except KernelError as error:
            self._reasons.setdefault(name, str(error))
            return None

    def compare(self, judge: Results) -> Results:
        """Exclude each engine that differs from the judge, by default the first of JUDGES that ran."""
        found: dict[str, Results] = {}
        for name in self._able():
            answer = self._ask(name, "results", what=self._what)
            if answer is not None:
                found[name] = {key: np.asarray(a) for key, a in answer.items()}
        if not judge:
            judge = next((found[name] for name in (*JUDGES, *found) if found.get(name)), {})
        for name, given in found.items():
            reason = self._why_not(given, judge)
            if reason:
                self._reasons[name] = reason
        return judge

    def _why_not(self, results: Results, judge: Results) -> str:
        """Return why an engine's results are wrong, or an empty string."""
        differences = {key: difference(a, judge[key]) for key, a in results.items() if key in judge}
        if not differences:
            return f"gives {_listed(results)}, and the judge {_listed(judge)}: nothing to compare"
        key = max(differences, key=lambda k: differences[k])
        if differences[key] <= ALLOWED[self._precision]:
            return ""
        allowed = f"{ALLOWED[self._precision]:.0e} allowed"
        return f"differs in {key} by {differences[key]:.1e} of the largest number, {allowed}"

    def interleave(self, rounds: int) -> None:
        """Measure the seconds per call of each engine, one number per round."""
        calls = {}
        for name in self._able():
            trial = self._ask(name, "time", what=self._what, calls=1)
            if trial is not None:
                calls[name] = calls_of(trial["device"], TURN, MOST_CALLS)
        for name in in_turns(self._able, rounds):
            took = self._ask(name, "time", what=self._what, calls=calls[name])
            if took is None:
                continue
            if took["device"] <= 0:
                self._reasons[name] = f"events measured no time in {calls[name]} calls"
            self._times[name].append(took["device"])
            self._host[name].append(took["host"])

    def rows(self) -> list[Row]:
        """Return one row for each engine."""
        found = []
        for name in self._workers:
            facts = self._ask(name, "facts", what=self._what, calls=WALKS) if name in self._able() else None
            row = Row(self._shape, self._precision, self._what, name)
            if name in self._reasons:
                found.append(row._replace(facts={"reason": self._reasons[name]}))
                continue
            times = [1e6 * t / self._shape.T for t in self._times[name]]
            measured = {"host": 1e6 * statistics.median(self._host[name])}
            if facts:
                measured["walk"] = statistics.median(facts["walk"]) / self._shape.T
                measured["launches"] = facts["launches"]
            found.append(row._replace(times=times, facts=measured))
        return found

    def release(self) -> None:
        """Free the memory of all processes."""
        for name in self._workers:
            self._ask(name, "release")


def _listed(results: Results) -> str:
    """Return the measurements that the report contains."""
    return ", ".join(results) or "nothing"


def _print(report: Report) -> None:
    """Print the measurements, the missing measurements and the goals."""
    print(report.text(results.pairs))
    print("\nleast microseconds until Python has a call under way")
    print(", ".join(f"{name} {least:.0f}" for name, least in results.hosts(report.rows).items()))
    reasons = results.reasons(report.rows)
    if reasons:
        print("\n".join(["\nnot timed", *reasons]))
    print("\n".join(["\ngoals", *map(str, results.goals(report.rows))]))
