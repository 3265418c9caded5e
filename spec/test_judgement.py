"""Test which clauses LSTMs without gradients, with wrong gradients and with wrong outputs break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spec.judgement import Fault, Missed, broken, require_none

ROOT = Path(__file__).parent.parent
SUBJECTS = """\
from spec.subject import Unsupported
from spec.wrong import LSTM


class Right(LSTM):
    def describe(self):
        return dict.fromkeys(("name", "version", "library", "kernel"), "mine")

    def why_unavailable(self):
        return None

    def call(self, op, config, arrays):
        got = super().call(op, {"bidirectional": False, **config}, arrays)
        return {name: a.astype(arrays["x"].dtype) for name, a in got.items()}


class Forward(Right):
    def call(self, op, config, arrays):
        if op.endswith("_vjp"):
            raise Unsupported("outputs alone")
        return super().call(op, config, arrays)


class Padded(Forward):
    def call(self, op, config, arrays):
        got = super().call(op, config, arrays)
        return {name: a * float("nan") for name, a in got.items()} if config.get("lengths") else got


class Off(Right):
    def call(self, op, config, arrays):
        got = super().call(op, config, arrays)
        return {name: a * 1.25 if name == self.array else a for name, a in got.items()}


class OffGradient(Off):
    array = "dh_0"


class OffOutput(Off):
    array = "c_n"
"""
JUDGE = """\
import json, sys
from pathlib import Path
from spec import questions, report
questions.say = lambda case: ""  # comparisons with wrong LSTMs take long
report.FILES = ("vectors", "sized")
listed = Path(sys.argv[2]) if sys.argv[2:] else None
cases = "float64 and (variant-peepholes-float or square or nan-past-module)"
ran = report.run([f"--subject=mine:{sys.argv[1]}", "-k", cases], listed)
clauses = sorted({clause for o in ran.outcomes for clause in (*o.case.clauses, *o.broken)})
print(json.dumps({clause: report.judged(clause, ran.outcomes) for clause in clauses}))
"""
LISTED = "test_sizes * nan-past-module: the padding is read (XPL-SEQ-004)\n"
OF_OUTPUTS = ("XPL-CELL-002", "XPL-SEQ-001", "XPL-VAR-001", "XPL-SEQ-004")
OF_GRADIENTS = ("XPL-GRAD-001", "XPL-GRAD-002", "XPL-VAR-017")


def judged(mine: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the result of each clause for a subject of `SUBJECTS`."""
    (folder / "mine.py").write_text(SUBJECTS, encoding="utf-8")
    path = f"{folder}{os.pathsep}{ROOT}"
    ran = subprocess.run(
        [sys.executable, "-c", JUDGE, mine, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_an_lstm_without_gradients_passes_no_clause_about_them(tmp_path: Path) -> None:
    found, whole = judged("Forward", tmp_path), judged("Right", tmp_path)
    assert {whole[clause]["status"] for clause in (*OF_OUTPUTS, *OF_GRADIENTS)} == {"passed"}
    assert {found[clause]["status"] for clause in OF_OUTPUTS} == {"passed"}
    assert {found[clause]["status"] for clause in OF_GRADIENTS} == {"not offered"}
    assert found["XPL-GRAD-001"]["reasons"] == {"not offered": ["outputs alone"]}


def test_a_deviation_of_outputs_hides_no_missing_gradients(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(LISTED, encoding="utf-8")
    found = judged("Padded", tmp_path, str(tmp_path / "list.txt"))
    assert found["XPL-SEQ-004"]["status"] == "deviates"
    assert found["XPL-GRAD-002"]["status"] == "not offered"
    assert found["XPL-GRAD-002"]["reasons"] == {"not offered": ["outputs alone"]}


@pytest.mark.parametrize(
    ("mine", "wrong", "right"),
    [("OffGradient", OF_GRADIENTS, OF_OUTPUTS), ("OffOutput", OF_OUTPUTS, OF_GRADIENTS)],
    ids=["dh_0", "c_n"],
)
def test_outputs_and_gradients_fail_apart(
    mine: str, wrong: tuple[str, ...], right: tuple[str, ...], tmp_path: Path
) -> None:
    found = judged(mine, tmp_path)
    failed = {clause for clause, result in found.items() if result["status"] == "failed"}
    assert failed >= {"XPL-NUM-001", *wrong}
    assert failed.isdisjoint({"XPL-NUM-002", *right})


CASE = ("XPL-NUM-001", "XPL-NUM-002", "XPL-REL-015", "XPL-SEQ-006", "XPL-VAR-001")


@pytest.mark.parametrize(
    ("clauses", "faults", "expected"),
    [
        (CASE, [Fault("y", "misses")], {"XPL-NUM-001", "XPL-VAR-001"}),
        (CASE, [Fault("dx", "misses")], {"XPL-NUM-001", "XPL-GRAD-001"}),
        (CASE, [Fault("dx", "misses"), Fault("y", "misses")], {"XPL-NUM-001", "XPL-VAR-001", "XPL-GRAD-001"}),
        (CASE, [Fault("y", "is float32", has_numbers=False)], {*CASE}),
        (("XPL-GRU-002", "XPL-GRU-004"), [Fault("dx", "misses")], {"XPL-GRU-002", "XPL-GRU-004"}),
    ],
)
def test_only_the_clauses_of_wrong_arrays_are_broken(
    clauses: tuple[str, ...], faults: list[Fault], expected: set[str]
) -> None:
    with pytest.raises(Missed, match="here: ") as error:
        require_none(faults, "here")
    assert {*broken(clauses, error.value)} == expected


def test_an_error_without_arrays_breaks_each_clause() -> None:
    assert broken(CASE, AssertionError("a setting")) == CASE
    require_none([], "here")
