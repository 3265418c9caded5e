"""Run the suite and write the results of each clause and implementation: ``python -m spec report``.

conformance.json contains all results. `spec.page` generates conformance.md from it, and `spec.picture`
conformance.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from spec import clauses, deviations, page, picture
from spec.cases import Case, case_of
from spec.judgement import BROKEN, OF_MEMORY, UNGIVEN, is_of_gradients
from spec.stdio import Stdio
from spec.subject import Adapter
from spec.subjects import ABORT, missing, named, subjects, takes_minutes

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
QUIET = ["--capture=sys", "-p", "no:cacheprovider"]
FILES = (
    "vectors",
    "behaviour",
    "kinks",
    "sized",
    "relations",
    "gru",
    "exact_bits",
    "int8",
    "side_effects",
    # Last, because a subject that accepts a wrong length may write outside its memory.
    "refusals",
)
"""What asks subjects; the other tests are of the suite itself."""
SHOWN = ("page", "report", "picture", "command", "__main__", "subjects")
"""Modules that no result depends on."""
PACKAGES = ("numpy", "array-api-compat", "array-api-strict", "torch", "jax", "dask", "cupy", "mpmath")


class Progress(Protocol):
    def update(self, n: int = 1) -> object: ...

    def close(self) -> object: ...


class Silent:
    """Progress display without tqdm."""

    def update(self, n: int = 1) -> None: ...

    def close(self) -> None: ...


def progress(total: int, unit: str = "cases") -> Progress:
    if importlib.util.find_spec("tqdm") is None:
        return Silent()
    # pytest captures the other stderr.
    bar: Progress = importlib.import_module("tqdm").tqdm(total=total, unit=f" {unit}", file=sys.__stderr__)
    return bar


class Outcome(NamedTuple):
    """Result of a case: passed, failed, deviates, not offered or not run."""

    case: Case
    status: str
    reason: str = ""
    broken: tuple[str, ...] = ()
    """The clauses not kept; the case's others were then not judged."""
    errors: dict[str, float] = {}  # noqa: RUF012
    """Largest error in u * s, by group and dtype."""
    ungiven: str = ""
    """Why the subject gave outputs alone; clauses about gradients were then not tested."""

    def of(self, clause: str) -> Outcome:
        """Return the result for one clause of the case."""
        if self.ungiven and is_of_gradients(clause) and clause not in self.broken:
            return self._replace(status="not offered", reason=self.ungiven)
        return self


def path_of(case: Case) -> Path:
    """Return the list of deviations of a case's subject, by default the list in the repository."""
    return deviations.path_of(case.subject.adapter.describe()["name"])


class Recorder:
    """Pytest plugin that records the result of every case."""

    def __init__(self, listed: Path | None = None) -> None:
        self.listed = listed
        self.cases: dict[str, Case] = {}
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []
        self.bar: Progress = Silent()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        found = {item.nodeid: case_of(item) for item in session.items}
        self.cases = {name: case for name, case in found.items() if case is not None}
        self.bar = progress(len(self.cases))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.outcomes.append(self.outcome(self.cases[report.nodeid], report))
            self.bar.update()

    def pytest_sessionfinish(self) -> None:
        self.bar.close()

    def outcome(self, case: Case, report: pytest.TestReport) -> Outcome:
        said = dict(report.user_properties)
        if hasattr(report, "wasxfail") and report.skipped:
            entry = deviations.find(self.listed or path_of(case), case.key)
            assert entry is not None
            return Outcome(case, "deviates", entry.reason, entry.clauses, ungiven=str(said.get(UNGIVEN, "")))
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            reason = report.longrepr[2].removeprefix("Skipped: ")
            return Outcome(case, "not offered" if report.when == "call" else "not run", reason)
        if report.failed:
            self.failures.append(f"{report.nodeid}\n{report.longreprtext}")
            return Outcome(case, "failed", f"{case.key} fails", tuple(str(said[BROKEN]).split(", ")))
        errors = {name: value for name, value in said.items() if isinstance(value, float)}
        return Outcome(case, "passed", errors=errors, ungiven=str(said.get(UNGIVEN, "")))


