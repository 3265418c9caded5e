"""Test every record with every subject, in float64, float32 and, where it has a bound, half precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pytest

from spec.judgement import is_of_gradients, require_none
from spec.records import RECORDS, VALID, Record, arrays, broken, errors, named, too_large
from spec.subject import Adapter, Arrays, Refused, Unsupported

Note: TypeAlias = Callable[[str, object], None]

GATES = "XPL-CELL-006"
PRINTED = "XPL-CELL-007"
"""Clauses that these tests do not judge, because they ask for a call of their own; see test_behaviour.py."""

BOTH = pytest.mark.parametrize("dtype", ["float64", "float32"])
HALF = {"float16": "fp16", "bfloat16": "bfloat16"}
"""Profile by dtype."""


def draws(name: str) -> bool:
    """Return whether the record draws random numbers, which calls without gradients do not."""
    return not RECORDS[name]["config"].keys().isdisjoint(("dropout", "noise"))


def padded(name: str) -> bool:
    config = RECORDS[name]["config"]
    return bool(config.get("lengths") or config.get("mask"))


WITH_GRADIENTS = [name for name in VALID if "gradients" in RECORDS[name]]
WITHOUT_DRAWS = [name for name in VALID if not draws(name)]


def cases(names: Sequence[str], clauses: Callable[[str], Sequence[str]]) -> Callable[..., Any]:
    """Return a test for each record, with the clauses of the record that the test judges."""
    values = [pytest.param(name, marks=pytest.mark.clauses(*clauses(name))) for name in names]
    return pytest.mark.parametrize("name", values)


def of_outputs(name: str) -> list[str]:
    return [c for c in RECORDS[name]["clauses"] if not is_of_gradients(c) and c not in (GATES, PRINTED)]


def of_gradients(name: str) -> list[str]:
    """Return the clauses of a record that only a call with gradients tests."""
    return [c for c in RECORDS[name]["clauses"] if is_of_gradients(c) or draws(name)]


def of_padding(name: str) -> list[str]:
    return ["XPL-SEQ-007" if RECORDS[name]["config"].get("mask") else "XPL-SEQ-003"]


def whole(name: str) -> list[str]:
    return [*RECORDS[name]["clauses"]]


def nothing(_: str) -> list[str]:
    return []


@cache
def run(subject: Adapter, name: str, gradients: bool, dtype: str) -> tuple[Arrays, Arrays]:
    """Return the inputs and the results of a record, cached for all tests that use them."""
    record = RECORDS[name]
    inputs = arrays(record["inputs"], dtype)
    if gradients:
        inputs |= arrays(record["cotangents"], dtype)
    op = record["op"] + "_vjp" * gradients
    return inputs, subject.call(op, record["config"], dict(inputs))


def call(subject: Adapter, name: str, gradients: bool, dtype: str) -> tuple[Arrays, Arrays]:
    """Run a record; skip the test with the reason of a subject that does not offer it."""
    try:
        return run(subject, name, gradients, dtype)
    except Unsupported as reason:
        pytest.skip(str(reason))


def call_either(subject: Adapter, name: str, gradients: bool, dtype: str) -> tuple[Arrays, Arrays]:
    """Run a record; use the outputs alone if there are no gradients and nothing is drawn."""
    try:
        return run(subject, name, gradients, dtype)
    except Unsupported:
        return call(subject, name, gradients and draws(name), dtype)


def assert_within(got: Arrays, record: Record, group: str, dtype: str, note: Note) -> None:
    allowed = record["tolerance"].get(HALF.get(dtype), record["tolerance"])[group]
    found = errors(got, record[group], dtype)
    note(f"{group} {dtype}", max(found.values()))
    require_none(too_large(got, record[group], dtype, allowed), record["name"])


@BOTH
@cases(WITHOUT_DRAWS, of_outputs)
def test_outputs(subject: Adapter, name: str, dtype: str, note: Note) -> None:
    """XPL-NUM-001."""
    _, got = call(subject, name, False, dtype)
    assert got.keys() >= {"y", "h_n", "c_n"}
    assert_within(got, RECORDS[name], "outputs", dtype, note)


@BOTH
@cases(WITH_GRADIENTS, of_gradients)
def test_gradients(subject: Adapter, name: str, dtype: str, note: Note) -> None:
    """XPL-GRAD-001 and XPL-NUM-001."""
    record = RECORDS[name]
    _, got = call(subject, name, True, dtype)
    assert got.keys() == record["outputs"].keys() | record["gradients"].keys()
    assert_within(got, record, "outputs", dtype, note)
    assert_within(got, record, "gradients", dtype, note)


def in_half(group: str, dtype: str) -> list[str]:
    """Return the records that have a bound for a group in half precision."""
    return [name for name in VALID if group in RECORDS[name]["tolerance"].get(HALF[dtype], {})]


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for dtype in HALF for name in in_half("outputs", dtype)]
)
def test_half_precision(subject: Adapter, name: str, dtype: str, note: Note) -> None:
    """XPL-NUM-005."""
    pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    gradients = name in in_half("gradients", dtype)
    _, got = call_either(subject, name, gradients or draws(name), dtype)
    assert_within(got, RECORDS[name], "outputs", dtype, note)
    if gradients and "dx" in got:
        assert_within(got, RECORDS[name], "gradients", dtype, note)


@BOTH
@cases(named("layer", "stress"), whole)
def test_stress(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-NUM-006: check properties of every LSTM where rounding errors grow too large for a comparison."""
    inputs, got = call(subject, name, False, dtype)
    assert not broken(inputs, got)


