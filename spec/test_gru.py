"""Test the records and sizes of the GRU with every subject, and the wrong GRUs that they detect."""

from __future__ import annotations

import json
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec import gru, gru_calls, gru_relations
from spec.calls import misses
from spec.diagnosis import WRONG_GRUS
from spec.generate import digest, dumps
from spec.gru_calls import CASES, expected, given
from spec.gru_mutants import MUTANTS
from spec.judgement import require_none
from spec.kills import finds
from spec.records import OF_GRUS as RECORDS
from spec.records import Record, arrays, errors, too_large
from spec.relations import Ask
from spec.sized_mutants import Wrong
from spec.subject import Adapter, Arrays, Unsupported
from spec.test_relations import hold
from spec.test_vectors import existing
from spec.wrong_gru import FAULTS, GRU

BOTH = pytest.mark.parametrize("dtype", ["float64", "float32"])
NAMES = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.clauses(*r["clauses"])) for name, r in RECORDS.items()]
)
COTANGENTS = ("dy", "dh_n")
MARGIN = 100


def answer(subject: Adapter, config: Record, a: Arrays) -> Arrays:
    """Return outputs with gradients if the subject offers them, and otherwise the outputs alone."""
    try:
        return subject.call("module_vjp", config, dict(a))
    except Unsupported:
        return forward(subject, config, a)


def forward(subject: Adapter, config: Record, a: Arrays) -> Arrays:
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
    for group in ("outputs", "gradients"):
        require_none(too_large(got, record[group], dtype, record["tolerance"][group]), name)
    assert got.keys() >= record["outputs"].keys()
    exists = existing(record["config"], *a["x"].shape[:2])
    assert not got["y"][~exists].any()
    for b in np.flatnonzero(~exists.any(axis=0)):
        np.testing.assert_array_equal(got["h_n"][:, b], a["h_0"][:, b])


CHEAPEST = sorted(CASES, key=lambda name: CASES[name].work)
NAMES_OF_CALLS = [
    pytest.param(name, ("float64", "float32")[zlib.crc32(name.encode()) % 2], id=name) for name in CASES
]


@pytest.mark.parametrize(("name", "dtype"), NAMES_OF_CALLS)
def test_gru_sizes(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-GRU-002 and XPL-GRU-004: call with gradients and without."""
    case, a = CASES[name], given(name, dtype)
    got = answer(subject, case.config, a) if case.gradients else forward(subject, case.config, a)
    said = misses(case, expected(name, dtype), got, dtype, "dx" in got)
    require_none(said, name)
    if "dx" in got:
        said = misses(case, expected(name, dtype), forward(subject, case.config, a), dtype, gradients=False)
        require_none(said, f"{name}, without gradients")


# These calls have few steps, and numbers that fit into float16.
IN_HALVES = [
    pytest.param(name, ("float16", "bfloat16")[zlib.crc32(name.encode()) % 2], id=name)
    for name, case in gru_calls.both_places().items()
    if case.T < 6 and not name.startswith(("gru-loud", "gru-large"))
]


@pytest.mark.parametrize(("name", "dtype"), IN_HALVES)
def test_gru_sizes_in_half_precision(subject: Adapter, name: str, dtype: str) -> None:
    """XPL-GRU-005 and XPL-NUM-005: apply the bounds of XPL-NUM-001 in units of half precision."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by ml_dtypes alone")
    case, a = CASES[name], given(name, dtype)
    got = answer(subject, case.config, a) if case.gradients else forward(subject, case.config, a)
    said = misses(case, expected(name, dtype), got, dtype, "dx" in got)
    require_none(said, name)
    if "dx" in got:
        said = misses(case, expected(name, dtype), forward(subject, case.config, a), dtype, gradients=False)
        require_none(said, f"{name}, without gradients")


@pytest.mark.parametrize(("law", "name"), gru_relations.cases())
def test_gru_relation(subject: Adapter, law: str, name: str) -> None:
    """XPL-GRU-005: alternate float64 and float32; use the other dtype if the subject does not offer one."""
    hold(subject, gru_relations, law, name)


