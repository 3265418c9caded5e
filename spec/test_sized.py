"""Calls of every size and pair of options, from seeds, against every subject."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from spec.calls import CASES, cost, expected, faults, given
from spec.corner_mutants import MUTANTS as CORNERS
from spec.plausible_mutants import MUTANTS as PLAUSIBLE
from spec.sized_mutants import MUTANTS, RIGHT, Call
from spec.subject import Adapter, Arrays, Unsupported

WRONG = MUTANTS | PLAUSIBLE | CORNERS
CHEAPEST = sorted(CASES, key=cost)
IN_HALVES = [
    n for n, c in CASES.items() if n.startswith(("size-", "between-i", "between-b", "ragged-b")) and c.T < 5
]
BOTH = pytest.mark.parametrize("dtype", ["float64", "float32"])
NAMES = [pytest.param(name, marks=pytest.mark.clauses(*case.clauses)) for name, case in CASES.items()]


def answer(subject: Adapter, name: str, a: Arrays) -> Arrays:
    """With gradients where they are offered; the forward call else, and where they have no value."""
    case = CASES[name]
    forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    try:
        if case.gradients:
            return subject.call(f"{case.op}_vjp", case.config, dict(a))
    except Unsupported as reason:
        if case.draws:
            pytest.skip(str(reason))
    try:
        return subject.call(case.op, case.config, forward)
    except Unsupported as reason:
        pytest.skip(str(reason))


@BOTH
@pytest.mark.parametrize("name", NAMES)
def test_sizes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-NUM-001, XPL-NUM-002 and XPL-SEQ-006: from read-only inputs, which stay as they were."""
    a = given(name, dtype)
    got = answer(subject, name, a)
    said = faults(name, got, dtype, "dx" in got)
    assert not said, f"{name}: {'; '.join(said)}"
    before = given(name, dtype)
    for array in a:
        np.testing.assert_array_equal(a[array], before[array], err_msg=array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*IN_HALVES])
def test_sizes_in_half_precision(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-NUM-005: by the bounds of XPL-NUM-001 in units of half precision, of few steps."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    got = answer(subject, name, given(name, dtype))
    said = faults(name, got, dtype, "dx" in got)
    assert not said, f"{name}: {'; '.join(said)}"


@pytest.mark.parametrize("name", ["square"])
def test_a_call_remembers_nothing_of_the_one_before(subject: Adapter, name: str) -> None:
    """XPL-SEQ-002: of the same arrays with another state comes another result."""
    a = given(name, "float32")
    forward = {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
    case = CASES[name]
    try:
        subject.call(case.op, case.config, forward | {"h_0": -a["h_0"], "c_0": -a["c_0"]})
        got = subject.call(case.op, case.config, dict(forward))
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert not faults(name, got, "float32", gradients=False)
    assert np.abs(expected(name, "float32")["y"]).max() > 0


@pytest.mark.parametrize("mutant", WRONG)
def test_a_wrong_lstm_is_found(mutant: str) -> None:
    """Each dies in some case in float64, where the right one passes all; the cheapest cases come first."""
    assert any(_misses(name, WRONG[mutant]) for name in CHEAPEST)


@cache
def _drawn_once(name: str) -> Arrays:
    return given(name, "float64")


def _misses(name: str, call: Call) -> bool:
    case, a = CASES[name], _drawn_once(name)
    op = f"{case.op}_vjp"
    with np.errstate(all="ignore"):
        return bool(faults(name, call(op, case.config, dict(a)), "float64", case.gradients))


def test_the_right_one_passes() -> None:
    assert not [name for name in CASES if _misses(name, RIGHT.call)]