@BOTH
@cases([name for name in VALID if "i" in RECORDS[name]["outputs"]], nothing)
def test_gates_if_shown(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-CELL-006."""
    record = RECORDS[name]
    _, got = call(subject, name, False, dtype)
    gates = {gate: record["outputs"][gate] for gate in "ifgo"}
    if got.keys().isdisjoint(gates):
        pytest.skip("it shows no gates")
    found = errors(got, gates, dtype)
    assert found.keys() == gates.keys()
    assert max(found.values()) <= record["tolerance"]["outputs"], found


@BOTH
@cases([name for name in WITH_GRADIENTS if padded(name)], of_padding)
def test_padding_is_exact(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-GRAD-002: check that zeros are exact, and that a state without steps keeps its bits."""
    record = RECORDS[name]
    inputs, got = call_either(subject, name, True, dtype)
    exists = existing(record["config"], *inputs["x"].shape[:2])
    assert not got["y"][..., ~exists, :].any()
    assert "dx" not in got or not got["dx"][~exists].any()
    for b in np.flatnonzero(~exists.any(axis=0)):
        np.testing.assert_array_equal(got["h_n"][..., b, :], inputs["h_0"][..., b, :])
        np.testing.assert_array_equal(got["c_n"][..., b, :], inputs["c_0"][..., b, :])


def existing(config: Record, T: int, B: int) -> np.ndarray:
    """Return an array (T, B) that is true for the valid steps."""
    if "mask" in config:
        return np.asarray(config["mask"])
    return np.arange(T)[:, None] < np.asarray(config["lengths"] or [T] * B)[None, :]


@BOTH
@cases(VALID, nothing)
def test_inputs_are_not_written_to(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-SEQ-006."""
    record = RECORDS[name]
    gradients = name in WITH_GRADIENTS
    inputs, _ = call_either(subject, name, gradients, dtype)
    before = arrays(record["inputs"] | (record["cotangents"] if gradients else {}), dtype)
    for key in inputs.keys() & before.keys():
        a = before[key]
        np.testing.assert_array_equal(inputs[key], a, err_msg=key)


@BOTH
@cases(named("module", "invalid"), nothing)
def test_wrong_shapes_are_refused(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-ERR-002."""
    with pytest.raises(Refused):
        call(subject, name, False, dtype)


@BOTH
@cases(named("module", "invalid"), nothing)
def test_refused_with_the_shapes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-ERR-001."""
    with pytest.raises(Refused) as refusal:
        call(subject, name, False, dtype)
    assert refusal.value.kind == "shape"
    found = [fault for fault in RECORDS[name]["errors"] if says(str(refusal.value), fault)]
    assert found, f"no parameter is named with its expected and given shape in: {refusal.value}"


def says(message: str, fault: Record) -> bool:
    """Return whether one line of `message` contains the parameter's name and both of its shapes."""
    shapes = [r"\D+".join(map(str, fault[key])) + r"\b" for key in ("expected", "given")]
    return any(
        re.search(rf"\b{fault['argument']}\b", line) and all(re.search(rf"\b{s}", line) for s in shapes)
        for line in message.splitlines()
    )
