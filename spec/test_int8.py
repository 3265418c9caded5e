"""Test the profile int8 with calls from seeds, and the wrong implementations that they detect."""

from __future__ import annotations

import numpy as np
import pytest

from spec.int8 import CASES, MUTANTS, Stored, given
from spec.sized import distance
from spec.subject import Adapter, Arrays, Refused, Unsupported

ALLOWED = 64
"""Differences in u * s of float32."""


def answer(subject: Adapter, name: str, a: Arrays) -> Arrays:
    try:
        return subject.call("module", CASES[name].config, dict(a))
    except Unsupported as reason:
        pytest.skip(str(reason))


def faults(got: Arrays, name: str) -> list[str]:
    with np.errstate(all="ignore"):
        expected = Stored().call(CASES[name].config, given(name))
    shapes = [n for n, v in expected.items() if got[n].shape != v.shape]
    return shapes or [n for n, v in expected.items() if not distance(got[n], v, "float32") <= ALLOWED]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.clauses(*c.clauses)) for n, c in CASES.items()]
)
def test_int8(subject: Adapter, name: str) -> None:
    got = answer(subject, name, given(name))
    assert {str(v.dtype) for v in got.values()} == {"float32"}
    assert not faults({n: v.astype("float64") for n, v in got.items()}, name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("array", ["weight_ih_l0", "weight_hh_l0"])
def test_a_weight_that_has_no_scale_is_refused(subject: Adapter, array: str, value: float) -> None:
    """XPL-INT-001."""
    a = given("layer")
    answer(subject, "layer", a)
    a[array][1, 2] = value
    with pytest.raises(Refused, match=array):
        subject.call("module", CASES["layer"].config, a)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_one_is_found(mutant: str) -> None:
    with np.errstate(all="ignore"):
        assert any(faults(MUTANTS[mutant].call(CASES[n].config, given(n)), n) for n in CASES)