def run(chosen: Sequence[str], listed: Path | None = None) -> Recorder:
    """Run the suite on the selected subjects without output."""
    recorder = Recorder(listed)
    files = [str(FOLDER / f"test_{name}.py") for name in FILES]
    listing = [f"--deviations={listed}"] if listed else []
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*files, *chosen, *listing, *QUIET], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(said.getvalue())
    return recorder


def judged(clause: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the result of one clause from the cases of a subject."""
    of_clause = [o.of(clause) for o in outcomes if clause in (*o.case.clauses, *o.broken)]
    hidden = [o for o in of_clause if o.status in ("failed", "deviates") and clause not in o.broken]
    shown = [o for o in of_clause if o not in hidden]
    counts = Counter(o.status for o in shown)
    status = next((s for s in ("failed", "deviates", "passed", "not offered") if counts[s]), "not run")
    if status == "not offered" and hidden:
        status = "not run"
    reasons = {s: sorted({o.reason for o in shown if o.status == s}) for s in counts if s != "passed"}
    if status == "not run" and hidden:
        reasons[status] = sorted({f"its cases fail by {broken}" for o in hidden for broken in o.broken})
    if not of_clause:
        reasons[status] = ["no test yet"]
    errors: dict[str, float] = {}
    for outcome in shown:
        for name, value in outcome.errors.items():
            errors[name] = max(round(value, 2), errors.get(name, 0.0))
    return {
        "status": status,
        "cases": dict(sorted(counts.items())),
        "reasons": reasons,
        "errors": dict(sorted(errors.items())),
    }


def described(adapter: Adapter, asked: bool) -> dict[str, Any]:
    """Return the description of a subject, with the reason if it was not run."""
    missing = adapter.why_unavailable()
    return {**adapter.describe(), "not_run": missing if missing or asked else "it was not asked for"}


def digest(name: str, adapter: Adapter) -> str:
    """Return a hash of all that the results depend on: suite, adapter, code of xplstm, list, versions."""
    about = adapter.describe()
    files = {FOLDER / f"test_{f}.py" for f in FILES} | {*FOLDER.glob("vectors*/*"), clauses.SPEC}
    files |= {p for p in FOLDER.glob("*.py") if not p.stem.startswith("test_") and p.stem not in SHOWN}
    files |= {Path(inspect.getfile(c)) for c in type(adapter).__mro__ if c is not object}
    if about["name"] == "xplstm":
        # In a clone, the code may change without the version.
        found_at = importlib.util.find_spec(about["name"])
        for folder in (found_at and found_at.submodule_search_locations) or ():
            files |= {*Path(folder).rglob("*.py"), *Path(folder).rglob("*.so")}
    files.add(deviations.path_of(about["name"]))
    given = [name, about, adapter.why_unavailable(), versions()]
    found = hashlib.sha256(json.dumps(given).encode())
    for path in sorted(files):
        found.update(path.read_bytes() if path.exists() else b"")
    return found.hexdigest()


def of_program(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a subject that runs in another process."""
    why = "the subject runs in another process, which gets numbers and no arrays"
    result = {"status": "not offered", "cases": {}, "reasons": {"not offered": [why]}, "errors": {}}
    return results | {clause: result for clause in OF_MEMORY if clause in results}


class Part(NamedTuple):
    """Results of a subject for every clause, and the failures that are not in a list."""

    results: dict[str, Any]
    failures: list[str]


def part(name: str, adapter: Adapter, kept: Path, chosen: Sequence[str], listed: Path | None) -> Part:
    """Run one subject, or read its results from an earlier run if nothing has changed since."""
    path, wanted = kept / f"{name.replace(':', '-')}.json", digest(name, adapter)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["digest"] == wanted and not found["failures"]:
            return Part(found["results"], [])
    recorder = run(chosen, listed)
    known = clauses.clauses(clauses.SPEC.read_text(encoding="utf-8"))
    results = {clause: judged(clause, recorder.outcomes) for clause in known}
    if isinstance(adapter, Stdio) or name in ABORT or "--isolated" in chosen:
        results = of_program(results)
    if adapter.why_unavailable() is not None:
        results = {}
    text = json.dumps({"digest": wanted, "results": results, "failures": recorder.failures})
    path.write_text(text, encoding="utf-8")
    return Part(results, recorder.failures)


def made(adapters: dict[str, Adapter], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the complete report of all adapters, with results of the selected ones."""
    prose = clauses.SPEC.read_text(encoding="utf-8")
    found = clauses.clauses(prose)
    about = {name: described(a, name in results) for name, a in adapters.items()}
    return {
        "specification": clauses.version(prose),
        "host": {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"},
        "packages": versions(),
        "clauses": {c.id: {"level": c.level, "status": c.status, "text": c.text} for c in found.values()},
        "subjects": about,
        "results": {name: of_subject for name, of_subject in results.items() if of_subject},
    }


def versions() -> dict[str, str]:
    found = {name: importlib.util.find_spec(name.replace("-", "_")) for name in PACKAGES}
    return {name: importlib.metadata.version(name) for name, spec in found.items() if spec}


def write(report: dict[str, Any], folder: Path) -> None:
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (folder / "conformance.json").write_text(text, encoding="utf-8")
    (folder / "conformance.svg").write_text(picture.drawn(report), encoding="utf-8")
    (folder / "conformance.md").write_text(page.rendered(report), encoding="utf-8")
    prose = clauses.SPEC.read_text(encoding="utf-8")
    anchors = {"target": page.PLAIN_TARGET} if page.is_of_program(report) else {}
    (folder / "clauses.md").write_text(page.with_anchors(prose, **anchors), encoding="utf-8")


def main(arguments: Sequence[str], prog: str = "python -m spec report") -> int:
    """Run and write; return 1 if a case outside the lists fails, or a named subject cannot run."""
    what = (
        "Run the suite and write the result of each clause: conformance.md, .svg and .json, and clauses.md."
    )
    parser = argparse.ArgumentParser(prog=prog, description=what)
    parser.add_argument(
        "--subject",
        action="append",
        help="only these; by default all except xplstm on JAX and Dask, which take minutes",
    )
    parser.add_argument("--stdio", metavar="COMMAND", help="test only a program that answers JSON lines")
    parser.add_argument("--isolated", action="store_true", help="run each subject in a separate process")
    parser.add_argument("--deviations", type=Path, help="list of known deviations of the subject")
    parser.add_argument(
        "--kept",
        type=Path,
        metavar="FOLDER",
        help="store results; run only changed subjects",
    )
    out = DOCS if DOCS.is_dir() else Path()
    parser.add_argument("--out", type=Path, default=out, help=f"folder of the files (default: {out})")
    options = parser.parse_args(arguments)
    unusable = options.deviations and deviations.why_unusable(options.deviations)
    if unusable:
        parser.error(unusable)
    if options.stdio is not None:
        program = Stdio(options.stdio)
        why_not = program.why_unavailable()
        if why_not is not None:
            parser.error(why_not)
        adapters: dict[str, Adapter] = {"stdio": program}
        chosen = {"stdio": [f"--stdio={options.stdio}"]}
    else:
        quick = [name for name, adapter in subjects().items() if not takes_minutes(adapter)]
        names = list(named(options.subject)) if options.subject else quick
        more = ["--isolated"] if options.isolated else []
        adapters, chosen = subjects() | named(names), {name: [f"--subject={name}", *more] for name in names}
    options.out.mkdir(parents=True, exist_ok=True)  # an unusable folder is an error before minutes of tests
    with contextlib.ExitStack() as stack:
        kept = options.kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept.mkdir(parents=True, exist_ok=True)
        parts = {
            name: part(name, adapters[name], kept, given, options.deviations)
            for name, given in chosen.items()
        }
    write(made(adapters, {name: found.results for name, found in parts.items()}), options.out)
    failures = [failure for found in parts.values() for failure in found.failures]
    failures += [f"{name} cannot run: {reason}" for name, reason in missing(options.subject or ()).items()]
    print(*failures, f"wrote {options.out}/conformance.json and .md", sep="\n\n")
    return 1 if failures else 0
