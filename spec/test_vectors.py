"""Every record against every subject, in float64 and float32."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from spec.adapter import Adapter, Arrays, Refused, Unsupported
from spec.records import RECORDS, Record, arrays, errors, named

LAYERS = named("layer", "valid")
MODULES = named("module", "valid")
REFUSALS = named("module", "invalid")

pytestmark = pytest.mark.parametrize("dtype", ["float64", "float32"])


@cache
def run(subject: Adapter, op: str, name: str, dtype: str) -> tuple[Arrays, Arrays]:
    """What went in and what came out, once for all the tests that look at it."""
    record = RECORDS[name]
    inputs = arrays(record["inputs"], dtype)
    if op == "layer_vjp":
        inputs |= arrays(record["cotangents"], dtype)
    return inputs, subject.call(op, record["config"], dict(inputs))


def call(subject: Adapter, op: str, record: Record, dtype: str) -> tuple[Arrays, Arrays]:
    """Run a record; a subject that does not offer it is skipped with its own words."""
    try:
        return run(subject, op, record["name"], dtype)
    except Unsupported as reason:
        pytest.skip(str(reason))


def assert_within(got: Arrays, record: Record, group: str, dtype: str) -> None:
    missed = {k: e for k, e in errors(got, record[group], dtype).items() if e > record["tolerance"][group]}
    assert not missed, f"{record['name']}: errors in u * s: {missed}"


@pytest.mark.parametrize("name", LAYERS)
def test_layer(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    _, got = call(subject, "layer", record, dtype)
    assert got.keys() == record["outputs"].keys()
    assert_within(got, record, "outputs", dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    _, got = call(subject, "layer_vjp", record, dtype)
    assert got.keys() == record["outputs"].keys() | record["gradients"].keys()
    assert_within(got, record, "outputs", dtype)
    assert_within(got, record, "gradients", dtype)


@pytest.mark.parametrize("name", [name for name in LAYERS if RECORDS[name]["config"]["lengths"]])
def test_padding_is_exact(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    inputs, got = call(subject, "layer_vjp", record, dtype)
    for b, length in enumerate(record["config"]["lengths"]):
        assert not got["y"][length:, b].any()
        assert not got["dx"][length:, b].any()
        if length == 0:
            np.testing.assert_array_equal(got["h_n"][b], inputs["h_0"][b])
            np.testing.assert_array_equal(got["c_n"][b], inputs["c_0"][b])


@pytest.mark.parametrize("name", MODULES)
def test_module(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    _, got = call(subject, "module", record, dtype)
    assert got.keys() >= {"y", "h_n", "c_n"}
    assert_within(got, record, "outputs", dtype)


@pytest.mark.parametrize("name", [*LAYERS, *MODULES])
def test_inputs_are_not_written_to(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    inputs, _ = call(subject, "layer_vjp" if name in LAYERS else "module", record, dtype)
    before = arrays(record["inputs"] | record.get("cotangents", {}), dtype)
    for key, a in before.items():
        np.testing.assert_array_equal(inputs[key], a, err_msg=key)


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_shapes(subject: Adapter, name: str, dtype: str) -> None:
    with pytest.raises(Refused) as refusal:
        call(subject, "module", RECORDS[name], dtype)
    assert refusal.value.kind == "shape"
    named = [fault for fault in RECORDS[name]["errors"] if says(str(refusal.value), fault)]
    assert named, f"no parameter is named with its expected and given shape in: {refusal.value}"


def says(message: str, fault: Record) -> bool:
    """Whether one line of `message` holds the parameter's name and both of its shapes."""
    shapes = [r"\D+".join(map(str, fault[key])) + r"\b" for key in ("expected", "given")]
    return any(
        re.search(rf"\b{fault['argument']}\b", line) and all(re.search(rf"\b{s}", line) for s in shapes)
        for line in message.splitlines()
    )
