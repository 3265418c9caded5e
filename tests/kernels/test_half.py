"""Check float16 and bfloat16 layers on the compiled kernel: stored weights unchanged, sums in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.support.cases import Case, run
from xplstm import _array
from xplstm.kernels import native

if native.WHY_NOT:
    pytest.skip(native.WHY_NOT, allow_module_level=True)

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
CASES = {
    "small": Case(),
    "one": Case(1, 1, 1, 1),
    "no time": Case(T=0),
    "no batch": Case(B=0),
    "odd": Case(5, 9, 70, 33),
    "ragged": Case(5, 4, 3, 20, {"bidirectional": True, "num_layers": 2}, [3, 0, 5, 1]),
    "projection": Case(6, 5, 40, 150, {"proj_size": 130}, holes=True),
    "peepholes": Case(5, 4, 3, 20, {"variant": xplstm.Variant(peepholes=True, cell_clip=1.5)}),
    "batch first": Case(4, 3, 5, 17, {"batch_first": True, "bias": False}),
}


@pytest.fixture(params=native.ISAS, autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(native, "ISA", request.param)
    with xplstm.use_kernel("native"):
        yield str(request.param)


@pytest.fixture(params=ROUNDOFF)
def dtype(request: pytest.FixtureRequest) -> str:
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    return str(request.param)


def narrow(a: Any, dtype: str) -> np.ndarray:
    return np.asarray(a).astype(_array.dtype_from_name(np, dtype))


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_float32_rounded_once(name: str, dtype: str) -> None:
    case = CASES[name]
    arrays = {key: narrow(a, dtype) for key, a in case.poisoned().items()}
    wide = case.lstm(dtype=dtype).to(dtype="float32")
    want = run(wide, {key: a.astype("float32") for key, a in arrays.items()}, **case.valid()).flat()
    got = run(case.lstm(dtype=dtype), arrays, **case.valid()).flat()
    assert got.keys() == want.keys()
    # The rows between layers are rounded too, which float32 layers do not do.
    between = ROUNDOFF[dtype] * 16 if case.options.get("num_layers", 1) > 1 else 0
    for key, value in want.items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        if between:
            np.testing.assert_allclose(got[key].astype("float32"), value, rtol=0, atol=between * scale)
        else:
            np.testing.assert_array_equal(got[key], narrow(value, dtype), err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_one_rounding(name: str, dtype: str) -> None:
    """Compare with the reference in float64 on the same numbers."""
    case = CASES[name]
    if case.options.get("num_layers", 1) > 1:
        pytest.skip("the output of a first layer is rounded too")
    arrays = {key: narrow(a, dtype) for key, a in case.arrays().items()}
    with xplstm.use_kernel("reference"):
        wide = case.lstm(dtype=dtype).to(dtype="float64")
        state = tuple(arrays[key].astype("float64") for key in ("h_0", "c_0"))
        want, end = wide(arrays["x"].astype("float64"), state, **case.valid())
    y, found = case.lstm(dtype=dtype)(arrays["x"], (arrays["h_0"], arrays["c_0"]), **case.valid())
    for a, b in ((y, want), (found.h, end.h), (found.c, end.c)):
        bound = ROUNDOFF[dtype] * np.abs(b) + 2.0**-25 + 32 * 2.0**-24 * max(1, np.abs(b).max(initial=0))
        assert np.all(np.abs(a.astype("float64") - b) <= bound)


@pytest.mark.parametrize("rows", [(), (3,)])
def test_steps_have_the_bits_of_a_call(rows: tuple[int, ...], dtype: str) -> None:
    frozen = xplstm.LSTM(5, 21, 2, proj_size=9, dtype=dtype, rng=0).freeze()
    rng = np.random.default_rng(0)
    x = narrow(rng.normal(size=(4, *rows, 5)), dtype)
    state = tuple(narrow(rng.normal(size=(2, *rows, n)), dtype) for n in (9, 21))
    for x_t in x:
        y, end = frozen(x_t[None], state)
        y_t, state = frozen.step(x_t, state)
        np.testing.assert_array_equal(y_t, y[0])
        np.testing.assert_array_equal(state[0], end.h)
        np.testing.assert_array_equal(state[1], end.c)
        assert y_t.dtype == state[1].dtype == x.dtype
    assert callable(frozen._steppers["native"])
    with pytest.raises(xplstm.DTypeError, match=f"the parameters are {dtype}"):
        frozen.step(x[0].astype("float32"))
    with pytest.raises(xplstm.XplstmError, match="state"):
        frozen.step(x[0], 3)  # type: ignore[arg-type]
    zeros, _ = frozen.step(x[0])
    np.testing.assert_array_equal(zeros, frozen(x[:1])[0][0])


def test_every_number_is_read_as_it_is(dtype: str) -> None:
    """With i = 1 and g = z_g, the first c is the weight of g."""
    H = 2**14
    variant = xplstm.Variant(activations=("identity", "identity", "identity"))
    lstm = xplstm.LSTM(1, H, proj_size=1, variant=variant, dtype=dtype)
    params = {name: np.zeros_like(a) for name, a in lstm.params.items()}
    params["bias_ih_l0"][:H] = 1
    bits = np.arange(2**16, dtype=np.uint16).reshape(4, H)
    x = narrow(np.ones((1, 1, 1)), dtype)
    for part in bits:
        values = part.view(x.dtype)
        params["weight_ih_l0"][2 * H : 3 * H, 0] = values
        lstm.params = params
        _, (_, c) = lstm(x)
        # On Arm, NumPy warns about the conversion of a signaling NaN of float16.
        with np.errstate(invalid="ignore"):
            found, want = c[0, 0].astype("float32"), values.astype("float32")
        np.testing.assert_array_equal(found, want)
        negative = want < 0
        np.testing.assert_array_equal(np.signbit(found)[negative], True)


def test_checkpoints_and_reproducible_sums(dtype: str, isa: str) -> None:
    case = Case(6, 3, 4, 10)
    a = {key: narrow(value, dtype) for key, value in case.arrays().items()}
    lstm = case.lstm(dtype=dtype)
    y, _, pullback = lstm.vjp(a["x"], (a["h_0"], a["c_0"]))
    again, _, recomputed = lstm.vjp(a["x"], (a["h_0"], a["c_0"]), checkpoint=2)
    np.testing.assert_array_equal(again, y)
    for one, other in zip(pullback(a["dy"])[0], recomputed(a["dy"])[0], strict=True):
        np.testing.assert_allclose(
            one.astype("float32"), other.astype("float32"), rtol=0, atol=ROUNDOFF[dtype]
        )
    if native.ISAS[isa]:
        strict = xplstm.LSTM(4, 10, dtype=dtype, rng=case.seed, reproducible=True)
        np.testing.assert_array_equal(strict(a["x"][:, 1:2])[0], strict(a["x"])[0][:, 1:2])
        assert strict.explain(a["x"]).canonical_sums
