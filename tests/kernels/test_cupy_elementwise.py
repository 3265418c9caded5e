"""Check CuPy's elementwise kernels, recorded from the cells and emulated on the CPU, not on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xplstm
from tests.cuda_emulation import compiled, standin
from tests.cuda_emulation.carried import emulated, there
from tests.support.cases import CASES, Case, run
from xplstm import Variant, _array, _dispatch
from xplstm._problem import Noise, Problem
from xplstm.cells.lstm import STANDARD
from xplstm.cells.variant import lstm_cell
from xplstm.kernels import cupy_elementwise
from xplstm.kernels._cuda import trials
from xplstm.kernels._cuda.recorded import Recorder

pytestmark = [
    pytest.mark.skipif(compiled.compiler() is None, reason="no C++20 compiler is here to emulate kernels"),
    pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 cannot replace CuPy 14"),
]

EVERY_FUNCTION = ("elu", ("affine", 0.9, 0.1), "softsign", "softplus", "leaky_relu", "scaled_tanh")
VARIANTS = {
    "peepholes": Variant(peepholes=True),
    "coupled": Variant(coupled=True, peepholes=True, cell_clip=0.3),
    "clips": Variant(gate_clip=0.4, cell_clip=0.3),
    "hard": Variant(activations=("hard_sigmoid", "relu", ("thresholded_relu", 0.1))),
    "functions": Variant(activations=EVERY_FUNCTION),
    "zoneout": Variant(zoneout_h=0.1, zoneout_c=0.2),
}


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace all other kernels with the emulated kernel."""

    def select(problem: Problem) -> _dispatch.Kernel:
        kernel = emulated("cupy_elementwise")
        assert kernel.supports(problem) is None
        return kernel

    with standin.installed():
        monkeypatch.setattr(_dispatch, "select", select)
        yield


