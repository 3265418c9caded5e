"""Check that the suite names what is wrong: it recognises each wrong LSTM by its numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from spec import calls, test_sized
from spec.calls import CASES, expected, given
from spec.cases import Case, Chosen
from spec.diagnosis import CALLS_WITH, PLACES, WRONGS, explain
from spec.kills import finds
from spec.offers import Offered
from spec.questions import PASSES, say
from spec.sized_mutants import Wrong
from spec.stdio import Stdio
from spec.subject import Arrays, Config
from spec.test_stdio import PYTEST
from spec.wrong import LSTM
from spec.wrong_cell import Exact
from spec.wrong_gru import GRU

DEEP = "two-directions-3-p0"
DEEPER = (DEEP, "options-14-reset", "threes-51")
"""Calls of three layers and two directions; the last two have lengths, masks or resets."""
WITH = {
    "calls with a projection": ("noise-of-all-resets",),
    "calls with lengths": ("resets-lengths-two-directions",),
    "calls with a mask": ("options-3-reset",),
}
"""Calls that show faults of `CALLS_WITH`."""
PLACED = [name for name in WRONGS if name.endswith((*PLACES, *CALLS_WITH))]
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
    with np.errstate(all="ignore"):
        shown = WITH.get(name.rpartition(", in ")[2], DEEPER)
        assert any(finds(calls, call, name, given(call, "float64")) for call in shown)


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


@pytest.mark.parametrize(
    ("test", "module", "values"),
    [
        ("test_relation", "spec.test_relations", {"law": "directions", "name": "module-two-directions"}),
        (
            "test_the_place_of_each_number_is_read",
            "spec.test_side_effects",
            {"name": "two-directions-2-p2", "gradients": False},
        ),
        (
            "test_outputs",
            "spec.test_vectors",
            {"name": "stacked-bidirectional-projection", "dtype": "float64"},
        ),
    ],
)
def test_a_wrong_lstm_is_recognised_in_cases_of_several_calls(
    test: str, module: str, values: dict[str, object]
) -> None:
    fault = "sigmoid for g, in the forward direction of two"
    subject = Chosen("wrong", Wrong(WRONGS[fault].call), "")
    assert f"as if: {fault} (explains all but " in say(Case(test, module, subject, values, ()))


class Once:
    """LSTM whose first result is wrong."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, op: str, config: Config, a: Arrays) -> Arrays:
        self.asked += 1
        return {n: v + (self.asked == 1) for n, v in LSTM().call(op, config, a).items()}


def test_a_fault_that_depends_on_earlier_calls_is_called_so() -> None:
    subject, values = Chosen("wrong", Wrong(Once()), ""), {"name": "square", "dtype": "float64"}
    with pytest.raises(AssertionError):
        test_sized.test_sizes(subject.adapter, **values)
    assert say(Case("test_sizes", "spec.test_sized", subject, values, ())) == PASSES


class Process:
    """Program that keeps the state of an earlier call of the same sizes."""

    def __init__(self) -> None:
        self.known: set[object] = set()

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(("name", "version", "library", "kernel"), "wrong")

    def why_unavailable(self) -> str | None:
        return None

    def abandon(self) -> None:
        self.known = set()

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        key = op, *(v.shape for v in arrays.values())
        kept, self.known = key in self.known, self.known | {key}
        return {n: v + kept for n, v in LSTM().call(op, config, arrays).items()}


def test_a_program_is_started_again_for_the_repeated_case() -> None:
    subject = Chosen("wrong", Offered(cast(Stdio, Process())), "")
    case = Case("test_sizes", "spec.test_sized", subject, {"name": "square", "dtype": "float64"}, ())
    assert say(case) == PASSES
    assert say(case) == PASSES


def broken_down(_op: str, _config: Config, _a: Arrays) -> Arrays:
    msg = "out of memory"
    raise MemoryError(msg)


def test_an_error_of_the_subject_is_the_diagnosis() -> None:
    subject = Chosen("wrong", Wrong(broken_down), "")
    case = Case("test_sizes", "spec.test_sized", subject, {"name": "square", "dtype": "float64"}, ())
    assert say(case) == "the call ends in MemoryError: out of memory"


def test_calls_that_must_be_refused_are_not_explained() -> None:
    subject = Chosen("wrong", Wrong(LSTM("sigmoid for g").call), "")
    case = Case(
        "test_length_out_of_range_is_refused", "spec.test_behaviour", subject, {"wrong": 6}, ("XPL-ERR-003",)
    )
    assert say(case) == ""


def test_right_numbers_are_not_explained() -> None:
    case = CASES[DEEP]
    a = dict(given(DEEP, "float64"))
    assert explain(f"{case.op}_vjp", case.config, a, expected(DEEP, "float64"), "float64") == ""


class Narrow(Exact):
    """Arithmetic that stores every product and sum in a narrower dtype."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.rounded(a @ b)

    def rounded(self, v: np.ndarray, ulps: float = 1.0) -> np.ndarray:  # noqa: ARG002 - of the estimate alone
        return v.astype(self.dtype).astype("float64")


@pytest.mark.parametrize(("dtype", "narrow"), [("float64", "float32"), ("float32", "float16")])
def test_the_rounding_errors_of_a_narrower_dtype_are_named(dtype: str, narrow: str) -> None:
    case, a = CASES[DEEP], dict(given(DEEP, dtype))
    got = LSTM(arithmetic=Narrow(narrow)).call(case.op, case.config, a)
    said = explain(case.op, case.config, a, got, dtype)
    assert said == f"as if: computed in {narrow} (the error has the size of its rounding errors)"


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
