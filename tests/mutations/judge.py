"""Judge changes: collect tests once, and run them in a fork for each change.

A fork replaces the code of the changed functions and runs the tests that reach the changed line, one of each
test function first, until one fails. What survives there, and what no function holds, is judged once more by
all tests of the files that reach it, in a process that imports the changed module.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import signal
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mutations.changes import Change

# Imported once, before the forks.
LIBRARIES = (
    "numpy",
    "hypothesis",
    "array_api_compat.numpy",
    "array_api_strict",
    "h5py",
    "onnx",
    "mpmath",
    "torch",
)
PATIENCE = 60.0
DAY = 24 * 3600.0


class Item(NamedTuple):
    """Test with its time in seconds, and the lines of each module that it reaches, by path."""

    name: str
    seconds: float
    lines: dict[str, list[int]]


def preload() -> None:
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def forked(work: Callable[[], Any], limit: float) -> Any:
    """Return the result of `work` in a fork, in JSON types; or a text after a time limit or a crash."""
    with tempfile.NamedTemporaryFile("r") as answer:
        child = os.fork()
        if child == 0:
            os.setsid()
            try:
                try:
                    found = work()
                except Exception as error:
                    found = f"{type(error).__name__}: {error}"
                Path(answer.name).write_text(json.dumps(found))
            finally:
                os._exit(0)
        end = time.monotonic() + limit
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"takes more than {limit:.0f} s"
            time.sleep(0.005)
        text = answer.read()
    return json.loads(text) if text else "the process dies"


class Tests:
    """Plugin of pytest that passes the collected tests to `work`."""

    def __init__(self, work: Callable[[Tests], None]) -> None:
        self.work = work
        self.failed = ""
        self.began = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = session.items
        if not self.failed:
            self.began = True
            self.work(self)
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the repetitions for further array libraries, but not those used as a reference."""
        items[:] = [item for item in items if library_of(item) in ("", "numpy", "array_api_strict")]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid or "collection"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def run(self, items: Sequence[pytest.Item]) -> str:
        """Return the first test that fails, or an empty text."""
        for number, item in enumerate(items):
            following = items[number + 1] if number + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                break
        return self.failed


def library_of(item: pytest.Item) -> str:
    """Return the array library that the fixture `xp` gives to a test, or an empty text."""
    call = getattr(item, "callspec", None)
    return call.params.get("xp", "") if call else ""


def collect(folder: Path, arguments: Sequence[str], work: Callable[[Tests], None]) -> str:
    """Collect the tests of a tree in this process and do the work; return what failed."""
    os.chdir(folder)
    here = Path(__file__).parents[2]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "spec", "xplstm")]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p).resolve() != here)]
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    plugin = Tests(work)
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--assert=plain")
    code = pytest.main([*options, *arguments], plugins=[plugin])
    # The specification fails a session that tests nothing, as one does that leaves its tests to forks.
    return plugin.failed or ("" if plugin.began else f"pytest ends with {code}")


