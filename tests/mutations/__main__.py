"""Change the package in one place at a time, and count the changes that its tests do not see.

``python -m tests.mutations --count 60 --seed 0`` draws 60 changes from the modules of each target and
judges them on a copy of the tree. It prints each change that survives, and a table. A change that alters
no result is in ``harmless.toml`` with its reason. The exit status is 1 if more than 3 % of the others
survive. A change that an earlier run with the same ``--results`` saw is not judged again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS")}
# Hypothesis draws the same examples in each run where CI is set.
os.environ.update(THREADS, CI="1", PYTHONPATH="")

from tests.mutations import judge  # noqa: E402 - after the environment
from tests.mutations.changes import Change, c_changes, python_changes  # noqa: E402
from tests.mutations.targets import ROOT, Harmless, Target, chosen, harmless  # noqa: E402

MOST = 0.03
# The output of pytest is thrown away, and with it what the process prints.
SCREEN = os.fdopen(os.dup(1), "w")
ENGINE = "xplstm/kernels/_engine.abi3.so"


class Verdicts:
    """The changes that were judged, and the test that detected each; empty for a survivor."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.how: dict[str, str] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.how[entry["key"]] = entry["how"]

    def say(self, name: str, change: Change, how: str) -> None:
        self.how[change.key] = how
        if self.path is not None:
            entry = {"key": change.key, "target": name, "place": f"{change.module}:{change.line}", "how": how}
            entry |= {"before": change.before, "after": change.after}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def seen(self, change: Change) -> bool:
        return bool(self.how.get(change.key))


def draw(name: str, target: Target, count: int, seed: int) -> list[Change]:
    """Draw changes of a target; the draw does not depend on the other targets."""
    make = c_changes if target.compiled else python_changes
    texts = {module: (ROOT / module).read_text(encoding="utf-8") for module in target.modules()}
    changes = [change for module, text in texts.items() for change in make(module, text)]
    return random.Random(f"{seed} {name}").sample(changes, min(count, len(changes)))


