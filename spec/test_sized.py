"""Make calls of every size and pair of options, from seeds, with every subject."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from spec import margins, paths, sized, witnesses
from spec.calls import CASES, PARTS, expected, faults, gates, given, misses, shows_gates
from spec.judgement import require_none
from spec.process import AT_FIRST, modes
from spec.sized import Change
from spec.sized_mutants import RIGHT, Call, Wrong
from spec.subject import Adapter, Arrays, Config, Unsupported

FOUND_BY: dict[str, str] = json.loads(witnesses.FILE.read_text(encoding="utf-8"))
IN_HALVES = [n for n, c in CASES.items() if n.startswith(("between-i", "between-b", "ragged-b")) and c.T < 5]
IN_HALVES += sized.grid()
IN_HALVES += ["layer-norm-reverse", "mask-module", "merge-mean-one-layer", "peepholes-reverse", "steps-of-19"]
IN_HALVES += ["projection-lengths-reverse", "resets-reverse", "dropout-two-directions", "four-layers"]
IN_HALVES += ["large-resets", "large-projection", "large-mask-module", "steps-70", "no-bias-module"]
IN_HALVES += ["functions", "functions-module", "zoneout-reverse", "coupled-module", "gate-clip-reverse"]
IN_HALVES += ["cell-clip-module", "peepholes-two-directions", "projection-module", "dropout-sum"]
IN_HALVES += ["noise-recurrent", "noise-zoneout", "noise-input-module", "noise-weight-module"]
IN_HALVES += ["lengths-231-two-directions"]
IN_HALVES += ["resets-lengths-two-directions", "mask-module-one-direction", "two-directions-2-p2"]


# A vector of float32 may lose a NaN that one of float64 keeps.
BY_TURNS = (paths.CASES.keys() | margins.CASES.keys()) - margins.numbers().keys() - paths.not_finite().keys()


def in_turn(name: str) -> tuple[str, ...]:
    """Return both dtypes, or one of them by turns for calls that differ only in a size."""
    both = ("float64", "float32")
    # A function that saturates too early far from zero differs only in float64.
    by_turns = name in BY_TURNS and not name.endswith(("-far", "-farther"))
    return (both[zlib.crc32(name.encode()) % 2],) if by_turns else both


NAMES = [
    pytest.param(name, dtype, marks=pytest.mark.clauses(*case.clauses))
    for name, case in CASES.items()
    for dtype in in_turn(name)
]


def answer(subject: Adapter, name: str, a: Arrays) -> Arrays:
    """Return results with gradients if they are offered and have a value, and otherwise without."""
    case = CASES[name]
    try:
        if case.gradients:
            return subject.call(f"{case.op}_vjp", case.config, dict(a))
    except Unsupported as reason:
        if case.draws:
            pytest.skip(str(reason))
    return forward(subject, name, a)


def forward(subject: Adapter, name: str, a: Arrays) -> Arrays:
    """Return the results of the call without gradients."""
    case = CASES[name]
    try:
        return subject.call(
            case.op, case.config, {n: v for n, v in a.items() if n not in ("dy", "dh_n", "dc_n")}
        )
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("name", "dtype"), NAMES)
def test_sizes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-NUM-001, XPL-NUM-002, XPL-SEQ-006, XPL-REL-015: call with and without gradients."""
    case, frozen = CASES[name], given(name, dtype)
    free = {n: v.copy() for n, v in frozen.items()}
    # One of the two calls gets read-only inputs, the other gets writable ones.
    first, second = (frozen, free) if dtype == "float64" else (free, frozen)
    got = answer(subject, name, first)
    said = faults(name, got, dtype, "dx" in got)
    require_none(said, name)
    if "dx" in got and not case.draws:
        said = faults(name, forward(subject, name, second), dtype, gradients=False)
        require_none(said, f"{name}, without gradients")
    assert modes() == AT_FIRST
    before = given(name, dtype)
    for array in before:
        np.testing.assert_array_equal(free[array], before[array], err_msg=array)
        np.testing.assert_array_equal(frozen[array], before[array], err_msg=array)


GATES = [
    pytest.param(name, dtype) for name, case in CASES.items() if shows_gates(case) for dtype in in_turn(name)
]


