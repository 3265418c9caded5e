"""Select the subjects: ``pytest spec --subject NAME``, or the first parts of a name, such as xplstm:numpy."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spec import deviations
from spec.calls import CASES
from spec.cases import Case, Chosen, case_of
from spec.judgement import BROKEN, OF_MEMORY, UNGIVEN, Watched, broken
from spec.offers import Offered
from spec.questions import MOST, is_invalid_answer, say
from spec.served import Served
from spec.stdio import PATIENCE, Stdio
from spec.subject import Adapter
from spec.subjects import ABORT, is_slow, missing, named, required, subjects

FOLDER = Path(__file__).parent
CHOSEN = pytest.StashKey[list[Chosen]]()
KINDS = pytest.StashKey["Kinds"]()
EXPLAINED = pytest.StashKey[int]()
WRONG = "diagnosis"
# The sample runs for a slow or missing subject that was not named: a record of each kind, in float64.
SAMPLE = ("cell", "mask-holes", "stacked-bidirectional-projection", "variant-everything")
# These relations run for a subject that is secondary to another one.
FEW = ("layer-lengths-reverse", "module-two-by-two-lengths", "gru-two-directions")
SECOND = ("numpy_readonly", "array_api_strict", "torch")
# Of the calls of these tests, such a subject runs one of PART, and none of more steps than LONG.
PART, LONG = 8, 500
IN_PART = (
    *("test_sizes", "test_sizes_in_half_precision"),
    *("test_gru_sizes", "test_gru_sizes_in_half_precision", "test_gru_record"),
    *("test_results_stay_as_they_are", "test_the_place_of_each_number_is_read"),
    *(
        "test_wrong_shape_is_refused",
        "test_refusal_names_the_parameter",
        "test_a_missing_parameter_is_refused",
    ),
)
BY_NAME = "from spec.subjects import named\nsubject = named([{0!r}])[{0!r}]"
BY_COMMAND = "from spec.stdio import Stdio\nsubject = Stdio({0!r})"
# This library is plain NumPy but for the flag of its arrays, so a part of every test is enough.
READ_ONLY = "numpy_readonly"
# A run without a choice asks the other subjects one of so many sizes: there are thousands.
SIZES, SOME = ("test_sizes", "test_sizes_in_half_precision"), 3


class Kinds(NamedTuple):
    """Properties of the selected subjects that collection needs, computed once: some need a trial call."""

    absent: set[str]
    """Names of those that are slow or missing."""
    second: set[str]
    """Names of those whose code another subject runs on plain NumPy, or of slower kernels than `native`."""
    read_only: set[str]
    """Names of those on NumPy arrays that cannot be written to."""
    deviations: dict[str, Path]
    """Lists of what each does otherwise, by name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("spec").addoption
    add("--subject", action="append", help="test only this subject: xplstm:numpy, torch, or module:class")
    add("--stdio", metavar="COMMAND", help="test only a program that answers JSON lines")
    add("--isolated", action="store_true", help="run each named subject in a separate process")
    add("--patience", metavar="SECONDS", type=float, default=PATIENCE, help="time limit of an answer")
    add("--deviations", metavar="FILE", type=Path, help="list of known deviations of the subject")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clauses(*ids): clauses of SPEC.md beyond those in the docstring")
    config.addinivalue_line("markers", "slow: tests the specification itself, with wrong LSTMs")
    # The subjects are selected once, so that all tests share the cached answers of a subject.
    config.stash[CHOSEN] = chosen(config)
    config.stash[KINDS] = kinds_of(config)


