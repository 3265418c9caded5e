"""Every record against every subject, in float64 and float32."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from spec.records import RECORDS, VALID, Record, arrays, errors, named
from spec.subject import Adapter, Arrays, Refused, Unsupported

GRADIENTS = [name for name in VALID if "gradients" in RECORDS[name]]
PADDED = [
    name for name in GRADIENTS if RECORDS[name]["config"].get("lengths") or "mask" in RECORDS[name]["config"]
]
REFUSALS = named("module", "invalid")

pytestmark = pytest.mark.parametrize("dtype", ["float64", "float32"])


@cache
def run(subject: Adapter, name: str, gradients: bool, dtype: str) -> tuple[Arrays, Arrays]:
    """What went in and what came out, once for all the tests that look at it."""
    record = RECORDS[name]
    inputs = arrays(record["inputs"], dtype)
    if gradients:
        inputs |= arrays(record["cotangents"], dtype)
    op = record["op"] + "_vjp" * gradients
    return inputs, subject.call(op, record["config"], dict(inputs))


def call(subject: Adapter, name: str, gradients: bool, dtype: str) -> tuple[Arrays, Arrays]:
    """Run a record; a subject that does not offer it is skipped with its own words."""
    try:
        return run(subject, name, gradients, dtype)
    except Unsupported as reason:
        pytest.skip(str(reason))


def assert_within(got: Arrays, record: Record, group: str, dtype: str) -> None:
    missed = {k: e for k, e in errors(got, record[group], dtype).items() if e > record["tolerance"][group]}
    assert not missed, f"{record['name']}: errors in u * s: {missed}"


@pytest.mark.parametrize("name", [name for name in VALID if "dropout" not in RECORDS[name]["config"]])
def test_outputs(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    _, got = call(subject, name, False, dtype)
    assert got.keys() >= {"y", "h_n", "c_n"}
    assert_within(got, record, "outputs", dtype)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    _, got = call(subject, name, True, dtype)
    assert got.keys() == record["outputs"].keys() | record["gradients"].keys()
    assert_within(got, record, "outputs", dtype)
    assert_within(got, record, "gradients", dtype)


@pytest.mark.parametrize("name", PADDED)
def test_padding_is_exact(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-SEQ-003, XPL-SEQ-007 and XPL-GRAD-002: zeros are exact, and so is a state that nothing changes."""
    record = RECORDS[name]
    inputs, got = call(subject, name, True, dtype)
    exists = existing(record["config"], *inputs["x"].shape[:2])
    assert not got["y"][~exists].any()
    assert not got["dx"][~exists].any()
    for b in np.flatnonzero(~exists.any(axis=0)):
        np.testing.assert_array_equal(got["h_n"][..., b, :], inputs["h_0"][..., b, :])
        np.testing.assert_array_equal(got["c_n"][..., b, :], inputs["c_0"][..., b, :])


def existing(config: Record, T: int, B: int) -> np.ndarray:
    """(T, B), true where a step exists."""
    if "mask" in config:
        return np.asarray(config["mask"])
    return np.arange(T)[:, None] < np.asarray(config["lengths"] or [T] * B)[None, :]


@pytest.mark.parametrize("name", VALID)
def test_inputs_are_not_written_to(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-SEQ-006."""
    record = RECORDS[name]
    gradients = name in GRADIENTS
    inputs, _ = call(subject, name, gradients, dtype)
    before = arrays(record["inputs"] | (record["cotangents"] if gradients else {}), dtype)
    for key, a in before.items():
        np.testing.assert_array_equal(inputs[key], a, err_msg=key)


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_shapes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-ERR-001 and XPL-ERR-002."""
    with pytest.raises(Refused) as refusal:
        call(subject, name, False, dtype)
    assert refusal.value.kind == "shape"
    found = [fault for fault in RECORDS[name]["errors"] if says(str(refusal.value), fault)]
    assert found, f"no parameter is named with its expected and given shape in: {refusal.value}"


def says(message: str, fault: Record) -> bool:
    """Whether one line of `message` holds the parameter's name and both of its shapes."""
    shapes = [r"\D+".join(map(str, fault[key])) + r"\b" for key in ("expected", "given")]
    return any(
        re.search(rf"\b{fault['argument']}\b", line) and all(re.search(rf"\b{s}", line) for s in shapes)
        for line in message.splitlines()
    )
