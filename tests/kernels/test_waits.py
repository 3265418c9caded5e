"""Check in the emulation that blocks return NaN if a block never arrives, and that the next call raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.cuda_emulation import compiled, kinds, standin, thorough
from tests.cuda_emulation.carried import DEVICE, emulated
from tests.support.cases import Case, run
from xplstm import _array, _dispatch
from xplstm._problem import Problem
from xplstm.cells.lstm import STANDARD
from xplstm.kernels import cupy_persistent
from xplstm.kernels._cuda import launch, partitions, waits

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]
PUBLISHED = "if (!ALONE && threadIdx.x == 0)\n            store_release(waits.counters + blockIdx.y, step);"
SENT = "if (!ALONE)\n            return store_relaxed("
"""With a flag inside, a number publishes itself."""
PATIENCE = 0.5
KINDS = ("float64", "float32", "tf32", "bfloat16")


def never_from(step: int) -> tuple[tuple[str, str], ...]:
    """Stop the last block from publishing, from this step on."""
    silent = f"(blockIdx.y == gridDim.y - 1 && step >= {step})"
    return (
        (PUBLISHED, PUBLISHED.replace("== 0)", f"== 0 && !{silent})")),
        (SENT, f"if (!ALONE && {silent})\n            return;\n        {SENT}"),
    )


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(partitions, "THREADS", 64)
    monkeypatch.setattr(waits, "_demoted", {})
    monkeypatch.setattr(_dispatch, "select", lambda _: emulated("cupy_persistent"))
    with standin.installed() as cupy:
        yield cupy


@contextmanager
def fresh(faults: tuple[tuple[str, str], ...]) -> Iterator[None]:
    """Provide newly compiled kernels with a fault and a short time limit."""
    waits.PATIENCE = PATIENCE
    with compiled.faulty(*faults):
        launch.kernel.cache_clear()
        yield
    launch.kernel.cache_clear()


def layer(kind: str) -> tuple[xplstm.LSTM, dict[str, np.ndarray]]:
    case = Case(T=5, B=3, H=41, options={"bidirectional": True})
    dtype = "float32" if kind == "tf32" else kind
    lstm = case.lstm(dtype=dtype, precision="tf32" if kind == "tf32" else None)
    return lstm, {key: _array.asarray(a, np, dtype=dtype) for key, a in case.arrays().items()}


def check_spoiled(got: np.ndarray, want: np.ndarray) -> None:
    """Check that finite numbers are correct, and that some numbers are not finite."""
    missing = np.isnan(got.astype("f8"))
    assert missing.any()
    np.testing.assert_array_equal(got[~missing], want[~missing])


@pytest.mark.parametrize("kind", kinds(KINDS))
@pytest.mark.usefixtures("cupy")
def test_a_forward_walk_ends(kind: str) -> None:
    lstm, a = layer(kind)
    want, (h_n, c_n) = lstm(a["x"])
    with fresh(never_from(3)):
        y, state = lstm(a["x"])
    for got, right in ((y, want), (state.h, h_n), (state.c, c_n)):
        check_spoiled(got, right)
    assert np.isnan(y[0, ..., -1].astype("f8")).all(), "the last step of the direction whose block is missing"
    with pytest.raises(
        xplstm.KernelError, match=r"'cupy_persistent'.* longer than 0.5 s .* on device 1.*NaN"
    ):
        lstm(a["x"])


@pytest.mark.parametrize("kind", kinds(KINDS))
@pytest.mark.usefixtures("cupy")
def test_a_walk_back_ends(kind: str) -> None:
    lstm, a = layer(kind)
    _, _, pullback = lstm.vjp(a["x"])
    want_dx, want_state, want = pullback(a["dy"])
    with fresh(never_from(3)):
        dx, state, dparams = pullback(a["dy"])
    for got, right in ((dx, want_dx), *zip(state, want_state, strict=True)):
        check_spoiled(got, right)
    for key in ("weight_ih_l0_reverse", "weight_hh_l0_reverse", "bias_ih_l0_reverse"):
        check_spoiled(dparams[key], want[key])
    with pytest.raises(xplstm.KernelError, match="waited longer"):
        pullback(a["dy"])


@pytest.mark.usefixtures("cupy")
def test_the_kernel_is_demoted_on_that_device_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, a = layer("float32")
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    with fresh(never_from(2)):
        lstm(a["x"])
    assert cupy_persistent.supports(problem) is None, "no block has read the word yet"
    with pytest.raises(xplstm.KernelError):
        lstm(a["x"])
    assert "waited longer than 0.5 s" in str(cupy_persistent.supports(problem))
    assert cupy_persistent.supports(problem._replace(device=standin.Device(0))) is None
    monkeypatch.undo()
    monkeypatch.setattr(waits, "_demoted", {1: "a block waited"})
    with (
        xplstm.use_kernel("cupy_persistent"),
        pytest.raises(xplstm.KernelError, match="earlier in this process"),
    ):
        _dispatch.select(problem)


@thorough
@pytest.mark.usefixtures("cupy")
def test_a_block_that_is_only_late_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block waits longer than until the first read of the clock, but less than the limit."""
    monkeypatch.setattr(f"{__name__}.PATIENCE", standin.PATIENCE)
    lstm, a = layer("float32")
    want = run(lstm, a).flat()
    late = f"for (unsigned n = 0; blockIdx.y == 0 && n < 4 * {partitions.CONSTANTS.POLLS}; n++) rest();"
    with fresh(((PUBLISHED, f"{late}\n    {PUBLISHED}"),)):
        got = run(lstm, a).flat()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value)
    lstm(a["x"])
    assert waits.why_not(DEVICE.id) is None