def chosen(config: pytest.Config) -> list[Chosen]:
    command, names = config.getoption("--stdio"), config.getoption("--subject")
    listed: Path | None = config.getoption("--deviations")
    patience = config.getoption("--patience")
    program = None if command is None else Stdio(command, patience)
    reasons = (listed and deviations.why_unusable(listed), program and program.why_unavailable())
    for why_not in filter(None, reasons):
        raise pytest.UsageError(why_not)
    if program:
        return [Chosen("stdio", Offered(program), BY_COMMAND.format(command))]
    try:
        found = named(names) if names else subjects()
    except LookupError as error:
        raise pytest.UsageError(error.args[0]) from None
    isolated = config.getoption("--isolated")
    if isolated and not names:
        msg = "--isolated needs --subject: each subject gets a process of its own"
        raise pytest.UsageError(msg)
    alone = [name for name in found if names and (isolated or name in ABORT)]
    found |= {name: Offered(Served(name, found[name], patience)) for name in alone}
    return [Chosen(name, adapter, BY_NAME.format(name)) for name, adapter in found.items()]


def kinds_of(config: pytest.Config) -> Kinds:
    absent, second, read_only, kernels, lists = set(), set(), set(), {}, {}
    for name, adapter, _ in config.stash[CHOSEN]:
        about = adapter.describe()
        if is_slow(adapter) or adapter.why_unavailable() is not None:
            absent.add(name)
        if about["name"] == "xplstm" and about["library"] in SECOND:
            second.add(name)
            read_only |= {name} if about["library"] == READ_ONLY else set()
        elif about["name"] == "xplstm" and about["library"] == "numpy" and name not in absent:
            kernels[about["kernel"]] = name
        given: Path | None = config.getoption("--deviations")
        lists[name] = given or deviations.path_of(about["name"])
    if "native" in kernels:
        second |= {*kernels.values()} - {kernels["native"]}
    return Kinds(absent, second, read_only, lists)


def is_named(config: pytest.Config) -> bool:
    """Return whether the command selects the subjects."""
    return bool(config.getoption("--subject") or config.getoption("--stdio"))


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None]:
    """Pass the subjects to each test, but create no items beyond the sample, because they are many."""
    if "subject" not in metafunc.fixturenames:
        return (yield)
    found, kinds = metafunc.config.stash[CHOSEN], metafunc.config.stash[KINDS]
    params = [pytest.param(c, id=c.name, marks=pytest.mark.backend(library_of(c))) for c in found]
    metafunc.parametrize("subject", params, indirect=True)
    yield
    if not is_named(metafunc.config):
        test = metafunc.function.__name__
        kept = [call for call in metafunc._calls if not beyond_the_sample(test, call.params, kinds)]
        # pytest creates no item without a subject.
        metafunc._calls = kept or metafunc._calls[:1]


def library_of(chosen: Chosen) -> str:
    """Return the library of a subject; a program gets no request before its test."""
    return "stdio" if chosen.name == "stdio" else str(chosen.adapter.describe()["library"])


@cache
def watched(adapter: Adapter) -> Watched:
    """Return the same object for all tests of a subject, which cache its answers."""
    return Watched(adapter)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Adapter:
    """Return an implementation under test. If it cannot run, skip the test, or fail if it is required."""
    adapter = watched(request.param.adapter)
    adapter.declined = ""
    reason = adapter.why_unavailable()
    if reason is not None and adapter.describe()["library"] in required():
        pytest.fail(f"XPLSTM_REQUIRE asks for it: {reason}")
    if reason is not None:
        pytest.skip(reason)
    return adapter


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Record a measured value; record_property causes a warning with --junitxml, which is an error."""
    properties = request.node.user_properties
    return lambda name, value: properties.append((name, value))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the known deviations of a subject, which fail if they pass.

    If the command names a subject, run only its tests, and not those of the suite.
    """
    cases, kinds = {item: case_of(item) for item in items}, config.stash[KINDS]
    if is_named(config):
        others = {item for item, case in cases.items() if case is None and item.path.parent == FOLDER}
    else:
        others = {
            item
            for item, case in cases.items()
            if case and beyond_the_sample(case.test, {"subject": case.subject, **case.values}, kinds)
        }
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]
    # All tests of a call run one after another: a process computes the expected result once, and calls a
    # subject once.
    files = {path: n for n, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], name_of(cases[item])))
    for item in items:
        case = cases[item]
        entry = case and deviations.find(kinds.deviations[case.subject.name], case.key)
        if entry:
            item.add_marker(pytest.mark.xfail(reason=entry.reason, strict=True))


