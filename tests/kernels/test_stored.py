"""Check frozen layers with weights in bfloat16 or int8: error bounds, bits, and refused options."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, kernels
from xplstm.kernels import _stored, native
from xplstm.testing import quantisation_error

UNIT = 2.0**-24
SIZES = [(3, 4, 5, n) for n in (1, 2, 7, 15, 17, 31, 33, 64, 70)] + [
    *((2, B, I, 20) for B, I in ((1, 1), (2, 3), (6, 129), (7, 130), (13, 257))),
    *((T, B, 3, 5) for T, B in ((0, 4), (4, 0), (1, 1))),
]
NATIVE = pytest.mark.skipif(bool(native.WHY_NOT), reason=f"native: {native.WHY_NOT}")


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(native, "ISA", request.param)
    with xplstm.use_kernel("native"):
        yield str(request.param)


def inputs(case: Case) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    x, h, c = (case.arrays()[name].astype("float32") for name in ("x", "h_0", "c_0"))
    return x, (h, c)


def represented(lstm: xplstm.LSTM, storage: Any) -> xplstm.LSTM:
    """Return a float32 layer with the values of the stored weights."""
    other = xplstm.LSTM(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        bidirectional=lstm.bidirectional,
        proj_size=lstm._stack.proj_size,
    )
    for name, a in lstm.params.items():
        stored = name.startswith("weight")
        other.params[name] = np.asarray(_stored._store(name, a, storage)) if stored else a
    return other


def bounds(
    lstm: xplstm.LSTM, x: np.ndarray, state: Any, storage: str, rounded: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """h of every step in float64, and how far the stored weights can move it: first-order terms and rests.

    A weight moves by half a step of its row's integers, or by 2**-8 of itself. sigmoid moves by at most a
    quarter of its argument's error and tanh by all of it. Products round x and h by `rounded` of the largest
    magnitude of a batch entry. Sums in float32 add (K + 8) roundings, the
    pointwise step 16.
    """
    w = {name: a.astype("float64") for name, a in lstm.params.items()}
    off = {
        name: np.full_like(a, 0.5) * np.abs(a).max(1, keepdims=True) / 127 * (1 + 2 * UNIT)
        if storage == "int8"
        else np.abs(a) * 2.0**-8
        for name, a in w.items()
        if a.ndim == 2
    }
    W, U, dW, dU = (d[f"weight_{n}_l0"] for d in (w, off) for n in ("ih", "hh"))
    b = w["bias_ih_l0"] + w["bias_hh_l0"]
    h, c = (a[0].astype("float64") for a in state)
    eh, ec = np.zeros_like(h), np.zeros_like(c)
    rounding = (W.shape[1] + U.shape[1] + 8) * UNIT
    ys, errors = [], []
    for x_t in x.astype("float64"):
        z = x_t @ W.T + h @ U.T + b
        ez = np.abs(x_t) @ dW.T + np.abs(h) @ dU.T + eh @ (np.abs(U) + dU).T
        for a, e, M in ((np.abs(x_t), 0 * x_t, np.abs(W) + dW), (np.abs(h), eh, np.abs(U) + dU)):
            ez += rounded * (a + e).max(1, keepdims=True) * M.sum(1)
        ez += rounding * (np.abs(x_t) @ np.abs(W + dW).T + np.abs(h) @ np.abs(U + dU).T + np.abs(b))
        zi, zf, zg, zo = np.split(z, 4, axis=1)
        slopes = np.repeat([0.25, 0.25, 1, 0.25], h.shape[1])
        ei, ef, eg, eo = np.split(np.minimum(ez * slopes, 1), 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (zi, zf, zo))
        g = np.tanh(zg)
        ec = f * ec + ef * (np.abs(c) + ec) + i * eg + ei * (np.abs(g) + eg)
        c = f * c + i * g
        ec = ec + 16 * UNIT * (1 + np.abs(c))
        et = np.minimum(ec, 2)
        h, eh = o * np.tanh(c), o * et + eo * (np.abs(np.tanh(c)) + et) + 16 * UNIT
        ys.append(h)
        errors.append(eh)
    return np.array(ys), np.array(errors)


@pytest.mark.parametrize("storage", _stored.STORAGES)
@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("sizes", SIZES[:9:2] + SIZES[9:14])
def test_the_error_is_within_its_bound(kernel: str, sizes: tuple[int, ...], storage: Any) -> None:
    lstm, (x, state) = Case(*sizes).lstm(dtype="float32"), inputs(Case(*sizes))
    want, bound = bounds(lstm, x, state, storage, 1.1 * UNIT if storage == "int8" else 0)
    with xplstm.use_kernel(kernel):
        y, _ = lstm.freeze(weights=storage)(x, state)
    assert np.all(np.abs(y - want) <= bound)
    assert np.median(bound) < 0.25, "a bound that says something"


@pytest.mark.parametrize("storage", _stored.STORAGES)
def test_every_weight_is_within_half_a_step(storage: Any) -> None:
    rng = np.random.default_rng(0)
    exponents = rng.integers(-149 if storage == "int8" else -126, 127, (60, 1))
    w = (rng.uniform(-1, 1, (60, 33)) * 2.0**exponents).astype("float32")
    w[0], w[1, 1:] = 0, 0
    found = np.asarray(_stored._store("w", w, storage), dtype="float64")
    if storage == "int8":
        step = np.maximum(np.abs(w).max(1, keepdims=True) / 127.0, np.finfo("float32").tiny)
        assert np.all(np.abs(found - w) <= step * (0.5 + 2.0**-16))
    else:
        assert np.all(np.abs(found - w) <= np.maximum(np.abs(w) * 2.0**-8, 2.0**-134))
    np.testing.assert_array_equal(found[0], 0)


@NATIVE
@pytest.mark.parametrize("sizes", SIZES)
def test_bfloat16_has_the_bits_of_the_rounded_weights(isa: str, sizes: tuple[int, ...]) -> None:
    lstm, (x, state) = Case(*sizes).lstm(dtype="float32"), inputs(Case(*sizes))
    want, end = represented(lstm, "bfloat16")(x, state)
    y, found = lstm.freeze(weights="bfloat16")(x, state)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(found.c, end.c)


@NATIVE
@pytest.mark.parametrize("sizes", SIZES)
def test_int8_agrees_with_the_weights_that_it_represents(isa: str, sizes: tuple[int, ...]) -> None:
    lstm, (x, state) = Case(*sizes).lstm(dtype="float32"), inputs(Case(*sizes))
    with xplstm.use_kernel("reference"):
        wide = represented(lstm, "int8").to(dtype="float64")
        want, end = wide(x.astype("float64"), tuple(a.astype("float64") for a in state))
    y, found = lstm.freeze(weights="int8")(x, state)
    np.testing.assert_allclose(y, want, rtol=0, atol=32 * UNIT)
    np.testing.assert_allclose(found.c, end.c, rtol=0, atol=32 * UNIT * max(1, np.abs(end.c).max(initial=0)))


BOTH: dict[str, Any] = {"weights": "int8", "activations": "int8"}
BFLOAT16: dict[str, Any] = {"weights": "bfloat16", "activations": "bfloat16"}


@NATIVE
@pytest.mark.parametrize("sizes", SIZES[:9:2] + SIZES[9:14])
def test_the_error_of_integer_activations_is_within_its_bound(isa: str, sizes: tuple[int, ...]) -> None:
    lstm, (x, state) = Case(*sizes).lstm(dtype="float32"), inputs(Case(*sizes))
    want, bound = bounds(lstm, x, state, "int8", 0.5 / 127 * (1 + 2.0**-16))
    y, _ = lstm.freeze(**BOTH)(x, state)
    assert np.all(np.abs(y - want) <= bound)


def integers(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row as integers of at most 127 in magnitude, and the scales."""
    largest = np.maximum(np.abs(a).max(1, keepdims=True), np.float32(2.0**-100))
    return np.rint(a * (np.float32(127) / largest)).astype(np.int64), largest / np.float32(127)


