"""Check the behaviour that every backend and kernel must have."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import CASES, Case, kernels, run, settled
from xplstm import _dispatch
from xplstm._array import to_numpy

KERNELS = kernels()


def build(case: Case, xp: Any, **options: Any) -> tuple[xplstm.LSTM, dict[str, Any]]:
    """Return the LSTM and the arrays of a case on a backend."""
    dtype = options.get("dtype", "float64")
    arrays = {k: a.astype(dtype) for k, a in case.arrays().items()}
    return case.lstm(xp=xp.xp, **options), xp.arrays(arrays)


# Ragged batches


@pytest.mark.parametrize(
    "name", ["ragged", "holes", "bidirectional_ragged", "bidirectional_holes", "projection_ragged"]
)
def test_padding_changes_nothing(xp: Any, name: str) -> None:
    case = CASES[name]
    lstm, clean = build(case, xp)
    want = run(lstm, clean, **case.valid()).flat()
    got = run(lstm, xp.arrays(case.poisoned()), **case.valid()).flat()
    for key, value in want.items():
        np.testing.assert_array_equal(to_numpy(got[key]), to_numpy(value), err_msg=key)


def test_past_the_length_everything_is_exactly_zero_or_as_it_was(xp: Any) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = build(case, xp)
    got = {k: to_numpy(v) for k, v in run(lstm, arrays, **case.valid()).flat().items()}
    for b, n in enumerate(case.lengths or []):
        assert not got["y"][n:, b].any()
        assert not got["dx"][n:, b].any()
    empty = (case.lengths or []).index(0)
    a = case.arrays()
    np.testing.assert_array_equal(got["h_n"][:, empty], a["h_0"][:, empty])
    np.testing.assert_array_equal(got["c_n"][:, empty], a["c_0"][:, empty])
    np.testing.assert_array_equal(got["dh_0"][:, empty], a["dh_n"][:, empty])


def test_a_ragged_row_is_that_row_alone(xp: Any) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = build(case, xp)
    y, (h_n, c_n) = lstm(arrays["x"], (arrays["h_0"], arrays["c_0"]), lengths=case.lengths)
    y, h_n, c_n = (to_numpy(v) for v in (y, h_n, c_n))
    a = case.arrays()
    for b, n in enumerate(case.lengths or []):
        if n:
            alone = xp.arrays({k: a[k][:, b : b + 1] for k in ("x", "h_0", "c_0")})
            x = xp.asarray(a["x"][:n, b : b + 1])
            y_b, (h_b, c_b) = lstm(x, (alone["h_0"], alone["c_0"]))
            for got, want in ((y[:n, b], y_b), (h_n[:, b], h_b), (c_n[:, b], c_b)):
                np.testing.assert_allclose(got, to_numpy(want)[:, 0], rtol=0, atol=1e-14)


def test_lengths_and_the_mask_that_says_the_same_agree(xp: Any) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = build(case, xp)
    mask = np.arange(case.T)[:, None] < np.asarray(case.lengths)[None, :]
    by_lengths = run(lstm, arrays, lengths=case.lengths).flat()
    own = run(lstm, arrays, lengths=xp.asarray(np.asarray(case.lengths))).flat()
    by_mask = run(lstm, arrays, mask=xp.asarray(mask)).flat()
    for key, value in by_lengths.items():
        np.testing.assert_array_equal(to_numpy(own[key]), to_numpy(value), err_msg=key)
        np.testing.assert_allclose(to_numpy(by_mask[key]), to_numpy(value), rtol=0, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("name", ["bidirectional_ragged", "bidirectional_holes"])
def test_every_backend_has_resets(xp: Any, name: str) -> None:
    case = CASES[name]
    lstm, arrays = build(case, xp)
    reset = np.random.default_rng(0).random((case.T, case.B)) < 0.4
    with xplstm.use_kernel("reference"):
        want = run(case.lstm(), case.arrays(), **case.valid(), reset=reset).flat()
    for given in (reset, xp.asarray(reset)):
        got = run(lstm, arrays, **case.valid(), reset=given).flat()
        for key, value in want.items():
            np.testing.assert_allclose(to_numpy(got[key]), value, rtol=0, atol=1e-12, err_msg=key)


# Empty


@pytest.mark.parametrize(("T", "B"), [(0, 4), (5, 0), (0, 0)])
@pytest.mark.parametrize("ragged", [False, True])
def test_empty_sequences_and_batches(xp: Any, T: int, B: int, ragged: bool) -> None:
    case = Case(
        T=T, B=B, options={"bidirectional": True, "num_layers": 2}, lengths=[0] * B if ragged else None
    )
    lstm, arrays = build(case, xp)
    got = {k: to_numpy(v) for k, v in run(lstm, arrays, **case.valid()).flat().items()}
    assert got["y"].shape == (T, B, 2 * case.H)
    assert got["dx"].shape == (T, B, case.I)
    if T == 0:
        np.testing.assert_array_equal(got["h_n"], case.arrays()["h_0"])
        np.testing.assert_array_equal(got["dc_0"], case.arrays()["dc_n"])
    for name, shape in lstm.shapes.items():
        assert got[name].shape == shape
        assert not got[name].any()


# Inputs


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "every_other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "byte_swapped": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read_only": lambda a: np.require(a, requirements="C").copy(),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_what_a_contiguous_copy_gives(layout: str, kernel: str) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = case.lstm(), case.arrays()
    with xplstm.use_kernel(kernel):
        want = run(lstm, arrays, **case.valid()).flat()
        laid_out = {k: LAYOUTS[layout](a) for k, a in arrays.items()}
        for a in laid_out.values():
            a.setflags(write=False)
        lstm.params = {
            k: LAYOUTS["byte_swapped"](v) if layout == "byte_swapped" else v for k, v in lstm.params.items()
        }
        got = run(lstm, laid_out, **case.valid()).flat()
    for key, value in want.items():
        assert got[key].dtype == np.float64
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("name", ["plain", "ragged", "holes", "projection_ragged"])
def test_inputs_are_never_written_to(xp: Any, name: str) -> None:
    case = CASES[name]
    lstm, arrays = build(case, xp)
    before = case.lstm().params
    run(lstm, arrays, **case.valid())
    lstm(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    for key, value in case.arrays().items():
        np.testing.assert_array_equal(to_numpy(arrays[key]), value, err_msg=key)
    for key, value in before.items():
        np.testing.assert_array_equal(to_numpy(lstm.params[key]), value, err_msg=key)


# Dtypes


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_dtype_stays(xp: Any, dtype: str) -> None:
    if xp.name == "array_api_strict" and dtype not in ("float64", "float32"):
        pytest.skip("array_api_strict has no half precision")
    if dtype == "bfloat16" and xp.name != "torch":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    if dtype == "bfloat16" and xp.name == "dask":
        pytest.skip("Dask cannot make bfloat16 arrays of its own")
    case = CASES["bidirectional_ragged"]
    exact = run(case.lstm(), case.arrays(), **case.valid()).flat()
    lstm = case.lstm(xp=xp.xp, dtype=dtype)
    from xplstm._array import asarray, dtype_name

    arrays = {k: asarray(a, xp.xp, None, dtype) for k, a in case.arrays().items()}
    got = run(lstm, arrays, **case.valid()).flat()
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for key, value in got.items():
        assert dtype_name(value.dtype) == dtype, key
        scale = max(1.0, float(np.abs(exact[key]).max()))
        np.testing.assert_allclose(
            to_numpy(value).astype(float), exact[key], rtol=0, atol=16 * eps * scale, err_msg=key
        )


def test_half_precision_sums_in_single() -> None:
    """A sum has many small terms, which float16 alone would round away."""
    n = 4096
    lstm = xplstm.LSTM(n, 1, bias=False, dtype="float16")
    weight = np.zeros((4, n), dtype=np.float16)
    weight[2] = 2.0**-13
    lstm.params |= {"weight_ih_l0": weight, "weight_hh_l0": np.zeros((4, 1), dtype=np.float16)}
    x = np.ones((1, 1, n), dtype=np.float16)
    c = float(lstm(x)[1].c[0, 0, 0])
    assert c == pytest.approx(0.5 * np.tanh(0.5), rel=2.0**-10)


def test_half_precision_sums_in_single_over_checkpoints_too(xp: Any) -> None:
    if xp.name == "array_api_strict":
        pytest.skip("array_api_strict has no float16")
    lstm = xplstm.LSTM(1, 1, xp=xp.xp, dtype="float16", rng=0)
    # The graph of Dask grows with the square of T.
    T = 40 if xp.name == "dask" else 300
    x = xp.asarray(np.ones((T, 1, 1), dtype=np.float16))
    # A kernel for GPUs hands h on in half precision, and a checkpoint does not.
    with xplstm.use_kernel("reference" if xp.name == "cupy" else None):
        plain, cut = lstm.vjp(x), lstm.vjp(x, checkpoint=7)
    dy = xp.asarray(np.full((T, 1, 1), 30, dtype=np.float16))
    want, got = plain[2](dy)[2], cut[2](dy)[2]
    y, y_cut, *values = settled([plain[0], cut[0], *want.values(), *got.values()])
    np.testing.assert_array_equal(to_numpy(y), to_numpy(y_cut))
    for name, value, value_cut in zip(want, values, values[len(want) :], strict=False):
        np.testing.assert_allclose(to_numpy(value_cut), to_numpy(value), rtol=2.0**-10, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_single_beside_the_lstm(dtype: str) -> None:
    """The sum of 5000 ones stops at 2048 in float16, and at 256 in bfloat16."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    from xplstm._array import asarray, dtype_name, numpy_namespace

    ones = (
        asarray(np.ones((5000, 1)), numpy_namespace(), None, dtype)
        if dtype == "bfloat16"
        else np.ones((5000, 1), np.float16)
    )
    y, pullback = xplstm.Linear(1, 1, dtype=dtype, rng=0).vjp(ones)
    assert dtype_name(y.dtype) == dtype
    dx, dparams = pullback(ones)
    _, look_up = xplstm.Embedding(2, 1, dtype=dtype, rng=0).vjp(np.zeros(5000, dtype=np.int64))
    found = {**dparams, "embedding": look_up(ones)["weight"][:1], "dx": dx}
    for name, value in found.items():
        assert dtype_name(value.dtype) == dtype, name
    for name in ("weight", "bias", "embedding"):
        assert float(found[name].reshape(-1)[0]) == pytest.approx(5000, rel=2.0**-8), name


