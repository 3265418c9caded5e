"""The GRU: its records and sizes against every subject, and the wrong GRUs that they find."""

from __future__ import annotations

import json
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec import gru
from spec.generate import digest, dumps
from spec.records import Record, arrays, errors
from spec.sized import ALLOWED, SIZES, distance
from spec.subject import Adapter, Arrays, Unsupported
from spec.test_vectors import existing
from spec.wrong_gru import FAULTS, GRU

FILES = sorted(gru.VECTORS.glob("*.json"))
RECORDS: dict[str, Record] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
BOTH = pytest.mark.parametrize("dtype", ["float64", "float32"])
NAMES = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.clauses(*r["clauses"])) for name, r in RECORDS.items()]
)
COTANGENTS = ("dy", "dh_n")
MARGIN = 100


def answer(subject: Adapter, config: Record, a: Arrays) -> Arrays:
    """With gradients where they are offered, else the outputs alone."""
    try:
        return subject.call("module_vjp", config, dict(a))
    except Unsupported:
        pass
    try:
        return subject.call("module", config, {n: v for n, v in a.items() if n not in COTANGENTS})
    except Unsupported as reason:
        pytest.skip(str(reason))


@BOTH
@NAMES
def test_gru_record(subject: Adapter, name: str, dtype: str) -> None:
    record = RECORDS[name]
    a = arrays(record["inputs"] | record["cotangents"], dtype)
    got = answer(subject, record["config"], a)
    missed: dict[str, float] = {}
    for group in ("outputs", "gradients"):
        found = errors(got, record[group], dtype)
        missed |= {n: e for n, e in found.items() if e > record["tolerance"][group]}
    assert not missed, f"{name}: errors in u * s: {missed}"
    assert got.keys() >= record["outputs"].keys()
    exists = existing(record["config"], *a["x"].shape[:2])
    assert not got["y"][~exists].any()
    for b in np.flatnonzero(~exists.any(axis=0)):
        np.testing.assert_array_equal(got["h_n"][:, b], a["h_0"][:, b])


def sizes() -> dict[str, tuple[Record, int, int]]:
    """Each size as I, H and B; two layers, two directions and both places of the reset gate by turns."""
    found = {}
    for n, H in enumerate(SIZES):
        I, B = SIZES[(5 * n + 3) % len(SIZES)], SIZES[(7 * n + 1) % len(SIZES)]
        shape = {"num_layers": 1 + (n % 3 == 0), "bidirectional": n % 4 == 1, "reset_after": n % 2 == 0}
        found[f"gru-i{I}-h{H}-b{B}"] = (gru.config_of(I, H, **shape), 3, B)
    for after in (True, False):
        config = gru.config_of(3, 4, reset_after=after)
        found[f"gru-steps-{after}"] = (config, 300, 2)
        found[f"gru-empty-{after}"] = (config | {"num_layers": 2}, 3, 0)
    return found


CALLS = sizes()


@cache
def given(name: str, dtype: str) -> Arrays:
    config, T, B = CALLS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    H, D, a = config["hidden_size"], 1 + config["bidirectional"], {}
    for k in range(config["num_layers"]):
        for suffix in ("", "_reverse")[:D]:
            wide = config["input_size"] if not k else D * H
            for kind, shape in (("weight_ih", (3 * H, wide)), ("weight_hh", (3 * H, H))):
                a[f"{kind}_l{k}{suffix}"] = rng.uniform(-1, 1, shape) / np.sqrt(shape[1])
            a |= {f"{kind}_l{k}{suffix}": rng.uniform(-1, 1, 3 * H) for kind in ("bias_ih", "bias_hh")}
    states = (config["num_layers"] * D, B, H)
    shapes = {"x": (T, B, config["input_size"]), "h_0": states, "dy": (T, B, D * H), "dh_n": states}
    found = {
        n: v.astype(dtype) for n, v in (a | {n: rng.uniform(-1, 1, s) for n, s in shapes.items()}).items()
    }
    for v in found.values():
        v.flags.writeable = False
    return found


@BOTH
@pytest.mark.parametrize("name", CALLS)
def test_gru_sizes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-GRU-002 and XPL-GRU-004."""
    config, a = CALLS[name][0], given(name, dtype)
    got = answer(subject, config, a)
    expected = GRU().call("module_vjp", config, a)
    wanted = expected if "dx" in got else {n: v for n, v in expected.items() if not n.startswith("d")}
    assert got.keys() >= wanted.keys()
    for tensor in wanted:
        v = got[tensor]
        assert (v.shape, str(v.dtype)) == (expected[tensor].shape, dtype), tensor
        missed = distance(v.astype("float64"), expected[tensor], dtype)
        assert missed <= ALLOWED["gradients" if tensor.startswith("d") else "outputs"], (tensor, missed)


def effect(record: Record, judge: GRU) -> float:
    """The largest error in the record's tolerances for float32."""
    a = arrays(record["inputs"] | record["cotangents"], "float64")
    with np.errstate(all="ignore"):
        got = {n: v.astype("float64") for n, v in judge.call("module_vjp", record["config"], a).items()}
    unit = 2.0**-24 / 2.0**-53
    found = [
        error / unit / record["tolerance"][group]
        for group in ("outputs", "gradients")
        for error in errors(got, record[group], "float64").values()
    ]
    return max(found)


@pytest.mark.parametrize("name", RECORDS)
def test_the_right_gru_passes(name: str) -> None:
    assert effect(RECORDS[name], GRU()) < 1e-3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gru_is_found(fault: str) -> None:
    assert max(effect(record, GRU(fault)) for record in RECORDS.values()) > MARGIN


@pytest.mark.parametrize("name", gru.BUILDERS)
def test_record_is_the_oracles(name: str) -> None:
    """The outputs, and gradients of two numbers of each array."""
    every = os.environ.get("SPEC_ALL") == "1"
    computed = json.loads(dumps(gru.built(name, lambda _, k: every or k in (0, 3))))
    published = RECORDS[name]
    assert computed["outputs"] == published["outputs"]
    assert computed["inputs"] == published["inputs"]
    for tensor, v in computed["gradients"].items():
        pairs = zip(v["data"], published["gradients"][tensor]["data"], strict=True)
        assert all(a in ("", b) for a, b in pairs), tensor


def test_files_have_the_pinned_hashes() -> None:
    lines = gru.PINS.read_text(encoding="ascii").splitlines()
    pinned = {name: pin for pin, name in (line.split() for line in lines)}
    assert pinned == {Path(path).name: digest(path) for path in FILES}


def test_every_clause_of_the_gru_has_a_record() -> None:
    said: set[Any] = {clause for record in RECORDS.values() for clause in record["clauses"]}
    assert said == {f"XPL-GRU-{n:03}" for n in range(1, 5)}