@pytest.mark.parametrize(("name", "dtype"), GATES)
def test_gates_of_sizes_if_shown(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-CELL-006."""
    got = forward(subject, name, given(name, dtype))
    wanted = gates(name, dtype)
    if got.keys().isdisjoint(wanted):
        pytest.skip("it shows no gates")
    said = misses(CASES[name], wanted, got, dtype, gradients=False)
    require_none(said, name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*IN_HALVES])
def test_sizes_in_half_precision(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-NUM-005: apply the bounds of XPL-NUM-001 to few steps, with gradients and without."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    a = {n: v.copy() for n, v in given(name, dtype).items()}
    got = answer(subject, name, a)
    said = faults(name, got, dtype, "dx" in got)
    require_none(said, name)
    if "dx" in got and not CASES[name].draws:
        said = faults(name, forward(subject, name, a), dtype, gradients=False)
        require_none(said, f"{name}, without gradients")
    assert [n for n, v in given(name, dtype).items() if v.tobytes() != a[n].tobytes()] == []


@pytest.mark.parametrize("name", ["square"])
def test_a_call_remembers_nothing_of_the_one_before(subject: Adapter, name: str) -> None:
    """XPL-SEQ-002: change only the state, and get another result."""
    a = given(name, "float32")
    forward(subject, name, a | {"h_0": -a["h_0"], "c_0": -a["c_0"]})
    got = forward(subject, name, a)
    assert not faults(name, got, "float32", gradients=False)
    assert np.abs(expected(name, "float32")["y"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("mutant", witnesses.WRONG)
def test_a_wrong_lstm_is_found(mutant: str) -> None:
    """Detect each by a call of `test_sizes`, which the right LSTMs pass there."""
    name = FOUND_BY.get(mutant)
    assert name, "a new wrong LSTM: python -m spec.witnesses"
    assert witnesses.tells(name, mutant), f"{name} finds it no more: python -m spec.witnesses"


def off_without_gradients(factor: float) -> Call:
    """Return the right LSTM with y multiplied by a factor in calls without gradients."""

    def call(op: str, config: Config, a: Arrays) -> Arrays:
        got = RIGHT.call(op, config, a)
        return got | {"y": got["y"] * (1 if op.endswith("_vjp") else factor)}

    return call


def test_a_wrong_path_of_half_precision_is_found() -> None:
    test_sizes_in_half_precision(Wrong(off_without_gradients(1)), "mask-module", "float16")
    with pytest.raises(AssertionError, match="without gradients: y misses"):
        test_sizes_in_half_precision(Wrong(off_without_gradients(1.25)), "mask-module", "float16")


WRONG_GATES: dict[str, tuple[Change, str]] = {
    "i and f": (lambda g: g.update(i=g["f"], f=g["i"]), "between-i784-module"),
    "g of many units": (lambda g: g["g"][..., 260:].fill(0), "units-of-270-module"),
    "o of many entries": (lambda g: g["o"][:, 60:].fill(0), "module-sizes-i23-h53-b72"),
    "o a step late": (lambda g: g.update(o=np.roll(g["o"], 1, 0)), "as-many-steps-as-rows"),
    "f of coupled gates": (lambda g: g["f"].fill(0), "one-layer-coupled"),
}


@pytest.mark.parametrize("fault", WRONG_GATES)
def test_wrong_gates_are_found(fault: str) -> None:
    change, name = WRONG_GATES[fault]

    def call(wrong: bool) -> Call:
        shown = {n: v.copy() for n, v in gates(name, "float64").items()}
        if wrong:
            change(shown)
        return lambda op, config, a: RIGHT.call(op, config, a) | shown

    test_gates_of_sizes_if_shown(Wrong(call(wrong=False)), name, "float64")
    with pytest.raises(AssertionError, match="misses by"):
        test_gates_of_sizes_if_shown(Wrong(call(wrong=True)), name, "float64")


def test_no_two_calls_have_one_name() -> None:
    assert len(CASES) == sum(map(len, PARTS))


def test_no_call_is_named_for_what_is_gone() -> None:
    assert FOUND_BY.keys() <= witnesses.WRONG.keys()
