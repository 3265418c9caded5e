"""Check that small calls still skip the checks."""

from __future__ import annotations

import pytest

from tests.benchmarks import small_calls
from xplstm.kernels import native


@pytest.mark.skipif(bool(native.WHY_NOT), reason=native.WHY_NOT or "native is compiled")
def test_a_small_call_takes_less_than_half_of_a_checked_one() -> None:
    _, short, long, *_ = small_calls.measure(8, rounds=5)
    assert short < long / 2