BREAKS: dict[str, tuple[str, str]] = {
    "permuted": ("h_n of units beyond 64 wrong", "gru-sizes-h129"),
    "alone": ("one entry: h_n off", "gru"),
    "larger": ("sigmoid for n", "gru"),
    "cut": ("h_0 ignored", "gru"),
    "segments": ("resets ignored", "gru"),
    "reversed": ("both directions forward", "gru-two-by-two"),
    "layers": ("every layer starts from the first state", "gru-two-by-two"),
    "steps": ("lengths ignored", "gru"),
    "linear": ("gradients stored in float16", "gru"),
    "slope": ("path through z cut", "gru"),
    "again": ("without gradients: all", "gru"),
    "no bias": ("no bias, reset gate after", "gru-no-bias"),
    "places": ("gates rnz", "gru"),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", gru_relations.LAWS)
def test_a_wrong_gru_breaks_the_law(law: str) -> None:
    wrong, name = BREAKS[law]
    said, held = gru_relations.broken(Ask(Wrong(WRONG_GRUS[wrong].call), "float64"), law, name)
    assert held
    assert said


@pytest.mark.parametrize("law", gru_relations.LAWS)
def test_the_right_gru_keeps_the_law(law: str) -> None:
    """Use the calls by which `kills` judges wrong GRUs."""
    applies = gru_relations.LAWS[law].applies
    names = [name for name in gru_relations.CALLS if applies(gru_relations.CASES[name])]
    assert names
    for name in names:
        assert gru_relations.broken(Ask(Wrong(GRU().call), "float64"), law, name)[0] == []


def effect(record: Record, judge: GRU) -> float:
    """Return the largest error as a multiple of the record's tolerance for float32."""
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gru_is_found(fault: str) -> None:
    assert any(effect(record, GRU(fault)) > MARGIN for record in RECORDS.values())


@cache
def given_once(name: str) -> Arrays:
    return given(name, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_gru_that_is_wrong_somewhere_is_found(mutant: str) -> None:
    with np.errstate(all="ignore"):
        assert any(finds(gru_calls, name, f"GRU: {mutant}", given_once(name)) for name in CHEAPEST)


@pytest.mark.parametrize("place", ["after", "before"])
def test_a_reset_begins_a_sequence_for_the_right_gru(place: str) -> None:
    """Compare with two calls, the second from zeros, because no record has resets of a GRU."""
    config = {n: v for n, v in CASES[f"gru-mask-{place}"].config.items() if n != "mask"} | {"num_layers": 1}
    a = {n: v for n, v in given_once(f"gru-mask-{place}").items() if "_l1" not in n}
    a |= {n: a[n][:2] for n in ("h_0", "dh_n")}
    whole = GRU().call("module", config | {"reset": [[False] * 3] * 2 + [[True] * 3, [False] * 3]}, a)
    second = GRU().call("module", config, a | {"x": a["x"][2:], "h_0": 0 * a["h_0"]})
    first = GRU().call("module", config, a | {"x": a["x"][:2]})
    H = config["hidden_size"]
    np.testing.assert_array_equal(whole["y"][2:, :, :H], second["y"][..., :H])
    np.testing.assert_array_equal(whole["y"][:2, :, :H], first["y"][..., :H])


@pytest.mark.parametrize("name", gru.BUILDERS)
def test_record_is_the_oracles(name: str) -> None:
    """Compare the outputs, and the gradients of two numbers of each array, with the oracle."""
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
    assert pinned == {Path(path).name: digest(path) for path in gru.VECTORS.glob("*.json")}


def test_every_clause_of_the_gru_has_a_record() -> None:
    said: set[Any] = {clause for record in RECORDS.values() for clause in record["clauses"]}
    assert said == {f"XPL-GRU-{n:03}" for n in range(1, 5)}
