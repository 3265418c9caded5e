"""Check that small calls still skip the checks."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import xplstm
from tests.benchmarks import small_calls
from xplstm.kernels import native


def frames(call: Callable[[], object]) -> int:
    """Return how many Python functions a call enters."""
    found = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(note)
    call()
    sys.setprofile(None)
    return found


@pytest.mark.skipif(bool(native.WHY_NOT), reason=native.WHY_NOT or "native is compiled")
def test_a_small_call_enters_the_kernel_directly() -> None:
    with xplstm.use_kernel(small_calls.PINNED):
        calls = small_calls.calls_of(8)
        for call in calls:
            call()
        step, *others = map(frames, calls)
    # This function, the method, and a reading of the context.
    assert max(step, *others[::2]) <= 3
    assert min(others[1::2]) > 30