@NATIVE
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_those_of_the_integers(isa: str, sizes: tuple[int, ...]) -> None:
    """The test computes the products of one step in integers."""
    case = Case(1, *sizes[1:])
    lstm, (x, (h, c)) = case.lstm(dtype="float32"), inputs(case)
    z = (lstm.params["bias_ih_l0"] + lstm.params["bias_hh_l0"]).astype("float64")
    for a, name in ((x[0], "weight_ih_l0"), (h[0], "weight_hh_l0")):
        w = _stored._store(name, lstm.params[name], "int8")
        assert w.scales is not None
        q, scale = integers(a)
        z = z + (q @ w.values.astype(np.int64).T) * w.scales.astype("float64") * scale
    i, f, g, o = np.split(z, 4, axis=1)
    i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
    want = f * c[0] + i * np.tanh(g)
    y, end = lstm.freeze(**BOTH)(x, (h, c))
    np.testing.assert_allclose(end.c[0], want, rtol=0, atol=24 * UNIT * max(1, np.abs(want).max(initial=0)))
    np.testing.assert_allclose(y[0], o * np.tanh(want), rtol=0, atol=24 * UNIT)


@NATIVE
@pytest.mark.parametrize("how", [{"weights": "int8"}, BOTH], ids=["weights", "both"])
@pytest.mark.parametrize("H", [*range(1, 71, 3), 129])
def test_integers_have_the_same_bits_with_all_instructions(
    H: int, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(3, 1 + H % 14, 70 - H % 70, H, {"proj_size": H // 2})
    frozen, (x, state) = case.lstm(dtype="float32").freeze(**how), inputs(case)
    results = []
    for name, fused in native.ISAS.items():
        monkeypatch.setattr(native, "ISA", name)
        frozen._packed.clear()
        if fused:
            results.append(frozen(x, state))
    for y, end in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(end.c, results[0][1].c)


@NATIVE
@pytest.mark.parametrize("how", [{"weights": "int8"}, BOTH], ids=["weights", "both"])
def test_numbers_that_are_no_integers_stay_in_their_entry(isa: str, how: dict[str, Any]) -> None:
    frozen = xplstm.LSTM(5, 20, rng=0).freeze(**how)
    x = np.random.default_rng(0).normal(size=(3, 8, 5)).astype("float32")
    want, _ = frozen(x)
    x[1, 2, 3], x[1, 5, 0] = np.nan, np.inf
    y, _ = frozen(x)
    assert np.isnan(y[1:, [2, 5]]).all()
    y[1:, [2, 5]] = want[1:, [2, 5]]
    np.testing.assert_array_equal(y, want)
    for size in (3e38, 1e-30, 1e-42, 0):
        x[:] = size
        assert np.isfinite(frozen(x)[0]).all()


@NATIVE
@pytest.mark.parametrize("sizes", SIZES)
def test_bfloat16_activations_are_those_of_the_rounded_input(isa: str, sizes: tuple[int, ...]) -> None:
    """Products of bfloat16 numbers are exact, so only the order of the sums differs."""
    case = Case(1, *sizes[1:])
    lstm, (x, (h, c)) = case.lstm(dtype="float32"), inputs(case)

    def rounded(a: np.ndarray) -> np.ndarray:
        flat = np.asarray(_stored._store("x", a.reshape(-1, a.shape[-1]), "bfloat16"))
        return flat.reshape(a.shape)

    y, end = lstm.freeze(**BFLOAT16)(x, (h, c))
    want, want_end = lstm.freeze(weights="bfloat16")(rounded(x), (rounded(h), c))
    np.testing.assert_allclose(y, want, rtol=0, atol=24 * UNIT)
    np.testing.assert_allclose(end.c, want_end.c, rtol=0, atol=24 * UNIT * max(1, np.abs(c).max(initial=0)))


@NATIVE
def test_an_entry_has_the_same_bits_with_bfloat16_activations_in_every_batch(isa: str) -> None:
    """A NaN stays in its entry, even if rounding its bits would give an infinity."""
    frozen = xplstm.LSTM(37, 70, rng=0).freeze(**BFLOAT16)
    x = np.random.default_rng(0).normal(size=(3, 9, 37)).astype("float32")
    want = np.concatenate([frozen(x[:, b : b + 1])[0] for b in range(9)], axis=1)
    x[0, 4, 36:].view(np.uint32)[:] = 0x7F800001
    with xplstm.use_threads(2):
        y, _ = frozen(x)
    assert np.isnan(y[:, 4]).all()
    y[:, 4] = want[:, 4]
    np.testing.assert_array_equal(y, want)


@NATIVE
def test_sums_that_could_overflow_are_refused() -> None:
    lstm, x = xplstm.LSTM(2**16 + 1, 3, rng=0), np.ones((1, 1, 2**16 + 1), dtype="float32")
    assert "could overflow" in lstm.freeze(weights="int8").explain(x).reasons[0]["native"]
    with pytest.raises(xplstm.KernelError, match="not native: sums of 65537 products"):
        lstm.freeze(**BOTH)(x)
    lstm, x = xplstm.LSTM(2**16, 3, rng=0), np.ones((1, 1, 2**16), dtype="float32")
    lstm.params["weight_ih_l0"][:] = 1e-5
    y, _ = lstm.freeze(**BOTH)(x)
    np.testing.assert_allclose(y, lstm(x)[0], rtol=0, atol=1e-4)


@NATIVE
def test_integer_activations_run_on_native_alone() -> None:
    lstm, x = xplstm.LSTM(3, 2, rng=0), np.ones((2, 600, 3), dtype="float32")
    frozen = lstm.freeze(**BOTH)
    assert repr(frozen) == "FrozenLSTM(3, 2, num_layers=1, weights='int8', activations='int8')"
    assert frozen.explain(x).kernels == ("native",)
    assert frozen.explain(x).weights == ("int8, activations: int8",)
    with (
        xplstm.use_kernel("reference"),
        pytest.raises(xplstm.KernelError, match="cannot round activations to int8"),
    ):
        frozen(x)
    with pytest.raises(xplstm.ArgumentError, match="needs weights='int8', got weights='bfloat16'"):
        lstm.freeze(weights="bfloat16", activations="int8")
    with pytest.raises(xplstm.ArgumentError, match="activations='int4' must be one of bfloat16, int8"):
        lstm.freeze(weights="int8", activations="int4")  # type: ignore[arg-type]


@NATIVE
def test_steps_with_integer_activations_have_the_bits_of_a_sequence() -> None:
    case = Case(6, 3, 5, 21, {"num_layers": 2, "proj_size": 9})
    frozen, (x, state) = case.lstm(dtype="float32").freeze(**BOTH), inputs(case)
    y, end = frozen(x, state)
    for x_t, y_t in zip(x, y, strict=True):
        found, state = frozen.step(x_t, state)
        np.testing.assert_array_equal(found, y_t)
    np.testing.assert_array_equal(state[1], end.c)


WHOLE = {
    "layers": Case(5, 4, 3, 20, {"num_layers": 2, "bidirectional": True}, [3, 0, 5, 1]),
    "projection": Case(6, 5, 40, 150, {"proj_size": 130}, holes=True),
    "many": Case(5, 61, 40, 70),
}


@NATIVE
@pytest.mark.parametrize("storage", [*_stored.STORAGES, "both"])
@pytest.mark.parametrize("name", WHOLE)
def test_bits_do_not_depend_on_threads_or_the_batch(
    isa: str, name: str, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = WHOLE[name]
    how = BOTH if storage == "both" else {"weights": storage}
    frozen, (x, state) = case.lstm(dtype="float32").freeze(**how), inputs(case)
    y, _ = frozen(x, state, **case.valid())
    if storage == "bfloat16":
        want, _ = represented(case.lstm(dtype="float32"), storage)(x, state, **case.valid())
        np.testing.assert_array_equal(y, want)
    monkeypatch.setattr(native, "THREADS", 3)
    again, _ = frozen(x, state, **case.valid())
    np.testing.assert_array_equal(again, y)
    valid = {key: np.asarray(a)[..., 1:2] for key, a in case.valid().items()}
    row, _ = frozen(x[:, 1:2], tuple(a[:, 1:2] for a in state), **valid)
    if native.ISAS[isa]:
        np.testing.assert_array_equal(row, y[:, 1:2])


@NATIVE
@pytest.mark.parametrize("how", [{"weights": "bfloat16"}, {"weights": "int8"}, BOTH], ids=["16", "8", "both"])
@pytest.mark.parametrize("B", [1, 5])
def test_a_reset_is_a_new_start(isa: str, B: int, how: dict[str, Any]) -> None:
    case = Case(6, B, 4, 33, {"proj_size": 20})
    frozen, (x, state) = case.lstm(dtype="float32").freeze(**how), inputs(case)
    reset = np.zeros((6, B), dtype=bool)
    reset[3] = True
    y, end = frozen(x, state, reset=reset)
    np.testing.assert_array_equal(y[:3], frozen(x[:3], state)[0])
    want, after = frozen(x[3:])
    np.testing.assert_array_equal(y[3:], want)
    np.testing.assert_array_equal(end.c, after.c)


@pytest.mark.parametrize("storage", _stored.STORAGES)
@pytest.mark.parametrize("kernel", kernels())
def test_steps_agree_with_a_sequence(kernel: str, storage: Any) -> None:
    case = Case(6, 3, 5, 21, {"num_layers": 2, "proj_size": 9})
    with xplstm.use_kernel(kernel):
        frozen, (x, state) = case.lstm(dtype="float32").freeze(weights=storage), inputs(case)
        y, end = frozen(x, state)
        for x_t, y_t in zip(x, y, strict=True):
            found, state = frozen.step(x_t, state)
            np.testing.assert_allclose(found, y_t, rtol=0, atol=1e-6)
        np.testing.assert_allclose(state[1], end.c, rtol=0, atol=1e-6)


OTHERS = {
    "gru": lambda I, H: xplstm.GRU(I, H, num_layers=2, bidirectional=True, rng=1),
    "reset": lambda I, H: xplstm.GRU(I, H, reset_after=False, rng=1),
    "rnn": lambda I, H: xplstm.RNN(I, H, bias=False, rng=1),
    "jordan": lambda I, H: xplstm.JordanRNN(I, H, 1 + H // 2, rng=1),
}


@NATIVE
@pytest.mark.parametrize("cell", OTHERS)
@pytest.mark.parametrize(("I", "H"), [(1, 3), (33, 18), (5, 65)])
def test_other_cells_read_what_is_stored(isa: str, cell: str, I: int, H: int) -> None:
    network: Any = OTHERS[cell](I, H)
    x = np.random.default_rng(0).normal(size=(4, 5, I)).astype("float32")
    for storage in _stored.STORAGES:
        other, frozen = copy.deepcopy(network), network.freeze(weights=storage)
        other.params = {
            n: np.asarray(_stored._store(n, a, storage)) if a.ndim == 2 else a
            for n, a in network.params.items()
        }
        y, want = frozen(x)[0], other(x)[0]
        assert set(frozen.explain(x).weights) == {storage}
        if storage == "bfloat16":
            np.testing.assert_array_equal(y, want)
        np.testing.assert_allclose(y, want, rtol=0, atol=64 * UNIT * max(1, np.abs(want).max()))
        assert frozen.nbytes < network.freeze().nbytes
    y = network.freeze(**BOTH)(x)[0]
    np.testing.assert_allclose(y, network(x)[0], rtol=0, atol=0.05 * max(1, np.abs(y).max()))


def test_a_variant_runs_on_the_weights_that_are_represented() -> None:
    for variant in (xplstm.Variant(peepholes=True, cell_clip=1.0), xplstm.Variant(layer_norm=True)):
        lstm = xplstm.LSTM(3, 9, variant=variant, rng=0)
        x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype("float32")
        y, _ = lstm.freeze(weights="int8")(x)
        np.testing.assert_allclose(y, lstm(x)[0], rtol=0, atol=0.02)


def test_a_stored_layer_says_what_it_is() -> None:
    lstm = xplstm.LSTM(64, 64, num_layers=2, rng=0)
    frozen, x = lstm.freeze(weights="int8"), np.ones((3, 2, 64), dtype="float32")
    assert repr(frozen) == "FrozenLSTM(64, 64, num_layers=2, weights='int8')"
    weights, rows = 2 * 2 * 4 * 64 * 64, 2 * 2 * 4 * 64
    assert frozen.nbytes == weights + 4 * rows + 4 * rows  # scales and biases
    assert lstm.freeze(weights="bfloat16").nbytes == 2 * weights + 4 * rows
    with xplstm.use_kernel("reference"):
        assert frozen.explain(x).weights == ("int8, as float32",) * 2
        assert "  weights: int8, as float32\n" in str(frozen.explain(x))
        assert not lstm.freeze().explain(x).weights
    again = pickle.loads(pickle.dumps(frozen))
    np.testing.assert_array_equal(again(x)[0], frozen(x)[0])
    assert again.nbytes == frozen.nbytes


@NATIVE
def test_native_reads_what_is_stored() -> None:
    lstm, x = xplstm.LSTM(3, 20, rng=0), np.ones((2, 2, 3), dtype="float32")
    for storage in _stored.STORAGES:
        found = lstm.freeze(weights=storage).explain(x)
        assert (found.kernels, found.weights) == (("native",), (storage,))
        assert found.canonical_sums == (storage == "bfloat16" and native.ISAS[native.ISA])


def test_what_cannot_be_stored_is_refused() -> None:
    lstm = xplstm.LSTM(3, 2, rng=0)
    with pytest.raises(xplstm.ArgumentError, match="weights='int4' must be one of bfloat16, int8"):
        lstm.freeze(weights="int4")  # type: ignore[arg-type]
    with pytest.raises(xplstm.DTypeError, match="weights=8 must be one of"):
        lstm.freeze(weights=8)  # type: ignore[arg-type]
    with pytest.raises(xplstm.DTypeError, match="needs float32 parameters, got float64"):
        xplstm.LSTM(3, 2, dtype="float64").freeze(weights="int8")
    with pytest.raises(xplstm.ArgumentError, match="cannot be combined with reproducible=True"):
        xplstm.LSTM(3, 2, reproducible=True).freeze(weights="int8")
    with pytest.raises(
        xplstm.ArgumentError, match="activations='bfloat16' cannot be combined with reproducible=True"
    ):
        xplstm.LSTM(3, 2, reproducible=True).freeze(**BFLOAT16)
    for bad, text in ((np.nan, "nan in row 1"), (np.inf, "inf in row 1"), (3.4e38, "largest bfloat16")):
        lstm.params["weight_hh_l0"][1, 0] = bad
        with pytest.raises(xplstm.ArgumentError, match=f"weight_hh_l0 .*{text}"):
            lstm.freeze(weights="bfloat16")


def test_parameters_of_other_libraries_are_refused() -> None:
    pytest.importorskip("array_api_strict")
    with pytest.raises(xplstm.BackendError, match="needs parameters of numpy, got array_api_strict"):
        xplstm.LSTM(3, 2, xp="array_api_strict").freeze(weights="int8")


@pytest.mark.backend("dask")
def test_dask_blocks_take_stored_weights() -> None:
    da = pytest.importorskip("dask.array")
    case = Case(6, 4, 3, 20, {"bidirectional": True})
    frozen, (x, _) = case.lstm(dtype="float32").freeze(weights="int8"), inputs(case)
    y, _ = frozen(da.from_array(x, chunks=(2, 2, 3)))
    np.testing.assert_allclose(y.compute(), frozen(x)[0], rtol=0, atol=1e-6)


def test_the_error_is_reported() -> None:
    lstm = xplstm.LSTM(16, 32, rng=0)
    x = np.random.default_rng(0).normal(size=(7, 3, 16)).astype("float32")
    report = quantisation_error(lstm, x, lengths=[7, 0, 4])
    exact, _ = lstm(x, lengths=[7, 0, 4])
    for row in report.rows:
        frozen = lstm.freeze(weights=row.weights, activations=row.activations)
        y, _ = frozen(x, lengths=[7, 0, 4])
        off = np.abs(y.astype("float64") - exact)
        assert row.largest == off.max() > 0
        assert row.relative == pytest.approx(np.sqrt(np.mean(off**2) / np.mean(exact.astype("float64") ** 2)))
        assert row.nbytes == frozen.nbytes
        assert row.weights in str(report)
    assert quantisation_error(lstm, x[:0]).rows[0].largest == 0
    assert all(0 < row.state < 0.1 for row in quantisation_error(xplstm.GRU(16, 8, rng=0), x).rows)
    with pytest.raises(xplstm.DTypeError, match="lstm must be an LSTM, GRU or RNN"):
        quantisation_error(lstm.freeze(), x)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_old_build_is_reported() -> None:
    """A compiled module of another version is not called."""
    code = """
import sys, types
sys.modules["xplstm.kernels._engine"] = types.ModuleType("xplstm.kernels._engine")
import numpy as np, xplstm
lstm, x = xplstm.LSTM(3, 9), np.ones((2, 2, 3), dtype="float32")
lstm(x), lstm.freeze().step(x[0]), xplstm.release_memory()
print(lstm.explain(x))
xplstm.show_config()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("it has interface 0, expected") == 2
    assert "pip install" in run.stdout
