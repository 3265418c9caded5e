"""Check the compiled loop over steps, with stand-ins of libcuda and libcublas that record every call."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation import compiled, libraries, standin
from tests.cuda_emulation.carried import DEVICE, ROOMS, emulated
from tests.support.cases import CASES, Case, run
from xplstm import _dispatch
from xplstm._problem import Problem
from xplstm._typing import Proof
from xplstm.cells.lstm import STANDARD
from xplstm.kernels import _compiled, cupy_fused
from xplstm.kernels._cuda import loop, proof

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here for the stand-ins"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
    pytest.mark.skipif(bool(_compiled.WHY_NOT), reason="the compiled engine is missing"),
]

NO_ENGINE = "it is not compiled here"
SMALL = Case(T=3, B=2, I=3, H=4, lengths=[3, 1], options={"bidirectional": True, "proj_size": 2})


LAUNCHED = {
    "cupy_fused": {"forward_gates", "backward_gates"},
    "cupy_persistent": {"walk_4", "walk_back_4"},
    "cupy_block": {"walk_alone_4", "walk_back_alone_4"},
}
"""Kernels of a call and its pullback."""


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", lambda _: emulated("cupy_fused"))
        yield


def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the compiled module, as in an installation without a compiler."""
    monkeypatch.setattr(_compiled, "WHY_NOT", NO_ENGINE)
    loop.why_python.cache_clear()


def recorded(case: Case, dtype: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Return every output, and every call with its arguments; arrays are numbered from the first."""
    a = {key: value.astype(dtype) for key, value in case.arrays().items()}
    first = standin.Memory.made
    standin.calls.clear()
    found = run(case.lstm(dtype=dtype), a, **case.valid()).flat()

    def counted(value: Any) -> Any:
        return (value[0] - first, value[1]) if isinstance(value, tuple) else value

    return found, [tuple(map(counted, call)) for call in standin.calls]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["plain", "bidirectional_ragged", "projection_ragged"])
def test_it_makes_the_calls_of_the_loop_in_python(
    name: str, dtype: str, fused: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    got, calls = recorded(CASES[name], dtype)
    assert "cuLaunchKernel" in libraries.heard
    libraries.heard.clear()
    without_engine(monkeypatch)
    want, expected = recorded(CASES[name], dtype)
    assert libraries.heard == []
    assert len(calls) > 4 * CASES[name].T
    assert calls == expected
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_an_error_of_any_call_is_raised_where_it_happened(fused: None) -> None:
    a = SMALL.arrays()

    def call() -> None:
        SMALL.lstm()(a["x"], (a["h_0"], a["c_0"]), **SMALL.valid())

    call()
    libraries.heard.clear()
    call()
    names = list(libraries.heard)
    assert names.count("cuLaunchKernel") == 2 * SMALL.T
    notes = set()
    for at, name in enumerate(names):
        status = 1 if name == "cuLaunchKernel" else 3
        libraries.heard.clear()
        libraries.state["fail"] = at, status
        error = libraries.CUDADriverError if status == 1 else libraries.CUBLASError
        expected = "CUDA_ERROR_INVALID_VALUE" if status == 1 else "CUBLAS_STATUS_ALLOC_FAILED"
        with pytest.raises(error, match=expected) as caught:
            call()
        assert len(libraries.heard) == at + 1, "calls after the one that failed"
        notes.update(caught.value.__notes__)
    libraries.state["fail"] = None
    steps = {
        f"while operation {n} of step {k} was issued, of 4 operations a step"
        for n in range(4)
        for k in range(3)
    }
    assert steps <= notes
    assert "while the stream or workspace was issued, of 4 operations a step" in notes


@pytest.mark.parametrize("kernel", ROOMS)
def test_a_recording_has_forward_and_backward(
    kernel: str, fused: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check all kernels with CUDA sources; a walk in one launch has no projection."""
    monkeypatch.setattr(_dispatch, "select", lambda _: emulated(kernel))
    case = SMALL if kernel == "cupy_fused" else replace(SMALL, options={"bidirectional": True})
    want = recorded(case, "float32")[0]
    stream = standin.Stream(non_blocking=True)
    monkeypatch.setattr(stream, "captured", True)
    monkeypatch.setitem(standin.Stream.current, DEVICE.id, stream)
    libraries.heard.clear()
    got, calls = recorded(case, "float32")
    assert {name for name, *_ in calls} >= LAUNCHED[kernel]
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)
    sets = [n for n, name in enumerate(libraries.heard) if name == "cublasSetWorkspace_v2"]
    assert sets
    assert all(libraries.heard[n - 1] == "cublasSetStream_v2" for n in sets)
    assert libraries.heard[-1] == "cublasSetStream_v2", "cuBLAS keeps a workspace that is freed"
    assert libraries.state["workspace"] is None


