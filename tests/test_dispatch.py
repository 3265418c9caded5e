"""The seam: which kernel runs, who can say so, and what the answer looks like."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import _dispatch

X = np.zeros((5, 4, 3), dtype=np.float32)
FASTEST = "numpy_inplace" if _dispatch.why_missing("native") else "native"


def test_the_last_kernel_is_the_reference() -> None:
    assert list(_dispatch.TABLE)[-1] == "reference"


def test_the_fastest_that_can_is_chosen() -> None:
    assert xplstm.LSTM(3, 2).explain(X).kernels == (FASTEST,)


def test_other_libraries_go_the_generic_way(xp: Any) -> None:
    lstm = xplstm.LSTM(3, 2, num_layers=2, xp=xp.xp)
    explanation = lstm.explain(xp.asarray(X))
    if xp.name.startswith("numpy"):
        assert explanation.kernels == (FASTEST, FASTEST)
    else:
        assert explanation.kernels == ("reference", "reference")
        assert xp.name in explanation.reasons[0]["numpy_inplace"]
    assert explanation.canonical_sums is _dispatch.load(explanation.kernels[0]).canonical_sums


def test_a_block_pins_and_restores() -> None:
    lstm = xplstm.LSTM(3, 2)
    with xplstm.use_kernel("reference"):
        assert lstm.explain(X).kernels == ("reference",)
        assert "pinned" in lstm.explain(X).reasons[0][FASTEST]
        with xplstm.use_kernel(None):
            assert lstm.explain(X).kernels == (FASTEST,)
        assert lstm.explain(X).kernels == ("reference",)
    assert lstm.explain(X).kernels == (FASTEST,)


def test_a_plain_call_holds_for_the_process() -> None:
    lstm = xplstm.LSTM(3, 2)
    xplstm.use_kernel("reference")
    try:
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend(lstm.explain(X).kernels))
        thread.start()
        thread.join()
        assert seen == ["reference"]
    finally:
        xplstm.use_kernel(None)
    assert lstm.explain(X).kernels == (FASTEST,)


def test_a_block_stays_in_its_thread() -> None:
    lstm = xplstm.LSTM(3, 2)
    seen: list[str] = []
    with xplstm.use_kernel("reference"):
        thread = threading.Thread(target=lambda: seen.extend(lstm.explain(X).kernels))
        thread.start()
        thread.join()
    assert seen == [FASTEST]


def test_a_pinned_kernel_that_cannot_raises_with_its_reason() -> None:
    lstm = xplstm.LSTM(3, 2, dtype="float16")
    with (
        xplstm.use_kernel("numpy_inplace"),
        pytest.raises(xplstm.KernelError, match=r"'numpy_inplace' is pinned .* float16"),
    ):
        lstm(X.astype("float16"))


def test_an_unknown_kernel_is_refused_with_the_choices() -> None:
    with pytest.raises(
        xplstm.ArgumentError, match="kernel 'cuda' is unknown; known are native, numpy_inplace, cupy_fused"
    ):
        xplstm.use_kernel("cuda")


def test_a_plain_call_in_a_block_holds_to_its_end() -> None:
    lstm = xplstm.LSTM(3, 2)
    with xplstm.use_kernel("reference"):
        xplstm.use_kernel("numpy_inplace")
        assert lstm.explain(X).kernels == ("numpy_inplace",)
        xplstm.use_kernel(None)
        assert lstm.explain(X).kernels == (FASTEST,)
        xplstm.use_kernel("reference")
        assert lstm.explain(X).kernels == ("reference",)
    assert _dispatch._pinned.get() is None


def test_blocks_of_many_threads_leave_the_process_as_it_was() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong: list[str | None] = []

    def work(name: str) -> None:
        for _ in range(300):
            with xplstm.use_kernel(name):
                if _dispatch._pinned.get() != name:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in list(_dispatch.TABLE) * 4]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert _dispatch._pinned.get() is None
