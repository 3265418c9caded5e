"""Check GRU and RNN on the compiled kernel, which composes their steps, against the reference."""

from __future__ import annotations

from functools import partial
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


NETWORKS: dict[str, Any] = {
    "gru": xplstm.GRU,
    "rnn": xplstm.RNN,
    "relu": partial(xplstm.RNN, nonlinearity="relu"),
    "reset": partial(xplstm.GRU, reset_after=False),
    "narrow": lambda I, H, **o: xplstm.JordanRNN(I, H, (H + 2) // 3, **o),
    "wide": lambda I, H, **o: xplstm.JordanRNN(I, H, H + 5, nonlinearity="relu", **o),
}


def answers(kernel: str, network: Any, **options: Any) -> list[np.ndarray]:
    """Return outputs and gradients; a call without gradients has the same bits."""
    rng, dtype = np.random.default_rng(2), network.params["weight_ih_l0"].dtype
    rows = len([name for name in network.params if name.startswith("weight_ih")])
    x, h_0 = (
        rng.normal(size=(T, B, I)).astype(dtype),
        rng.normal(size=(rows, B, network.params["weight_hh_l0"].shape[1])),
    )
    h_0 = h_0.astype(dtype)
    with xplstm.use_kernel(kernel):
        y, h_n, pullback = network.vjp(x, h_0, **options)
        dy, dh = rng.normal(size=y.shape).astype(dtype), rng.normal(size=h_n.shape).astype(dtype)
        dx, dh_0, dparams = pullback(dy, dh)
        options.pop("checkpoint", None)
        for called in (network, network.freeze()):
            for one, other in zip(called(x, h_0, **options), (y, h_n), strict=True):
                np.testing.assert_array_equal(one, other)
    return [y, h_n, dx, dh_0, *dparams.values()]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("name", "hidden_size"),
    [
        *(
            ("gru", 1),
            ("gru", 6),
            ("gru", 37),
            ("rnn", 1),
            ("rnn", 4),
            ("rnn", 99),
            ("relu", 6),
            ("relu", 36),
        ),
        *(
            ("reset", 1),
            ("reset", 6),
            ("reset", 99),
            ("narrow", 1),
            ("narrow", 99),
            ("wide", 6),
            ("wide", 36),
        ),
    ],
)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_agrees_with_the_reference(
    options: dict[str, Any], steps: str, name: str, hidden_size: int, dtype: Any
) -> None:
    network = NETWORKS[name](I, hidden_size, dtype=dtype, rng=0, **options)
    want = answers("reference", network, **STEPS[steps])
    for checkpoint in (None, 3):
        got = answers("native", network, **STEPS[steps], checkpoint=checkpoint)
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype
            scale = max(1.0, float(np.abs(other).max()))
            bound = {"float64": 1e-13, "float32": 2e-6, "float16": 1e-3}[dtype]
            np.testing.assert_allclose(
                one.astype("float64") / scale, other.astype("float64") / scale, rtol=0, atol=bound
            )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gru", (12, 64, 64)),
        ("gru", (12, 2, 513)),
        ("rnn", (12, 64, 64)),
        ("rnn", (9, 3, 1028)),
        ("rnn", (5, 3, 1026)),
        ("reset", (12, 64, 64)),
        ("reset", (5, 2, 513)),
        ("narrow", (12, 64, 99)),
        ("wide", (5, 2, 514)),
    ],
)
def test_bits_do_not_depend_on_threads_nor_on_the_batch(name: str, sizes: tuple[int, int, int]) -> None:
    steps, entries, hidden_size = sizes
    network = NETWORKS[name](hidden_size, hidden_size, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(steps, entries, hidden_size)).astype("float32")
    found = []
    for threads in (1, 2, 4):
        with xplstm.use_kernel("native"), xplstm.use_threads(threads):
            y, _, pullback = network.vjp(x)
            dx, _, dparams = pullback(y)
            found.append([y, dx, *dparams.values()])
            np.testing.assert_array_equal(network(x[:, :1])[0], y[:, :1])
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


def test_a_missing_unit_keeps_infinity_out_of_the_others() -> None:
    """An infinite h times the padding zeros of the last quarter is NaN, which must not reach a unit."""
    rnn = xplstm.RNN(I, 5, nonlinearity="relu", bias=False, rng=0)
    h_0 = np.full((1, B, 5), 0.5, "float32")
    h_0[0, 0, 0] = np.inf
    for name, column in (("weight_ih_l0", 0.1), ("weight_hh_l0", -0.1)):
        rnn.params[name][...] = column
    x, found = np.ones((T, B, I), "float32"), []
    for kernel in ("native", "reference"):
        with xplstm.use_kernel(kernel), np.errstate(all="ignore"):
            y, h_n, pullback = rnn.vjp(x, h_0)
            found.append([y, h_n, *pullback(y, h_n)[:2]])
    assert np.isfinite(found[1][0]).all()
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("entries", [1, 5, 100])
@pytest.mark.parametrize("name", ["gru", "reset"])
def test_an_infinite_input_saturates_the_gates(name: str, entries: int, dtype: str) -> None:
    """n reads the product of h alone, and infinity times absent weights is not NaN."""
    gru = NETWORKS[name](I, 21, dtype=dtype, rng=0)
    x = np.ones((T, entries, I), gru.params["weight_ih_l0"].dtype)
    x[1, 0, 2] = np.inf
    found = []
    for kernel in ("native", "reference"):
        with xplstm.use_kernel(kernel), np.errstate(all="ignore"):
            y, h_n, pullback = gru.vjp(x)
            np.testing.assert_array_equal(gru(x)[0], y)
            found.append([np.asarray(a, "float64") for a in (y, h_n, *pullback(y, h_n)[:2])])
    assert all(np.isfinite(a).all() for a in found[1])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 if dtype.endswith(("32", "64")) else 0.05)


def test_explain_says_which_networks_it_runs() -> None:
    x = np.ones((T, B, I), dtype="float32")
    assert xplstm.GRU(I, 6).explain(x).kernels == xplstm.RNN(I, 7).explain(x).kernels == ("native",)
    others = xplstm.GRU(I, 6, reset_after=False), xplstm.JordanRNN(I, 8, 4)
    assert {network.explain(x).kernels for network in others} == {("native",)}