def test_a_recording_without_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(np, "cupy", DEVICE, "float32", 5, 4, 3, 6, 0, True, (False,), "all", False, STANDARD)
    with standin.installed():
        monkeypatch.setattr(standin.Stream.current[DEVICE.id], "captured", True)
        assert cupy_fused.supports(problem) is None
        without_engine(monkeypatch)
        reason = str(cupy_fused.supports(problem))
    assert "CuPy does not allow cuBLAS calls" in reason
    assert NO_ENGINE in reason


def problem_there() -> Problem:
    return Problem(
        *(standin.LIBRARY, "cupy", standin.Device(0), "float32", 5, 4, 3, 6, 0, True, (False,), "all", False),
        STANDARD,
    )


def test_explain_says_that_the_loop_runs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        monkeypatch.setitem(proof._decided, ("cupy_fused", "float32", 0), Proof(True, "passed"))
        assert cupy_fused.proof(problem_there(), None).text == "passed"  # type: ignore[arg-type]
        without_engine(monkeypatch)
        text = cupy_fused.proof(problem_there(), None).text  # type: ignore[arg-type]
    assert text == f"passed; its loop runs in Python ({NO_ENGINE})"


def test_numbers_are_not_checked_during_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        with monkeypatch.context() as patch:
            patch.setattr(standin.Stream.current[0], "captured", True)
            found = cupy_fused.proof(problem_there(), None)  # type: ignore[arg-type]
        assert not found.passed
        assert "outside a stream capture" in found.text
        assert not proof.is_decided("cupy_fused", "float32", standin.Device(0))


@pytest.mark.parametrize("missing", ["driver", "symbol"])
def test_libraries_that_are_not_found_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        if missing == "driver":
            monkeypatch.setattr(loop, "DRIVER", "libxplstm-no-cuda.so.1")
        else:
            monkeypatch.setattr(loop, "FUNCTIONS", ("cublasNoGemm", *loop.FUNCTIONS[1:]))
        loop.functions.cache_clear()
        loop.why_python.cache_clear()
        reason = loop.why_python()
        assert isinstance(loop.new(), loop.PythonLoop)
    assert ("libxplstm-no-cuda.so.1" if missing == "driver" else "cublasNoGemm") in reason


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_long_loop_can_be_interrupted() -> None:
    def interrupt(*_: Any) -> None:
        raise InterruptedError

    moves, matrix = loop.Moves([64], [0]), loop.Matrix(4)
    with standin.installed(), libraries.deaf():
        endless = loop.new()
        endless.product(loop.Product("float32", (4, 4, 4), *[matrix] * 3, out="float32"), *[moves] * 3)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            with pytest.raises(InterruptedError):
                endless.run(range(10**10))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_a_step_makes_no_call_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python calls would slow the host, which limits the speed."""
    case, counts = Case(B=2, I=3, H=5, options={"bidirectional": True}), []
    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", lambda _: emulated("cupy_fused"))
        for T in (3, 103):
            layer, x = case.lstm(), np.zeros((T, 2, 3))
            events: list[str] = []
            layer(x)
            with libraries.deaf():
                sys.setprofile(lambda _frame, event, _, events=events: events.append(event))
                try:
                    layer(x)
                finally:
                    sys.setprofile(None)
            counts.append(len(events))
    # Caches and the garbage collector make a few calls, but none for each of 100 further steps.
    assert abs(counts[1] - counts[0]) < 50