def agrees(layer: Any, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, **valid: Any) -> None:
    """Compare outputs and gradients with the reference in float64."""
    dtype = _array.dtype_name(arrays["x"].dtype)
    got = run(layer, arrays, **valid)
    y, (h_n, c_n) = layer(arrays["x"], (arrays["h_0"], arrays["c_0"]), **valid)
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        exact = {k: a.astype("float64") for k, a in arrays.items()}
        want = run(layer.to(dtype="float64"), exact, **valid)
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    for key, value in want.flat().items():
        assert _array.dtype_name(got.flat()[key].dtype) == dtype
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        found = np.asarray(got.flat()[key]).astype("float64")
        np.testing.assert_allclose(found, value, rtol=0, atol=8 * 2.0**-bits * scale, err_msg=key)
    for key, value in (("y", y), ("h_n", h_n), ("c_n", c_n)):
        np.testing.assert_array_equal(value, got.flat()[key], err_msg=f"{key} without residuals")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    arrays = {k: _array.asarray(a, np, dtype=dtype) for k, a in case.poisoned().items()}
    agrees(case.lstm(dtype=dtype), arrays, monkeypatch, **case.valid())


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_between_products(name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"variant": VARIANTS[name], "bidirectional": True, "proj_size": 2 if ragged else 0}
    case = Case(options=options, lengths=[2, 5, 0, 3] if ragged else None)
    agrees(case.lstm(), case.poisoned(), monkeypatch, **case.valid())


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["lstm", "projection", "gru"])
def test_resets(name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["ragged" if ragged else "plain"]
    size = {"bidirectional": True, "dtype": "float64", "rng": 1}
    layer: Any = {
        "lstm": lambda: xplstm.LSTM(3, 6, num_layers=2, **size),
        "projection": lambda: xplstm.LSTM(3, 6, proj_size=2, **size),
        "gru": lambda: xplstm.GRU(3, 6, **size),
    }[name]()
    x, valid = case.poisoned()["x"], case.valid()
    reset = np.random.default_rng(3).random((case.T, case.B)) < 0.4

    def answers() -> list[np.ndarray]:
        y, state, pullback = layer.vjp(x, reset=reset, **valid)
        dx, dstate, dparams = pullback(y, state)
        states = (state, dstate) if name == "gru" else (*state, *dstate)
        return [layer(x, reset=reset, **valid)[0], y, *states, dx, *dparams.values()]

    got = answers()
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        want = answers()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        xplstm.GRU(3, 6, rng=1, dtype="float64"),
        xplstm.GRU(3, 6, rng=2, dtype="float64", reset_after=False, bidirectional=True),
        xplstm.RNN(3, 6, rng=3, dtype="float64", bias=False),
        xplstm.JordanRNN(3, 6, output_size=4, rng=4, dtype="float64", nonlinearity="relu"),
    ],
    ids=["gru", "gru_reset_before", "rnn", "jordan"],
)
def test_other_cells(layer: Any, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["ragged" if ragged else "plain"]
    x = case.poisoned()["x"]
    y, h, _ = layer.vjp(x, **case.valid())
    dy, dh = (np.random.default_rng(5).normal(size=a.shape) for a in (y, h))
    dy = np.where(case.exists()[:, :, None], dy, np.nan)

    def answers() -> list[np.ndarray]:
        y, h, pullback = layer.vjp(x, **case.valid())
        dx, dh_0, dparams = pullback(dy, dh)
        return [y, h, dx, dh_0, *dparams.values()]

    got = answers()
    monkeypatch.undo()
    with xplstm.use_kernel("reference"):
        want = answers()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(T: int, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(T=T, B=B, options={"bidirectional": True, "proj_size": 2})
    agrees(case.lstm(), case.arrays(), monkeypatch)


@pytest.mark.parametrize(("options", "forward", "backward"), [({}, 1, 1), ({"proj_size": 2}, 2, 2)])
def test_launches(options: dict[str, Any], forward: int, backward: int) -> None:
    """Count the elementwise kernels of a step; a product comes before or after each."""
    case = Case(options=options)
    arrays = case.arrays()
    lstm = case.lstm()
    lstm(arrays["x"])
    assert standin.launched == ["xplstm_step"] * case.T * forward
    standin.launched.clear()
    run(lstm, arrays)
    assert standin.launched == ["xplstm_step"] * case.T * (forward + backward)


def problem(**changes: Any) -> Problem:
    parts = dict(zip(Problem._fields, (None, "cupy", None, "float32", 5, 4, 3, 6, 0, True), strict=False))
    parts |= {"reverse": (False,), "valid": "all", "keep": True, "cell": STANDARD}
    return there(Problem(**(parts | changes)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cell": lstm_cell(Variant(layer_norm=True), 1)}, "not elementwise between products: mean"),
        ({"noise": Noise((1, 2), 0, 0)}, "random masks"),
        ({"B": 2**28, "H": 2}, "2147483648 elements; the kernel supports at most 2147483647"),
        ({"dtype": "complex64"}, "complex64"),
    ],
)
def test_refuses_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason in str(cupy_elementwise.supports(problem(**changes)))
    assert cupy_elementwise.supports(problem()) is None


def test_a_captured_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin.Stream.current[1], "captured", True, raising=False)
    assert "captured" in str(cupy_elementwise.supports(problem()))


def test_it_is_the_default_where_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(trials, "check", lambda *_: "y is wrong")
    names = [name for name in _dispatch.TABLE if _dispatch.why_not(name, problem()) is None]
    assert names == ["cupy_elementwise", "reference"]


def test_only_what_backward_reads_is_kept() -> None:
    """A standard LSTM keeps the gates; the states of all steps contain h and c."""
    recorded = cupy_elementwise._record_step(problem(), 0)
    assert [place for _, place in recorded.kept] == ["own"] * 4 + ["h before", "c before", "c after"]
    masked = cupy_elementwise._record_step(problem(valid="lengths"), 0)
    assert [place for _, place in masked.kept].count("own") == 5


def test_a_slice_of_a_slice() -> None:
    recorder = Recorder()
    a = recorder.array(12)
    both = recorder.concat([a[..., 4:10], a[..., :2]])
    assert [(p.node.first, p.width) for p in both[..., 3:7][..., 2:].parts()] == [(9, 1), (0, 1)]