def tree(folder: Path) -> Path:
    """Copy what the tests need."""
    folder.mkdir()
    for name in ("xplstm", "spec", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_build"))
    for name in (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "noxfile.py",
        "MANIFEST.in",
    ):
        shutil.copy2(ROOT / name, folder)
    return folder


def judge_python(name: str, target: Target, changes: list[Change], folder: Path, verdicts: Verdicts) -> None:
    """Judge changes in forks, and what survives once more in a process of its own."""
    started = time.monotonic()

    def say(number: int, change: Change, how: str) -> None:
        if how:
            verdicts.say(name, change, how)
        progress(name, number, left, started, f"{change.module}:{change.line} {how or 'once more'}")

    left = [change for change in changes if not verdicts.seen(change)]
    if not left:
        return
    items, survivors = judge.quick(folder, target.arguments(), left, say)
    reasons = harmless()
    for number, change in enumerate(survivors, start=1):
        how = "" if reason(change, reasons) else judge.whole(folder, target.arguments(), items, change)
        verdicts.say(name, change, how)
        progress(name, number, survivors, started, f"{change.module}:{change.line} {how or 'SURVIVES'}")


def judge_compiled(
    name: str, target: Target, changes: list[Change], folder: Path, verdicts: Verdicts
) -> None:
    """Judge changes of C: build the engine with each, and run all tests."""
    started = time.monotonic()
    left = [change for change in changes if not verdicts.seen(change)]
    if not left:
        return
    if not build(folder):
        msg = "the engine does not compile"
        raise SystemExit(msg)
    sources = used_sources(folder)
    items, _ = judge.quick(folder, target.arguments(), [], lambda *_: None)
    reasons = harmless()
    for number, change in enumerate(left, start=1):
        if reason(change, reasons):
            verdicts.say(name, change, "")
            continue
        path = folder / change.module
        right = path.read_text(encoding="utf-8")
        path.write_text(change.text, encoding="utf-8")
        try:
            built = build(folder, sources)
            how = judge.whole(folder, target.arguments(), items, change) if built else "does not compile"
        finally:
            path.write_text(right, encoding="utf-8")
        verdicts.say(name, change, how)
        progress(name, number, left, started, f"{change.module}:{change.line} {how or 'SURVIVES'}")


def build(folder: Path, sources: Collection[str] = ()) -> bool:
    """Compile sources, all if none are named, and link the engine; return whether that is possible.

    Optimisation is left out, because it changes no bit.
    """
    native = folder / "xplstm/kernels/_native"
    options = ("-std=gnu11", "-O1", "-w", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-fPIC")
    place = f"-I{sysconfig.get_paths()['include']}"
    compiler = os.environ.get("CC", "cc")
    every = sorted(path.stem for path in native.glob("*.c"))
    commands = [
        [compiler, *options, place, "-c", f"{native / name}.c", "-o", str(folder / f"{name}.o")]
        for name in sources or every
    ]
    objects = [str(folder / f"{name}.o") for name in every]
    commands.append([compiler, "-shared", "-pthread", *objects, "-o", str(folder / ENGINE)])
    return all(subprocess.run(c, capture_output=True, check=False).returncode == 0 for c in commands)


def used_sources(folder: Path) -> list[str]:
    """Return the sources that a changed header must reach: all but the slower engines."""
    code = "from xplstm.kernels import _engine; print(*[name for name, _ in _engine.isas()][1:])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    native = folder / "xplstm/kernels/_native"
    return sorted({path.stem for path in native.glob("*.c")} - {*done.stdout.split()})


def progress(name: str, number: int, changes: Sequence[Change], started: float, text: str) -> None:
    clock = f"{time.monotonic() - started:5.0f} s"
    print(f"{name:14} {number:4}/{len(changes)} {clock}  {text}", file=SCREEN, flush=True)


def in_parallel(tasks: Iterator[Callable[[], None]], jobs: int) -> bool:
    """Run tasks in forks, `jobs` at a time; return whether all end well."""
    running, well = 0, True
    for task in [*tasks, None]:
        while running and (task is None or running == jobs):
            well &= os.wait()[1] == 0
            running -= 1
        if task is not None:
            running += 1
            if os.fork() == 0:
                code = 1
                try:
                    task()
                    code = 0
                except SystemExit as error:
                    print(error, file=SCREEN, flush=True)
                except BaseException:
                    traceback.print_exc(file=SCREEN)
                finally:
                    SCREEN.flush()
                    os._exit(code)
    return well


class Row(NamedTuple):
    """A row of the table."""

    target: str
    changes: int
    seen: int
    harmless: int
    survive: int

    def __str__(self) -> str:
        judged = self.changes - self.harmless
        share = f"{self.survive / judged:.1%}" if judged else ""
        numbers = (self.changes, self.seen, self.harmless, self.survive)
        return f"{self.target:16}" + "".join(f"{n:10}" for n in numbers) + f"{share:>9}"


def reason(change: Change, known: list[Harmless]) -> str:
    """Return why a change alters no result, or nothing."""
    place = change.module, change.before, change.after
    return next((one.why for one in known if (one.module, one.before, one.after) == place), "")


def table(drawn: dict[str, list[Change]], verdicts: Verdicts, known: list[Harmless]) -> bool:
    """Print the survivors and the table; return whether few enough survive."""
    rows = []
    for name, changes in drawn.items():
        judged = [c for c in changes if c.key in verdicts.how and verdicts.how[c.key] != "does not compile"]
        survivors = [c for c in judged if not verdicts.how[c.key]]
        why = {c: reason(c, known) for c in survivors}
        for c in survivors:
            print(f"{c.module}:{c.line} {why[c]}\n- {c.before}\n+ {c.after}")
        equal = sum(1 for c in survivors if why[c])
        rows.append(Row(name, len(judged), len(judged) - len(survivors), equal, len(survivors) - equal))
    rows.append(Row("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    print(f"\n{'target':16}{'changes':>10}{'seen':>10}{'harmless':>10}{'survive':>10}{'share':>9}")
    print(*rows, sep="\n")
    return rows[-1].survive <= MOST * (rows[-1].changes - rows[-1].harmless)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="changes of each target, where it has so many")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="*", help="targets, as a pattern")
    parser.add_argument("--jobs", type=int, default=1, help="targets judged at the same time")
    parser.add_argument("--results", type=Path, help="a file of verdicts, read first and extended")
    given = parser.parse_args(arguments)
    targets = chosen(given.only)
    drawn = {name: draw(name, target, given.count, given.seed) for name, target in targets.items()}
    judge.preload()
    with tempfile.TemporaryDirectory() as folder:
        path = given.results or Path(folder, "results.jsonl")

        def task(name: str, target: Target) -> Callable[[], None]:
            work = judge_compiled if target.compiled else judge_python
            here = Path(folder, name)
            return lambda: work(name, target, drawn[name], tree(here), Verdicts(path))

        well = in_parallel((task(name, target) for name, target in targets.items()), given.jobs)
        few = table(drawn, Verdicts(path), harmless())
    return 0 if well and few else 1


if __name__ == "__main__":
    sys.exit(main())