def survey(folder: Path, tests: Tests, modules: Sequence[str]) -> list[Any] | str:
    """Run every test and note its time and the lines that it reaches, or return the test that fails."""
    import coverage

    paths = {str(folder / module): module for module in modules}
    tracer = coverage.Coverage(data_file=None, include=list(paths), config_file=False)
    if paths:
        tracer.start()
    times = []
    for number, item in enumerate(tests.items):
        if paths:
            tracer.switch_context(str(number))
        before = time.perf_counter()
        following = tests.items[number + 1] if number + 1 < len(tests.items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        times.append(time.perf_counter() - before)
        if tests.failed:
            return tests.failed
    reached: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    if paths:
        tracer.stop()
    for path, module in paths.items():
        for line, contexts in tracer.get_data().contexts_by_lineno(path).items():
            for context in contexts:
                if context:
                    reached[int(context)][module].append(line)
    return [Item(item.nodeid, times[n], reached[n]) for n, item in enumerate(tests.items)]


def order(items: Sequence[Item], change: Change) -> tuple[list[int], float]:
    """Return the tests that reach a change, one of each function first, and their time."""
    lines = set(range(change.line, change.last + 1))
    hits = [n for n, item in enumerate(items) if lines.intersection(item.lines.get(change.module, ()))]
    return in_turn(items, hits), sum(items[n].seconds for n in hits)


def in_turn(items: Sequence[Item], numbers: Sequence[int]) -> list[int]:
    met: dict[str, int] = defaultdict(int)
    ranks = {}
    for n in sorted(numbers, key=lambda n: items[n].seconds):
        function = items[n].name.partition("[")[0]
        ranks[n] = min(met[function], 2), items[n].seconds
        met[function] += 1
    return sorted(ranks, key=ranks.__getitem__)


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def replace(path: str, right: str, wrong: str) -> None:
    """Replace the code of every function of a module by the changed code."""
    new = dict(zip(*(codes(compile(text, path, "exec")) for text in (right, wrong)), strict=True))
    # tests/conftest.py freezes what exists after the collection, and frozen objects are not listed.
    gc.unfreeze()
    for found in gc.get_objects():
        if type(found) is types.FunctionType and found.__code__.co_filename == path:
            found.__code__ = new.get(found.__code__, found.__code__)


def import_changed(path: str, text: str) -> None:
    """Make later imports of a module read another text."""
    right = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> types.CodeType | None:
        return compile(text, path, "exec") if self.path == path else right(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def quick(
    folder: Path, arguments: Sequence[str], changes: Sequence[Change], say: Callable[..., None]
) -> tuple[list[Item], list[Change]]:
    """Judge changes in forks of one process; print each verdict, and return the tests and the survivors."""
    # A process that has imported the engine would never see another one at the same path.
    answer = forked(lambda: _quick(folder, arguments, changes, say), DAY)
    if isinstance(answer, str):
        msg = f"without a change: {answer}"
        raise SystemExit(msg)
    items, survivors = answer
    return [Item(*one) for one in items], [changes[n] for n in survivors]


def _quick(
    folder: Path, arguments: Sequence[str], changes: Sequence[Change], say: Callable[..., None]
) -> tuple[list[Item], list[int]] | str:
    """Do the work of `quick` in a separate process; survivors are numbers, because JSON has no objects."""
    found: list[Item] = []
    survivors: list[int] = []

    def work(tests: Tests) -> None:
        answer = forked(lambda: survey(folder, tests, sorted({c.module for c in changes})), DAY)
        if isinstance(answer, str):
            tests.failed = answer
            return
        found.extend(Item(*one) for one in answer)
        for at, change in enumerate(changes):
            numbers, seconds = order(found, change)
            right = (folder / change.module).read_text(encoding="utf-8")

            def one(numbers: list[int] = numbers, change: Change = change, right: str = right) -> str:
                replace(str(folder / change.module), right, change.text)
                return tests.run([tests.items[n] for n in numbers])

            verdict = forked(one, PATIENCE + 10 * seconds) if change.inside and numbers else ""
            if not verdict:
                survivors.append(at)
            say(at + 1, change, verdict)

    return collect(folder, arguments, work) or (found, survivors)


def whole(folder: Path, arguments: Sequence[str], items: Sequence[Item], change: Change) -> str:
    """Judge a change by all tests of the files that reach it, in a process that imports the changed module.

    In such a file a test may look at what an earlier one made the module do.
    """
    hits, _ = order(items, change)
    files = {file_of(items[n]) for n in hits}
    near = [n for n, item in enumerate(items) if not hits or file_of(item) in files]
    turn = list(dict.fromkeys([*hits, *in_turn(items, near)]))

    def one() -> str:
        if change.module.endswith(".py"):
            import_changed(str(folder / change.module), change.text)

        def work(tests: Tests) -> None:
            places = {item.nodeid: item for item in tests.items}
            tests.run([places[items[n].name] for n in turn if items[n].name in places])

        return collect(folder, arguments, work)

    return str(forked(one, PATIENCE + 10 * sum(items[n].seconds for n in turn)))


def file_of(item: Item) -> str:
    return item.name.partition("::")[0]
