"""Compare every kernel of the table with the reference, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import CASES, Case, kernels, run
from xplstm.kernels import numpy_inplace

KERNELS = kernels()
FAST = [kernel for kernel in KERNELS if kernel.values != ("reference",)]
ULPS = 8


def close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """Compare within a few units in the last place of the scale."""
    u = np.finfo(got.dtype).eps / 2
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=ULPS * u * scale, err_msg=what)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", FAST)
def test_agrees_with_the_reference(kernel: str, name: str, dtype: str) -> None:
    case = CASES[name]
    arrays = {k: a.astype(dtype) for k, a in case.arrays().items()}
    lstm = case.lstm(dtype=dtype)
    exact = case.lstm(dtype=dtype).to(dtype="float64")
    with xplstm.use_kernel("reference"):
        want = run(exact, {k: a.astype("float64") for k, a in arrays.items()}, **case.valid())
    with xplstm.use_kernel(kernel):
        got = run(lstm, arrays, **case.valid())
        y, (h_n, c_n) = lstm(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    for key, value in want.flat().items():
        assert got.flat()[key].dtype == dtype
        close(got.flat()[key], value, key)
    for key, value in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        np.testing.assert_array_equal(value, got.flat()[key], err_msg=f"{key} with and without residuals")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pullback_can_be_called_again(kernel: str) -> None:
    case = CASES["bidirectional_ragged"]
    a = case.arrays()
    with xplstm.use_kernel(kernel):
        _, _, pullback = case.lstm().vjp(a["x"], (a["h_0"], a["c_0"]), **case.valid())
        first = pullback(a["dy"], (a["dh_n"], a["dc_n"]))
        again = pullback(a["dy"], (a["dh_n"], a["dc_n"]))
    np.testing.assert_array_equal(first[0], again[0])
    for key, value in first[2].items():
        np.testing.assert_array_equal(value, again[2][key])


@pytest.mark.parametrize("kernel", KERNELS)
def test_residuals_do_not_alias_results(kernel: str) -> None:
    """Writes to y, the state or x after the call do not change the gradients."""
    case = Case()
    a = case.arrays()
    lstm = case.lstm()
    with xplstm.use_kernel(kernel):
        want = run(lstm, a)
        y, (h_n, c_n), pullback = lstm.vjp(a["x"], (a["h_0"], a["c_0"]))
        for array in (y, h_n, c_n):
            array[...] = np.nan
        dx, _, _ = pullback(a["dy"], (a["dh_n"], a["dc_n"]))
    np.testing.assert_array_equal(dx, want.dx)


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("name", ["plain", "bidirectional_ragged", "projection"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_two_results_share_memory(kernel: str, name: str, checkpoint: int | None) -> None:
    case = CASES[name]
    with xplstm.use_kernel(kernel):
        results = list(run(case.lstm(), case.arrays(), **case.valid(), checkpoint=checkpoint).flat().values())
    for position, one in enumerate(results):
        assert not any(np.shares_memory(one, other) for other in results[position + 1 :])


@pytest.mark.parametrize("kernel", FAST)
def test_two_directions_over_more_rows_than_one_block(kernel: str) -> None:
    """The gradients of each direction are summed in its own order, block by block."""
    case = Case(T=45, B=32, I=3, H=6, options={"bidirectional": True})
    with xplstm.use_kernel("reference"):
        want = run(case.lstm(), case.arrays())
    with xplstm.use_kernel(kernel):
        got = run(case.lstm(), case.arrays())
    for key, value in want.flat().items():
        np.testing.assert_allclose(got.flat()[key], value, rtol=0, atol=1e-11, err_msg=key)


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_blocks_of_steps_join_seamlessly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers do not depend on the number of packed rows of a product."""
    case = Case(T=11, B=3, lengths=[11, 4, 9], options={"bidirectional": True, "proj_size": 2})
    with xplstm.use_kernel("numpy_inplace"):
        want = run(case.lstm(), case.arrays(), **case.valid())
        monkeypatch.setattr(numpy_inplace, "FORWARD_ROWS", steps)
        monkeypatch.setattr(numpy_inplace, "BACKWARD_ROWS", steps)
        got = run(case.lstm(), case.arrays(), **case.valid())
    for key, value in want.flat().items():
        np.testing.assert_allclose(got.flat()[key], value, rtol=0, atol=1e-13, err_msg=key)


def test_padded_steps_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products together read exactly the rows of valid steps."""
    seen: list[int] = []
    matmul = np.matmul

    def counting(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Any:
        seen.append(b.shape[1])
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counting)
    lengths = [2, 40, 0, 7]
    lstm = xplstm.LSTM(3, 5, dtype="float64", rng=0)
    with xplstm.use_kernel("numpy_inplace"):
        lstm(np.zeros((40, 4, 3)), lengths=lengths)
    assert sum(seen) == 2 * sum(lengths)


@pytest.mark.parametrize("kernel", FAST)
def test_reasons_against(kernel: str) -> None:
    x = np.zeros((2, 4, 3), dtype=np.float32)
    with xplstm.use_kernel("reference"):
        normal = xplstm.LSTM(3, 5, variant=xplstm.Variant(layer_norm=True)).explain(x)
    assert kernel == "native" or "layer_norm" in normal.reasons[0][kernel]
