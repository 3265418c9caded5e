"""Check CuPy's kernels on a GPU, each pinned; without a GPU, each test is skipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.conftest import open_backend
from tests.support.cases import CASES, Case, run
from tests.support.cupy_runs import KERNELS, KINDS, UNEVEN, agree, learned, uneven_plan
from xplstm import _dispatch
from xplstm.kernels._cuda import partitions

# Sizes that no tile divides; blocks that exchange; more rows than one pass takes.
LARGE = {
    "odd": Case(T=7, B=3, I=5, H=17),
    "blocks": Case(T=6, B=5, I=24, H=200, lengths=[6, 0, 3, 5, 1]),
    "rows": Case(T=5, B=67, I=16, H=96, options={"bidirectional": True}),
    "one_row": Case(T=9, B=1, I=64, H=512),
    "wide": Case(T=4, B=33, I=40, H=1000),
    "long": Case(T=300, B=2, I=8, H=64),
    "two_passes": Case(T=3, B=16, I=8, H=1024),
    "many_passes": Case(T=3, B=128, I=8, H=512),
    "passes_of_float64": Case(T=3, B=16, I=8, H=256),
}


pytestmark = pytest.mark.backend("cupy")


@pytest.fixture(autouse=True)
def cupy() -> Any:
    """Return CuPy if a device works."""
    return open_backend("cupy").xp


def held(kernel: str, case: Case, kind: str, **options: Any) -> None:
    """Run `agree`, and skip the test if the kernel does not support the problem."""
    try:
        agree(kernel, case, kind, **options)
    except xplstm.KernelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_agrees_with_the_reference(kernel: str, name: str, kind: str) -> None:
    held(kernel, CASES[name], kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("kernel", KERNELS)
def test_agrees_at_sizes_that_are_cut(kernel: str, name: str, kind: str) -> None:
    held(kernel, LARGE[name], kind, ulps=32)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_that_begin_at_another_thread(
    kind: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "plan_of", uneven_plan)
    held("cupy_persistent", UNEVEN if ragged else replace(UNEVEN, lengths=None), kind)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_model_learns_the_same(kernel: str, cupy: Any) -> None:
    with xplstm.use_kernel(kernel):
        got = learned(cupy)
    np.testing.assert_allclose(got, learned(np), rtol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_call_gives_the_same_bits_again(kernel: str, kind: str, cupy: Any) -> None:
    case = LARGE["rows"]
    lstm = case.lstm(dtype=kind, xp=cupy)
    arrays = {k: cupy.asarray(a).astype(kind) for k, a in case.arrays().items()}
    with xplstm.use_kernel(kernel):
        first, *others = (run(lstm, arrays).flat() for _ in range(5))
    for again in others:
        for key, a in first.items():
            np.testing.assert_array_equal(cupy.asnumpy(again[key]), cupy.asnumpy(a), err_msg=key)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["plain", "bidirectional_ragged", "no_bias"])
def test_reproducible_bits_are_those_of_the_processor(name: str, dtype: str, cupy: Any) -> None:
    missing = _dispatch.why_missing("native")
    if missing:
        pytest.skip(f"native: {missing}")
    case = CASES[name]
    host = case.lstm(dtype=dtype, reproducible=True)
    there = case.lstm(dtype=dtype, reproducible=True, xp=cupy)
    there.load_state_dict({k: cupy.asarray(a) for k, a in host.params.items()})
    arrays = {k: a.astype(dtype) for k, a in case.arrays().items()}
    with xplstm.use_kernel("native"):
        y, state = host(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    with xplstm.use_kernel("cupy_persistent"):
        x, h_0, c_0 = (cupy.asarray(arrays[k]) for k in ("x", "h_0", "c_0"))
        got, end = there(x, (h_0, c_0), **case.valid())
    for want, a in ((y, got), (state.h, end.h), (state.c, end.c)):
        np.testing.assert_array_equal(cupy.asnumpy(a), want)


@pytest.mark.parametrize("kernel", KERNELS)
def test_work_goes_to_the_current_stream(kernel: str, cupy: Any) -> None:
    """Another stream waits for the results, and the host does not wait."""
    case = LARGE["wide"]
    lstm = case.lstm(dtype="float32", xp=cupy).freeze()
    numbers = cupy.asarray(case.arrays()["x"].astype("float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with xplstm.use_kernel(kernel):
        want = lstm(numbers)[0]
        cupy.cuda.Device().synchronize()
        with stream:
            x = cupy.zeros_like(numbers)
            for _ in range(200):
                x += 1
            x[...] = numbers
            got = lstm(x)[0]
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(got), cupy.asnumpy(want))


@pytest.mark.parametrize("name", ["cupy_persistent", "cupy_fused"])
def test_a_call_is_captured_in_a_graph(cupy: Any, name: str) -> None:
    case = LARGE["one_row"]
    lstm = case.lstm(dtype="float32", xp=cupy).freeze()
    numbers = cupy.asarray(case.arrays()["x"].astype("float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    # Such a stream does not wait for the one on which the numbers and the weights are made.
    cupy.cuda.Device().synchronize()
    with xplstm.use_kernel(name), stream:
        x = cupy.zeros_like(numbers)
        lstm(x)
        if name == "cupy_persistent":
            # Without the compiled module, a recording needs a kernel that not every driver loads meanwhile.
            case.lstm(dtype="float32", reproducible=True, xp=cupy)(x)
        stream.begin_capture()
        y = lstm(x)[0]
        graph = stream.end_capture()
        x[...] = numbers
        graph.launch(stream)
        want = lstm(numbers)[0]
    stream.synchronize()
    # The input's product may be made another way while a graph is captured.
    np.testing.assert_allclose(cupy.asnumpy(y), cupy.asnumpy(want), atol=1e-5)
    assert np.abs(cupy.asnumpy(y)).max() > 0.01
