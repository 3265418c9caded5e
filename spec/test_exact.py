"""Test how the records of the profile exact are made, and which wrong layers they detect."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec import exact_cases
from spec.exact import Exact
from spec.exact_mutants import MUTANTS, OF_GRU, OF_HALVES, Mutant, Unfused
from spec.generate import digest, dumps
from spec.ieee import BINARY32, BINARY64, FORMATS, HALVES

FILES = sorted(exact_cases.VECTORS.glob("*.json"))
RECORDS: dict[str, Any] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.mark.parametrize("name", exact_cases.records())
def test_record_is_the_computed_one(name: str) -> None:
    record = exact_cases.records()[name]
    outputs = exact_cases.published(Exact(exact_cases.STORED[record["dtype"]]), record)
    path = exact_cases.VECTORS / f"{name}.json"
    assert dumps(record | {"outputs": outputs}) == path.read_text(encoding="utf-8")


def test_files_have_the_pinned_hashes() -> None:
    lines = exact_cases.PINS.read_text(encoding="ascii").splitlines()
    pinned = {name: pin for pin, name in (line.split() for line in lines)}
    assert pinned == {path.name: digest(path) for path in FILES}


@cache
def kills(name: str, mutant: Mutant) -> bool:
    """Return whether a record distinguishes a mutant from the profile."""
    record = RECORDS[name]
    return bool(
        exact_cases.published(mutant(exact_cases.STORED[record["dtype"]]), record) != record["outputs"]
    )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("mutant", [*MUTANTS, *OF_GRU], ids=lambda mutant: mutant.__name__)
def test_mutant_is_killed(mutant: Mutant, dtype: str) -> None:
    harmless = dtype == "float64" and mutant.__name__ == "Doubled"
    smallest_first = sorted(RECORDS, key=lambda name: RECORDS[name]["config"]["hidden_size"])
    found = any(kills(name, mutant) for name in smallest_first if RECORDS[name]["dtype"] == dtype)
    assert found != harmless


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mutant", OF_HALVES, ids=lambda mutant: mutant.__name__)
def test_mutant_is_killed_in_half_precision(mutant: Mutant, dtype: str) -> None:
    assert any(kills(name, mutant) for name in RECORDS if RECORDS[name]["dtype"] == dtype)


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_kills(name: str) -> None:
    # The emulation of a large record takes a second. The mutants that most records kill come first.
    first = OF_HALVES if RECORDS[name]["dtype"] in HALVES else (Unfused,)
    assert any(kills(name, mutant) for mutant in (*first, *OF_GRU, *MUTANTS))


def test_arithmetic_is_that_of_the_machine() -> None:
    """Compare sums, products and quotients with NumPy, including subnormal results."""
    rng = np.random.default_rng(0)
    for kind, reach in ((BINARY32, 75), (BINARY64, 540)):
        scales = np.exp2(rng.integers(-reach, reach, (3, 2000)))
        a, b, c = (rng.uniform(-1, 1, (3, 2000)) * scales).astype(kind.name)
        with np.errstate(all="ignore"):
            expected = {"add": a + b, "mul": a * b, "div": a / abs(c)}
        for name, values in expected.items():
            operands = zip(a.tolist(), abs(c).tolist() if name == "div" else b.tolist(), strict=True)
            got = [getattr(kind, name)(p, q) for p, q in operands]
            np.testing.assert_array_equal(got, values.astype("float64"), err_msg=name)


def test_fused_product_is_rounded_once() -> None:
    e = 2.0**-30
    assert BINARY64.fma(1 + e, 1 - e, -1.0) == -(e**2)
    assert BINARY32.fma(1 + 2.0**-12, 1 - 2.0**-12, -1.0) == -(2.0**-24)
    assert math.copysign(1, BINARY32.fma(-1.0, 0.0, -0.0)) == -1
    assert math.copysign(1, BINARY32.fma(-1.0, 0.0, 0.0)) == 1


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_functions_are_within_two_units(kind: Any) -> None:
    """XPL-EXACT-006 and XPL-EXACT-007: compare with a wider format."""
    exact, wide = Exact(kind), np.float64 if kind is BINARY32 else np.longdouble
    numbers = np.random.default_rng(1).uniform(-1, 1, 1500) * np.resize([1, 4, 20, 100], 1500)
    x = numbers.astype(kind.name).astype(wide)
    e = np.exp(-abs(x))
    for name, true in (("tanh", np.tanh(x)), ("sigmoid", np.where(x < 0, e, 1) / (1 + e))):
        got = np.array([getattr(exact, name)(float(v)) for v in x], wide)
        unit = np.exp2(np.maximum(np.frexp(true)[1] - kind.precision, kind.least).astype(wide))
        assert (abs(got - true) / unit).max() < 2


def test_functions_at_the_ends() -> None:
    for kind in FORMATS.values():
        exact = Exact(kind)
        assert (exact.tanh(math.inf), exact.tanh(-math.inf)) == (1, -1)
        assert (exact.sigmoid(math.inf), exact.sigmoid(-math.inf)) == (1, 0)
        assert math.isnan(exact.tanh(math.nan))
        assert math.isnan(exact.sigmoid(math.nan))
        assert exact.tanh(2.0**kind.least) == 2.0**kind.least


def test_the_emulation_imports_no_arithmetic() -> None:
    for name in ("ieee", "exact", "exact_cases", "exact_mutants"):
        assert "numpy" not in Path(exact_cases.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