# Saturation and NaN


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_saturation_gives_no_warning_and_no_nan(xp: Any, dtype: str) -> None:
    largest = float(np.finfo(dtype).max)
    lstm = xplstm.LSTM(1, 2, bias=False, xp=xp.xp, dtype=dtype, rng=0)
    host = {
        "weight_ih_l0": np.asarray([[1], [-1], [1], [-1], [1], [-1], [1], [1]]),
        "weight_hh_l0": np.zeros((8, 2)),
    }
    lstm.params = {k: xp.asarray(v.astype(dtype)) for k, v in host.items()}
    x = np.asarray([largest, -largest, largest / 2, 0.0], dtype=dtype).reshape(2, 2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, state, pullback = lstm.vjp(xp.asarray(x))
        dx, _, dparams = pullback(xp.asarray(np.ones((2, 2, 2), dtype=dtype)))
    for a in (y, *state, dx, *dparams.values()):
        assert np.isfinite(to_numpy(a)).all()
    assert np.abs(to_numpy(y)).max() <= 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_stays_in_its_row(xp: Any) -> None:
    case = CASES["bidirectional"]
    lstm, arrays = build(case, xp)
    want = run(lstm, arrays).flat()
    x = case.arrays()["x"]
    x[2, 1, 0] = np.nan
    got = run(lstm, arrays | {"x": xp.asarray(x)}).flat()
    others = [b for b in range(case.B) if b != 1]
    for key in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        value = to_numpy(got[key])
        np.testing.assert_allclose(
            value[:, others], to_numpy(want[key])[:, others], rtol=0, atol=1e-14, err_msg=key
        )
        assert np.isnan(value[:, 1]).any()


# Determinism


def test_the_same_call_gives_the_same_bits(xp: Any) -> None:
    case = CASES["bidirectional_ragged"]
    lstm, arrays = build(case, xp, dtype="float32")
    first, again = (run(lstm, arrays, **case.valid()).flat() for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(to_numpy(again[key]), to_numpy(value), err_msg=key)


def test_dropout_is_the_same_on_every_backend(xp: Any) -> None:
    case = Case(options={"num_layers": 3, "dropout": 0.4, "bidirectional": True})
    want = run(case.lstm(), case.arrays(), rng=5).flat()
    lstm, arrays = build(case, xp)
    got = run(lstm, arrays, rng=5).flat()
    for key, value in want.items():
        np.testing.assert_allclose(to_numpy(got[key]), value, rtol=0, atol=1e-12, err_msg=key)


# Devices and libraries


def test_two_libraries_in_one_call_are_refused(xp: Any) -> None:
    if xp.name.startswith("numpy"):
        pytest.skip("NumPy with NumPy is one library")
    x, state = np.zeros((5, 4, 3), dtype=np.float32), np.zeros((1, 4, 2), dtype=np.float32)
    refusal = f"x is an array from {xp.name}, but the parameters are from numpy"
    # A call takes Dask arrays, whose chunks are NumPy's; gradients do not.
    refusal = "x is a Dask array, and only a call of a layer accepts" if xp.name == "dask" else refusal
    with pytest.raises(xplstm.BackendError, match=refusal):
        xplstm.LSTM(3, 2).vjp(xp.asarray(x))
    with pytest.raises(
        xplstm.BackendError, match=rf"h_0 is an array from numpy, but the parameters are from {xp.name}"
    ):
        xplstm.LSTM(3, 2, xp=xp.xp)(xp.asarray(x), (state, state))


def test_two_devices_in_one_call_are_refused() -> None:
    strict = pytest.importorskip("array_api_strict")
    lstm = xplstm.LSTM(3, 2, xp="array_api_strict")
    x = strict.zeros((5, 4, 3), dtype=strict.float32, device=strict.Device("device1"))
    with pytest.raises(
        xplstm.BackendError, match=r"x is on device .*device1.*, but the parameters are on .*CPU"
    ):
        lstm(x)


def test_another_device_works_as_a_whole() -> None:
    strict = pytest.importorskip("array_api_strict")
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("array_api_strict's to_device needs NumPy 2")
    device = strict.Device("device1")
    case = CASES["bidirectional_ragged"]
    want = run(case.lstm(), case.arrays(), **case.valid(), rng=0).flat()
    lstm = case.lstm(xp="array_api_strict", device=device)
    arrays = {k: strict.asarray(v, device=device) for k, v in case.arrays().items()}
    got = run(lstm, arrays, **case.valid(), rng=0).flat()
    for key, value in want.items():
        assert got[key].device == device
        np.testing.assert_allclose(
            np.asarray(got[key].to_device(strict.Device("CPU_DEVICE"))), value, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("shape", [(2**31, 1, 1), (1, 2**31, 1), (0, 2**60, 1), (2**60, 0, 1)])
@pytest.mark.parametrize("network", [xplstm.LSTM, xplstm.GRU, xplstm.RNN])
def test_sizes_beyond_32_bits_are_refused_by_name(network: Any, shape: tuple[int, ...]) -> None:
    long = np.lib.stride_tricks.as_strided(np.ones(1, "float32"), shape, (0, 0, 0))
    layer = network(1, 1, rng=0)
    size = f"T={shape[0]} steps" if shape[0] > shape[1] else f"B={shape[1]} batch entries"
    for call in (layer, layer.vjp, layer.explain, layer.freeze()):
        with pytest.raises(xplstm.ArgumentError, match=f"x has {size}, expected at most 2147483647"):
            call(long)


def test_mixed_integers_as_lengths_are_read() -> None:
    lstm = xplstm.LSTM(1, 1, rng=0)
    x = np.ones((3, 2, 1), "float32")
    want = lstm(x, lengths=[1, 2])[0]
    np.testing.assert_array_equal(lstm(x, lengths=[np.int8(1), np.uint64(2)])[0], want)
    with pytest.raises(xplstm.DTypeError, match="must contain integers"):
        lstm(x, lengths=[True, 1])


@pytest.mark.parametrize("kernel", ["native", "numpy_inplace", "reference"])
@pytest.mark.parametrize("network", [xplstm.LSTM, xplstm.GRU, xplstm.RNN])
@pytest.mark.parametrize("x", [0.0, 1e-40, 3.0, -90.0, 1e4, -1e30])
def test_underflow_is_no_error_where_numpy_raises(kernel, network, x):
    if _dispatch.why_missing(kernel):
        pytest.skip(_dispatch.why_missing(kernel))
    layer = network(3, 5, 2, bidirectional=True, rng=0)
    given, dy = np.full((4, 2, 3), x, "float32"), np.full((4, 2, 10), 1e-38, "float32")
    with np.errstate(all="raise"), xplstm.use_kernel(kernel if network is xplstm.LSTM else "reference"):
        _, _, pullback = layer.vjp(given)
        pullback(dy)
        layer(given)
