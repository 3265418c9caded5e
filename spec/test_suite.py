"""Test the suite itself: subjects, lists of deviations, cases and the report."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from spec import clauses, deviations, page, picture, report
from spec.adapter import HOMES, LIBRARIES, Xplstm
from spec.cases import CLAUSE, Case, Chosen
from spec.records import RECORDS, arrays
from spec.subject import Config, Unsupported
from spec.subjects import PEERS, named, subjects
from spec.test_stdio import PYTEST

FOLDER = Path(__file__).parent
COLLECT = """\
import sys, pytest
from spec.cases import case_of

class Collected:
    def pytest_collection_finish(self, session):
        for case in filter(None, map(case_of, session.items)):
            print("case", case.subject.name, case.key, *case.clauses, sep="|")

sys.exit(pytest.main([*sys.argv[1:], "--collect-only", "-qq", "-s", "-p", "no:cacheprovider"], [Collected()]))
"""


@cache
def collected() -> dict[str, list[str]]:
    """Return the clauses of each case that pytest collects for a subject, which every subject shares."""
    run = subprocess.run(
        [sys.executable, "-c", COLLECT, str(FOLDER), "--subject=torch"],
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line.split("|") for line in run.stdout.splitlines() if line.startswith("case|")]
    return {key: said for _, _, key, *said in lines}


def test_every_case_has_a_clause_that_exists() -> None:
    known = clauses.clauses(clauses.SPEC.read_text(encoding="utf-8"))
    cases = collected()
    assert len(cases) > 100
    for key, said in cases.items():
        assert said, key
        assert {*said} <= known.keys(), key


def test_every_list_belongs_to_a_peer_and_names_cases_that_exist() -> None:
    paths = sorted(deviations.FOLDER.glob("*.txt"))
    assert {path.stem for path in paths} <= {*PEERS}
    for path in paths:
        assert deviations.read(path)
        assert deviations.stale(path, {*collected()}) == []


def test_entry_for_a_case_that_does_not_exist_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("test_outputs * no-such-record: because (XPL-SEQ-001)\n", encoding="utf-8")
    assert deviations.stale(path, {*collected()}) == ["test_outputs * no-such-record"]


@pytest.mark.parametrize(
    "line", ["test_outputs float32 cell", "test_outputs float32 cell: because", ": why (XPL-SEQ-001)"]
)
def test_entry_without_reason_or_clause_is_an_error(line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not of the form"):
        deviations.read(path)


def test_two_entries_for_a_case_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("test_a * b: c (XPL-SEQ-001)\ntest_a c b: c (XPL-SEQ-001)\n", encoding="utf-8")
    with pytest.raises(ValueError, match="several entries"):
        deviations.find(path, "test_a c b")


def test_a_name_means_whole_parts() -> None:
    assert {name.split(":")[1] for name in named(["xplstm:numpy"])} == {"numpy"}
    assert named(["torch"]).keys() == {"torch"}
    assert [*named(["spec.peers.torch:Subject"])] == ["spec.peers.torch:Subject"]
    with pytest.raises(LookupError, match="'xplstm:num' cannot be found: neither"):
        named(["xplstm:num"])


OURS = ("xplstm:numpy:reference", "xplstm:numpy_readonly:numpy_inplace")


@pytest.mark.parametrize("name", [*PEERS, *OURS])
@pytest.mark.parametrize(
    ("config", "more"), [({"zoneout_of_tomorrow": "0.5"}, {}), ({}, {"weight_of_tomorrow": None})]
)
def test_what_a_subject_does_not_know_it_does_not_offer(name: str, config: Config, more: Config) -> None:
    record = RECORDS["cell"]
    given = arrays(record["inputs"], "float32")
    with pytest.raises(Unsupported, match="of_tomorrow"):
        subjects()[name].call("layer", record["config"] | config, given | dict.fromkeys(more, given["x"]))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_mask_reaches_a_module(gradients: bool) -> None:
    """Compare a module of one layer and direction with the layer, for masks with holes and without."""
    record = RECORDS["mask-holes"]
    given = arrays(record["inputs"] | (record["cotangents"] if gradients else {}), "float64")
    subject, suffix = subjects()[OURS[0]], "_vjp" if gradients else ""
    layer = subject.call(f"layer{suffix}", record["config"], dict(given))
    states = {name: given[name][None] for name in ("h_0", "c_0", "dh_n", "dc_n") if name in given}
    named = {f"{n}_l0" if n.startswith(("weight", "bias")) else n: a for n, a in given.items()} | states
    config = record["config"] | {"num_layers": 1, "bidirectional": False}
    module = subject.call(f"module{suffix}", {k: v for k, v in config.items() if k != "reverse"}, named)
    assert any(not all(row) for row in record["config"]["mask"])
    np.testing.assert_array_equal(module["y"], layer["y"])
    np.testing.assert_array_equal(module["c_n"][0], layer["c_n"])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kernel", HOMES)
def test_a_kernel_that_is_left_out_knows_no_such_arrays(kernel: str, library: str) -> None:
    adapter, name = Xplstm(library, kernel), f"xplstm:{library}:{kernel}"
    assert (name in subjects()) == (library in HOMES[kernel])
    if name not in subjects() and adapter.why_unavailable() is None:
        record = RECORDS["cell"]
        with pytest.raises(Unsupported, match=f"got {adapter.backend} arrays"):
            adapter.call("layer", record["config"], arrays(record["inputs"], "float32"))


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*PYTEST, "-rs", *arguments]
    whole = {**os.environ, "PYTEST_ADDOPTS": "", "XPLSTM_REQUIRE": "", **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, env=whole)


@pytest.mark.parametrize("more", [(), ("--subject=xplstm:numpy:reference",), ("--isolated",)])
def test_a_named_subject_that_cannot_run_fails_with_its_reason(more: tuple[str, ...]) -> None:
    # With this variable the subject cannot run, even if it is installed.
    cases = ("spec/test_vectors.py", "--subject=keras", "-k", "test_outputs and cell-float32")
    skipped = run(*cases, *more, KERAS_BACKEND="numpy")
    assert skipped.returncode == 1, skipped.stdout
    assert "keras was not tested: it cannot run" in skipped.stdout
    assert re.search(r"SKIPPED \[1\].*(KERAS_BACKEND is numpy|not installed)", skipped.stdout)


def test_required_subject_that_cannot_run_fails_each_case() -> None:
    cases = ("spec/test_vectors.py", "--subject=keras", "-k", "test_outputs and cell-float32")
    failed = run(*cases, KERAS_BACKEND="numpy", XPLSTM_REQUIRE="keras")
    assert failed.returncode == 1, failed.stdout
    assert "XPLSTM_REQUIRE asks for it" in failed.stdout


def test_results_go_into_a_file_of_junit(tmp_path: Path) -> None:
    file = tmp_path / "results.xml"
    case = ("spec/test_vectors.py", "--subject=xplstm:numpy:reference", "-k", "test_outputs and cell-float32")
    found = run(*case, f"--junitxml={file}")
    assert found.returncode == 0, found.stdout
    assert 'name="outputs float32"' in file.read_text(encoding="utf-8")


def test_a_report_fails_where_a_named_subject_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    monkeypatch.setattr(report, "part", lambda *_: report.Part({}, []))
    given = ["--subject=xplstm:numpy:reference", "--out", str(tmp_path)]
    assert report.main(given) == 0
    assert report.main([*given, "--subject=keras"]) == 1
    assert "keras cannot run" in capsys.readouterr().out


def test_one_subject_of_a_group_is_enough() -> None:
    found = run("spec/test_vectors.py", "--subject=xplstm", "-k", "test_outputs and cell-float32 and numpy")
    assert found.returncode == 0, found.stdout
    assert re.search(r"\d passed", found.stdout)
    if importlib.util.find_spec("cupy") is None:
        assert "xplstm:cupy:reference was not tested: it cannot run" in found.stdout


def test_unknown_subject_is_an_error_that_names_the_known() -> None:
    found = run("spec/test_vectors.py", "--subject=pytroch")
    assert found.returncode == 4
    assert "'pytroch' cannot be found: neither module:class nor one of xplstm:numpy" in found.stderr


MAKE = """\
import sys
from spec import report
report.FILES = ("vectors", "behaviour")
sys.exit(report.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report on one kernel, without the longer tests, and return its folder."""
    folder = tmp_path_factory.mktemp("report")
    command = [sys.executable, "-c", MAKE, "--subject=xplstm:numpy:reference", "--out", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def test_report_says_what_every_clause_and_subject_came_to(made: Path) -> None:
    found = json.loads((made / "conformance.json").read_text(encoding="utf-8"))
    known = clauses.clauses(clauses.SPEC.read_text(encoding="utf-8"))
    assert found["clauses"].keys() == known.keys()
    assert found["subjects"].keys() == subjects().keys()
    reference = found["results"]["xplstm:numpy:reference"]
    assert reference.keys() == known.keys()
    assert reference["XPL-CELL-003"]["status"] == "passed"
    assert 0 < reference["XPL-NUM-001"]["errors"]["outputs float32"] < 100
    assert found["subjects"]["torch"]["not_run"] in ("it was not asked for", "not installed: torch")
    assert (made / "conformance.md").read_text(encoding="utf-8") == page.rendered(found)
    assert (made / "conformance.svg").read_text(encoding="utf-8") == picture.drawn(found)


def test_picture_counts_what_passes_of_what_is_asked() -> None:
    statuses = ("passed", "deviates", "passed", "not offered")
    names = ("XPL-SEQ-001", "XPL-SEQ-002", "XPL-NUM-001", "XPL-GRU-001")
    found = {
        "clauses": dict.fromkeys(names),
        "subjects": {"a": {"name": "a<b", "version": "1", "not_run": None}},
        "results": {"a": {n: {"status": s, "reasons": {}} for n, s in zip(names, statuses, strict=True)}},
    }
    svg = ElementTree.fromstring(picture.drawn(found))
    said = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert said == ["sequences", "GRU", "numbers", "a<b", "1 / 2", "–", "1 / 1"]
    grounds = [element.get("fill") for element in svg.iter("{http://www.w3.org/2000/svg}rect")]
    assert grounds[1:] == [c.ground for c in (picture.PARTLY, picture.ABSENT, picture.KEPT)]


def test_an_implementation_without_results_deviates_from_nothing_known() -> None:
    found = {
        "clauses": {"XPL-SEQ-001": {}},
        "subjects": {name: {"name": name, "not_run": None} for name in "ab"},
        "results": {"a": {"XPL-SEQ-001": {"status": "passed", "reasons": {}}}},
    }
    said = page.by_implementation(found, ("failed", "deviates"))
    assert said == "### a\n\nNothing.\n\n### b\n\nIt was not run."


def test_results_are_kept_until_what_they_depend_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    def run(_chosen: list[str], _listed: Path | None) -> report.Recorder:
        runs.append(1)
        recorder = report.Recorder()
        recorder.outcomes = [outcome("passed", "XPL-SEQ-001")]
        recorder.failures = failures
        return recorder

    monkeypatch.setattr(report, "run", run)
    monkeypatch.setattr(deviations, "FOLDER", tmp_path)
    failures: list[str] = []
    torch = subjects()["torch"]
    monkeypatch.setattr(type(torch), "why_unavailable", lambda _: None)

    def asked() -> report.Part:
        return report.part("torch", torch, tmp_path, "--subject=torch", None)

    assert asked().results["XPL-SEQ-001"]["status"] == "passed"
    assert asked() == asked()
    assert len(runs) == 1
    (tmp_path / "torch.txt").write_text("test_a b: c (XPL-SEQ-001)\n", encoding="utf-8")
    failures.append("test_a fails")
    assert asked().failures == failures
    assert asked().failures == failures
    assert len(runs) == 3, "a run with failures is repeated"


def outcome(status: str, *of: str, reason: str = "", broken: tuple[str, ...] = ()) -> report.Outcome:
    chosen = Chosen("x", subjects()["torch"], "")
    case = Case("test_a", "spec.test_a", chosen, {}, of)
    return report.Outcome(case, status, reason, broken, {"outputs float32": 2.0})


def test_report_joins_the_cases_of_a_clause() -> None:
    both = ("XPL-A-001", "XPL-B-001")
    passed, lacking = outcome("passed", *both), outcome("not offered", *both, reason="no masks")
    deviates = outcome("deviates", *both, reason="it does", broken=("XPL-B-001",))
    assert report.judged("XPL-A-001", [passed, lacking])["status"] == "passed"
    assert report.judged("XPL-A-001", [lacking])["reasons"] == {"not offered": ["no masks"]}
    assert report.judged("XPL-B-001", [passed, deviates])["status"] == "deviates"
    # A case that deviates does not count for the clauses that its entry does not name.
    hidden = report.judged("XPL-A-001", [deviates, lacking])
    assert hidden["status"] == "not run"
    assert hidden["reasons"]["not run"] == ["its cases fail by XPL-B-001"]
    assert report.judged("XPL-A-001", [deviates, passed])["status"] == "passed"
    assert report.judged("XPL-B-001", [passed, outcome("failed", *both, broken=both)])["status"] == "failed"
    assert report.judged("XPL-C-001", [passed])["reasons"] == {"not run": ["no test yet"]}


def test_folder_of_the_report_is_there_before_the_suite_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "report"

    def run(chosen: list[str], listed: Path | None) -> report.Recorder:
        assert chosen == ["--subject=xplstm:numpy:reference"]
        assert listed is None
        assert folder.is_dir()
        return report.Recorder()

    monkeypatch.setattr(report, "run", run)
    assert report.main(["--subject", "xplstm:numpy:reference", "--out", str(folder)]) == 0
    assert (folder / "conformance.json").exists()


def test_published_report_is_of_the_present_specification() -> None:
    found = json.loads((report.DOCS / "conformance.json").read_text(encoding="utf-8"))
    prose = clauses.SPEC.read_text(encoding="utf-8")
    texts = {c.id: c.text for c in clauses.clauses(prose).values()}
    assert found["specification"] == clauses.version(prose), "run python -m spec report"
    assert {clause: about["text"] for clause, about in found["clauses"].items()} == texts
    assert (report.DOCS / "conformance.md").read_text(encoding="utf-8") == page.rendered(found)
    assert (report.DOCS / "conformance.svg").read_text(encoding="utf-8") == picture.drawn(found)
    failing = [
        s for s, results in found["results"].items() for r in results.values() if r["status"] == "failed"
    ]
    assert failing == []


def test_published_clauses_are_those_of_the_specification() -> None:
    published = (report.DOCS / "clauses.md").read_text(encoding="utf-8")
    prose = clauses.SPEC.read_text(encoding="utf-8")
    assert published == page.with_anchors(prose), "run python -m spec report"
    assert all(f"({clause.lower()})=\n**{clause}** " in published for clause in clauses.clauses(prose))


def test_published_report_knows_the_deviations_of_today() -> None:
    found = json.loads((report.DOCS / "conformance.json").read_text(encoding="utf-8"))
    for name, results in found["results"].items():
        said = {
            (reason, clause)
            for clause, result in results.items()
            for reason in result["reasons"].get("deviates", ())
        }
        path = deviations.path_of(found["subjects"][name]["name"])
        assert said == {(e.reason, c) for e in deviations.read(path) for c in e.clauses}


def test_clauses_of_a_docstring_are_found() -> None:
    assert CLAUSE.findall("XPL-SEQ-001 and XPL-EXACT-002.") == ["XPL-SEQ-001", "XPL-EXACT-002"]
