"""Check that the suite names what is wrong: it recognises each wrong LSTM by its numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spec.calls import CASES, expected, faults, given
from spec.cases import Case, Chosen
from spec.diagnosis import PLACES, WRONGS, explain
from spec.questions import say
from spec.sized_mutants import Wrong
from spec.test_stdio import PYTEST
from spec.wrong import LSTM
from spec.wrong_gru import GRU

DEEP = "two-directions-3-p0"
PLACED = [name for name in WRONGS if name.endswith(PLACES)]
SUBJECT = """\
from spec.sized_mutants import Wrong
from spec.diagnosis import WRONGS

def Subject():
    return Wrong(WRONGS["gates figo, in the reverse direction"].call)
"""


def test_there_are_more_than_five_hundred_wrong_lstms() -> None:
    assert len(WRONGS) > 500
    assert len({wrong.family for wrong in WRONGS.values()}) > 20


@pytest.mark.parametrize("name", PLACED)
def test_a_fault_at_one_place_is_found(name: str) -> None:
    case, a = CASES[DEEP], given(DEEP, "float64")
    with np.errstate(all="ignore"):
        got = WRONGS[name].call(f"{case.op}_vjp", case.config, dict(a))
    assert faults(DEEP, got, "float64", gradients=True)


RECOGNISED = [
    "gates figo, in the reverse direction",
    "sigmoid for g, in the forward direction of two",
    "weight_hh transposed, in every layer but the first",
]


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_wrong_lstm_is_recognised(name: str) -> None:
    case, a = CASES[DEEP], given(DEEP, "float32")
    with np.errstate(all="ignore"):
        got = WRONGS[name].call(case.op, case.config, dict(a))
    said = explain(case.op, case.config, dict(a), {n: v.astype("float32") for n, v in got.items()}, "float32")
    assert said.startswith("as if: "), said
    assert name in said, said


@pytest.mark.parametrize(
    ("test", "name"), [("test_gru_sizes", "gru-resets-before"), ("test_gru_record", "gru-reset-after-ragged")]
)
@pytest.mark.parametrize("fault", ["gates zrn", "reset gate at the other place", "path through z cut"])
def test_a_wrong_gru_is_recognised(test: str, name: str, fault: str) -> None:
    """Recognise it from the call of a case that failed."""
    subject = Chosen("wrong", Wrong(GRU(fault).call), "")
    said = say(Case(test, "spec.test_gru", subject, {"name": name, "dtype": "float32"}, ()))
    assert said.startswith(f"as if: {fault} (explains all but "), said


def test_right_numbers_are_not_explained() -> None:
    case = CASES[DEEP]
    a = dict(given(DEEP, "float64"))
    assert explain(f"{case.op}_vjp", case.config, a, expected(DEEP, "float64"), "float64") == ""


def test_numbers_of_no_wrong_lstm_are_called_so() -> None:
    case, a = CASES[DEEP], dict(given(DEEP, "float64"))
    got = LSTM().call(case.op, case.config, a)
    said = explain(case.op, case.config, a, {n: np.sin(5 * v) for n, v in got.items()}, "float64")
    assert said.startswith(f"none of {len(WRONGS)} wrong implementations explains the numbers"), said


def test_a_failing_run_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "wrong_subject.py").write_text(SUBJECT, encoding="utf-8")
    root = Path(__file__).parent.parent
    command = [
        *PYTEST,
        "spec/test_sized.py",
        "-k",
        "two-directions-2-p0",
        "--subject",
        "wrong_subject:Subject",
    ]
    env = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "diagnosis of 2 of 2 failures" in found.stdout
    assert "gates figo, in the reverse direction" in found.stdout