def name_of(case: Case | None) -> str:
    """Return the name of the call that a case tests."""
    return str(case.values.get("name", "")) if case else ""


def beyond_the_sample(test: str, params: Mapping[str, Any], kinds: Kinds) -> bool:
    """Return whether a case runs only if the command names its slow, secondary or missing subject."""
    subject, name = params["subject"].name, params.get("name", SAMPLE[0])
    absent, second = subject in kinds.absent, subject in kinds.second
    if test in ("test_relation", "test_gru_relation"):
        # A relation has several calls, each of which takes seconds with a slow subject.
        return absent or (second and name not in FEW)
    if second and (test in IN_PART or ("name" in params and subject in kinds.read_only)):
        return absent or not_drawn(name, PART) or (name in CASES and CASES[name].T > LONG)
    if test in SIZES and not absent:
        return not_drawn(name, SOME)
    return absent and (name not in SAMPLE or params.get("dtype", "float64") != "float64")


def not_drawn(name: str, parts: int) -> bool:
    """Return whether a call is outside the one of so many `parts` that runs."""
    return zlib.crc32(name.encode()) % parts > 0


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the session if a named subject cannot run, or supports none of the cases."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        reporter.write_line("\nnothing was tested: no case has a name that matches")
    if not is_named(session.config) or reporter is None or exitstatus or session.config.option.collectonly:
        return
    chosen = [adapter for _, adapter, _ in session.config.stash[CHOSEN]]
    if missing(session.config.getoption("--subject") or ()) or all(one.why_unavailable() for one in chosen):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    if not any(reporter.stats.get(outcome) for outcome in ("passed", "xfailed")):
        reporter.write_line("\nnothing was tested: the subject supports none of the requested cases")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure its clauses, the program that reproduces it, and its entry for a list of deviations.

    Add to a success, or a known deviation, why the subject gave no gradients.
    """
    report = yield
    case = case_of(item)
    declined = watched(case.subject.adapter).declined if case is not None else ""
    if call.when == "call" and not report.failed and declined:
        report.user_properties.append((UNGIVEN, declined))
    if report.failed and case is not None:
        clauses = broken(case.clauses, call.excinfo and call.excinfo.value)
        if isinstance(case.subject.adapter, Offered):
            clauses = tuple(c for c in clauses if c not in OF_MEMORY) or clauses
        report.user_properties.append((BROKEN, ", ".join(clauses)))
        done = item.config.stash.get(EXPLAINED, 0)
        judgeable = call.when == "call" and not is_invalid_answer(call.excinfo and call.excinfo.value)
        said = say(case) if done < MOST and judgeable else ""
        if said:
            item.config.stash[EXPLAINED] = done + 1
            report.sections.append((WRONG, said))
        report.sections.append(("program that reproduces it", case.snippet))
        report.sections.append(("entry for a deviation list", f"{case.key}: REASON ({', '.join(clauses)})"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each selected subject that cannot run, and count the diagnoses of the failures."""
    if is_named(terminalreporter.config):
        for name, adapter, _ in terminalreporter.config.stash[CHOSEN]:
            reason = adapter.why_unavailable()
            if reason is not None:
                terminalreporter.section(f"{name} was not tested: it cannot run", red=True)
                terminalreporter.write_line(reason)
    failed = terminalreporter.stats.get("failed", [])
    said = [text for report in failed for title, text in report.sections if title == WRONG]
    if not said:
        return
    terminalreporter.section(f"{WRONG} of {len(said)} of {len(failed)} failures")
    counts = Counter(text.partition(" (explains")[0] for text in said).most_common()
    # One call can hide a fault that another shows: a wrong LSTM that explains the numbers comes first.
    for text, times in sorted(counts, key=lambda one: not one[0].startswith("as if"))[:5]:
        terminalreporter.write_line(f"{times} x {text}")
