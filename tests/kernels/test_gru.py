"""The GRU on the compiled kernel, which composes its step, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import kernels

pytestmark = [*next(kernel.marks for kernel in kernels() if kernel.values == ("native",))]

T, B, I = 7, 5, 3
STEPS: dict[str, dict[str, Any]] = {
    "full": {},
    "lengths": {"lengths": [3, 0, 7, 1, 5]},
    "mask": {"mask": np.random.default_rng(0).random((T, B)) < 0.6},
    "reset": {"reset": np.random.default_rng(1).random((T, B)) < 0.3},
}


def answers(kernel: str, gru: xplstm.GRU, **options: Any) -> list[np.ndarray]:
    """Outputs and gradients; a call without gradients has the same bits."""
    rng, dtype = np.random.default_rng(2), gru.params["weight_ih_l0"].dtype
    rows = len([name for name in gru.params if name.startswith("weight_ih")])
    x, h_0 = rng.normal(size=(T, B, I)).astype(dtype), rng.normal(size=(rows, B, gru.hidden_size))
    h_0 = h_0.astype(dtype)
    with xplstm.use_kernel(kernel):
        y, h_n, pullback = gru.vjp(x, h_0, **options)
        dy, dh = rng.normal(size=y.shape).astype(dtype), rng.normal(size=h_n.shape).astype(dtype)
        dx, dh_0, dparams = pullback(dy, dh)
        options.pop("checkpoint", None)
        for network in (gru, gru.freeze()):
            for one, other in zip(network(x, h_0, **options), (y, h_n), strict=True):
                np.testing.assert_array_equal(one, other)
    return [y, h_n, dx, dh_0, *dparams.values()]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("hidden_size", [1, 6, 37])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_agrees_with_the_reference(options: dict[str, Any], steps: str, hidden_size: int, dtype: Any) -> None:
    gru = xplstm.GRU(I, hidden_size, dtype=dtype, rng=0, **options)
    want = answers("reference", gru, **STEPS[steps])
    for checkpoint in (None, 3):
        got = answers("native", gru, **STEPS[steps], checkpoint=checkpoint)
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype
            scale = max(1.0, float(np.abs(other).max()))
            bound = {"float64": 1e-13, "float32": 2e-6, "float16": 1e-3}[dtype]
            np.testing.assert_allclose(
                one.astype("float64") / scale, other.astype("float64") / scale, rtol=0, atol=bound
            )


@pytest.mark.parametrize("sizes", [(12, 64, 64), (12, 2, 513)])
def test_bits_do_not_depend_on_threads_nor_on_the_batch(sizes: tuple[int, int, int]) -> None:
    steps, entries, hidden_size = sizes
    gru = xplstm.GRU(hidden_size, hidden_size, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(steps, entries, hidden_size)).astype("float32")
    found = []
    for threads in (1, 2, 4):
        with xplstm.use_kernel("native"), xplstm.use_threads(threads):
            y, _, pullback = gru.vjp(x)
            dx, _, dparams = pullback(y)
            found.append([y, dx, *dparams.values()])
            np.testing.assert_array_equal(gru(x[:, :1])[0], y[:, :1])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_closed_gate_keeps_h_bit_for_bit() -> None:
    gru = xplstm.GRU(I, 6, rng=0)
    gru.params["bias_ih_l0"][6:12] = 200.0  # z is 1
    h_0 = np.random.default_rng(0).normal(size=(1, B, 6)).astype("float32")
    with xplstm.use_kernel("native"):
        y, h_n = gru(np.ones((T, B, I), dtype="float32"), h_0)
    np.testing.assert_array_equal(h_n, h_0)
    np.testing.assert_array_equal(y, np.broadcast_to(h_0, y.shape))


def test_explain_says_which_gru_it_runs() -> None:
    x = np.ones((T, B, I), dtype="float32")
    assert xplstm.GRU(I, 6).explain(x).kernels == ("native",)
    before = xplstm.GRU(I, 6, reset_after=False).explain(x)
    assert before.kernels == ("reference",)
    assert "the GRU with reset_after" in before.reasons[0]["native"]
