"""Check all invalid arguments: the class of the error, and the name, value and bound in its message."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest

import xplstm
from tests.conftest import backend
from xplstm import ArgumentError, BackendError, DTypeError, LSTMParams, ShapeError, _array, _checks

T, B, I, H = 5, 4, 3, 2
F = np.float32


def lstm(**options: Any) -> xplstm.LSTM:
    return xplstm.LSTM(I, H, rng=0, **options)


def x(*shape: int, dtype: Any = F) -> np.ndarray:
    return np.ones(shape or (T, B, I), dtype=dtype)


def state(h: tuple[int, ...], c: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(h, dtype=F), np.zeros(c, dtype=F)


def params(**changes: Any) -> LSTMParams:
    whole = LSTMParams(x(4 * H, I), x(4 * H, H), x(4 * H), x(4 * H))
    return whole._replace(**changes)


def with_param(name: str, value: Any) -> xplstm.LSTM:
    module = lstm()
    module.params[name] = value
    return module


def without_param(name: str) -> xplstm.LSTM:
    module = lstm()
    del module.params[name]
    return module


CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "input_size 0": (lambda: xplstm.LSTM(0, 2), ArgumentError, "input_size=0 must be at least 1"),
    "hidden_size -1": (lambda: xplstm.LSTM(3, -1), ArgumentError, "hidden_size=-1 must be at least 1"),
    "hidden_size 2.5": (lambda: xplstm.LSTM(3, 2.5), DTypeError, "hidden_size=2.5 must be an integer"),
    "hidden_size True": (lambda: xplstm.LSTM(3, True), DTypeError, "hidden_size=True must be an integer"),
    "num_layers 0": (lambda: lstm(num_layers=0), ArgumentError, "num_layers=0 must be at least 1"),
    "proj_size H": (
        lambda: lstm(proj_size=2),
        ArgumentError,
        "proj_size=2 must be smaller than hidden_size=2",
    ),
    "proj_size -1": (lambda: lstm(proj_size=-1), ArgumentError, "proj_size=-1 must be at least 0"),
    "dropout 1": (lambda: lstm(dropout=1.0), ArgumentError, r"dropout=1.0 must be in \[0, 1\)"),
    "precision fp8": (lambda: lstm(precision="fp8"), ArgumentError, "precision='fp8' must be None or 'tf32'"),
    "precision 32": (lambda: lstm(precision=32), ArgumentError, "precision=32 must be None or 'tf32'"),
    "precision of one layer": (
        lambda: xplstm.lstm_vjp(x(), params(), precision="TF32"),
        ArgumentError,
        "precision='TF32' must be None or 'tf32'",
    ),
    "reproducible 1": (lambda: lstm(reproducible=1), DTypeError, "reproducible=1 must be True or False"),
    "reproducible of one layer": (
        lambda: xplstm.lstm(x(), params(), reproducible="no"),
        DTypeError,
        "reproducible='no' must be True or False",
    ),
    "precision and reproducible": (
        lambda: lstm(precision="tf32", reproducible=True),
        ArgumentError,
        "precision='tf32' cannot be combined with reproducible=True",
    ),
    "dropout nan": (lambda: lstm(dropout=float("nan")), ArgumentError, r"dropout=nan must be in \[0, 1\)"),
    "dropout text": (lambda: lstm(dropout="0.5"), DTypeError, r"dropout='0.5' must be a number, in \[0, 1\)"),
    "bias None": (lambda: lstm(bias=None), DTypeError, "bias=None must be True or False"),
    "batch_first 1": (lambda: lstm(batch_first=1), DTypeError, "batch_first=1 must be True or False"),
    "bidirectional 2": (lambda: lstm(bidirectional=2), DTypeError, "bidirectional=2 must be True or False"),
    "dtype int": (lambda: lstm(dtype="int32"), DTypeError, "dtype='int32' must be one of float64, float32"),
    "xp unknown": (
        lambda: lstm(xp="numppy"),
        ArgumentError,
        "backend 'numppy' is unknown, expected one of",
    ),
    "xp object": (
        lambda: lstm(xp=3),
        ArgumentError,
        "xp=3 is neither an array API namespace nor one of numpy",
    ),
    "device of another library": (
        lambda: lstm(device="cuda:7"),
        BackendError,
        "device='cuda:7' cannot store numpy arrays here",
    ),
    "rng text": (lambda: xplstm.LSTM(3, 2, rng="seed"), DTypeError, "rng='seed' must be an integer"),
    "rng negative": (lambda: xplstm.Linear(3, 2, rng=-1), ArgumentError, "rng=-1 must be at least 0"),
    "Dropout 2": (lambda: xplstm.Dropout(2), ArgumentError, r"p=2 must be in \[0, 1\)"),
    "Linear 0": (lambda: xplstm.Linear(0, 1), ArgumentError, "in_features=0 must be at least 1"),
    "Embedding 0": (lambda: xplstm.Embedding(0, 1), ArgumentError, "num_embeddings=0 must be at least 1"),
}

CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "x list": (lambda: lstm()([[1.0]]), DTypeError, "x must be an array of an array API library, got list"),
    "x ragged": (
        lambda: lstm()([np.ones((n, 3)) for n in (2, 4)]),
        DTypeError,
        r"got list; pass xplstm.models.pad\(x\) to a model",
    ),
    "x masked array": (lambda: lstm()(np.ma.ones((T, B, I), F)), DTypeError, "x is a masked array"),
    "x complex": (lambda: lstm()(x(dtype=complex)), DTypeError, r"dtype complex128, .*astype\('float32'\)$"),
    "x None": (lambda: lstm()(None), DTypeError, "x must be an array of an array API library, got NoneType"),
    "lengths ragged": (lambda: lstm()(x(), lengths=[[1], [2, 3], 1, 1]), DTypeError, "must contain integers"),
    "lengths unbatched float": (
        lambda: lstm()(x(T, I), lengths=3.0),
        DTypeError,
        "lengths must be an array .* got float",
    ),
    "lengths unbatched two": (
        lambda: lstm()(x(T, I), lengths=[3, 4]),
        ShapeError,
        r"lengths has shape \(2,\), expected \(1,\)",
    ),
    "mask unbatched": (
        lambda: lstm()(x(T, I), mask=np.ones((T, 1), bool)),
        ShapeError,
        r"mask has shape \(5, 1\), expected \(5,\)",
    ),
    "dstate number": (
        lambda: lstm().vjp(x())[2](None, 1),
        DTypeError,
        r"dstate_n must be a pair \(h, c\), got int",
    ),
    "reverse text": (
        lambda: xplstm.lstm(x(), params(), reverse="no"),
        DTypeError,
        "reverse='no' must be True or False",
    ),
    "kernel list": (lambda: xplstm.use_kernel([]), ArgumentError, r"kernel \[\] is unknown"),
    "x features": (lambda: lstm()(x(T, B, 7)), ShapeError, r"x has shape \(5, 4, 7\), expected \(T, B, 3\)"),
    "x features, batch first": (
        lambda: lstm(batch_first=True)(x(B, T, 7)),
        ShapeError,
        r"x has shape \(4, 5, 7\), expected \(B, T, 3\)",
    ),
    "x unbatched": (lambda: lstm()(x(T, 7)), ShapeError, r"x has shape \(5, 7\), expected \(T, 3\)"),
    "x four axes": (
        lambda: lstm()(x(1, T, B, I)),
        ShapeError,
        r"x has shape \(1, 5, 4, 3\), expected \(T, B, 3\)",
    ),
    "x one axis": (lambda: lstm()(x(I)), ShapeError, r"x has shape \(3,\), expected \(T, B, 3\)"),
    "x float64": (
        lambda: lstm()(x(dtype=np.float64)),
        DTypeError,
        r"x has dtype float64, but the parameters are float32; convert it with x.astype\('float32'\), or",
    ),
    "x int": (
        lambda: lstm()(x(dtype=np.int64)),
        DTypeError,
        "x has dtype int64, but the parameters are float32",
    ),
    "state array": (lambda: lstm()(x(), x()), DTypeError, r"state must be a pair \(h, c\), got ndarray"),
    "state of three": (lambda: lstm()(x(), (x(), x(), x())), DTypeError, r"pair \(h, c\), got 3 items"),
    "h_0 shape": (
        lambda: lstm()(x(), state((1, 9, H), (1, B, H))),
        ShapeError,
        r"h_0 has shape \(1, 9, 2\), expected \(1, 4, 2\): \(num_layers \* directions, B, output size\)",
    ),
    "c_0 shape": (
        lambda: lstm()(x(), state((1, B, H), (1, B, 5))),
        ShapeError,
        r"c_0 has shape \(1, 4, 5\), expected \(1, 4, 2\)",
    ),
    "state swapped": (
        lambda: xplstm.LSTM(I, 4, proj_size=2)(x(), state((1, B, 4), (1, B, 2))),
        ShapeError,
        r"h_0 has shape \(1, 4, 4\), expected \(1, 4, 2\)",
    ),
    "state unbatched": (
        lambda: lstm()(x(T, I), state((1, B, H), (1, B, H))),
        ShapeError,
        r"h_0 has shape \(1, 4, 2\), expected \(1, 2\)",
    ),
    "h_0 dtype": (
        lambda: lstm()(x(), (np.zeros((1, B, H)), np.zeros((1, B, H)))),
        DTypeError,
        "h_0 has dtype float64, but the parameters are float32",
    ),
    "lengths of a batch in the other order": (
        lambda: lstm()(x(), lengths=[1] * T),
        ShapeError,
        r"lengths has shape \(5,\), expected \(4,\): .*; x is \(T, B, I\), or \(B, T, I\) for a layer with ",
    ),
    "state of a batch in the other order": (
        lambda: lstm()(x(), state((1, T, H), (1, T, H))),
        ShapeError,
        r"h_0 has shape .*; x is \(T, B, I\), or \(B, T, I\) for a layer with batch_first=True",
    ),
    "mask of a batch in the other order": (
        lambda: lstm()(x(), mask=np.ones((B, T), dtype=bool)),
        ShapeError,
        r"mask has shape .*; x is \(T, B, I\), or \(B, T, I\) for a layer with batch_first=True",
    ),
    "lengths too long": (
        lambda: lstm()(x(), lengths=[5, 6, 0, 1]),
        ArgumentError,
        r"lengths\[1\]=6 must be in \[0, T=5\]; x is \(T, B, I\), or .* for a layer with batch_first=True",
    ),
    "lengths negative": (
        lambda: lstm()(x(), lengths=[5, 0, -1, 1]),
        ArgumentError,
        r"lengths\[2\]=-1 must be in \[0, T=5\]",
    ),
    "lengths too many": (
        lambda: lstm()(x(), lengths=[1] * 9),
        ShapeError,
        r"lengths has shape \(9,\), expected \(4,\)",
    ),
    "lengths float": (
        lambda: lstm()(x(), lengths=[1.0] * B),
        DTypeError,
        "must contain integers, one per batch entry",
    ),
    "lengths bool": (
        lambda: lstm()(x(), lengths=[True] * B),
        DTypeError,
        "must contain integers, one per batch entry",
    ),
    "lengths text": (lambda: lstm()(x(), lengths="5555"), DTypeError, "lengths must be an array .* got str"),
    "lengths unbatched": (
        lambda: lstm()(x(T, I), lengths=6),
        ArgumentError,
        r"lengths\[0\]=6 must be in \[0, T=5\]",
    ),
    "mask shape": (
        lambda: lstm()(x(), mask=np.ones((B, T), bool)),
        ShapeError,
        r"mask has shape \(4, 5\), expected \(5, 4\)",
    ),
    "mask axes": (
        lambda: lstm()(x(), mask=np.ones(T, bool)),
        ShapeError,
        r"mask has shape \(5,\), expected \(5, 4\)",
    ),
    "mask dtype": (lambda: lstm()(x(), mask=x(T, B)), DTypeError, "mask has dtype float32, expected bool"),
    "mask list": (lambda: lstm()(x(), mask=[[True]]), DTypeError, "mask must be an array .* got list"),
    "both": (
        lambda: lstm()(x(), lengths=[1] * B, mask=np.ones((T, B), bool)),
        ArgumentError,
        "lengths and mask were both passed",
    ),
    "checkpoint 0": (lambda: lstm().vjp(x(), checkpoint=0), ArgumentError, "checkpoint=0 must be at least 1"),
    "rng text": (lambda: lstm().vjp(x(), rng="seed"), DTypeError, "rng='seed' must be an integer"),
    "rng negative": (lambda: lstm().vjp(x(), rng=-1), ArgumentError, "rng=-1 must be at least 0"),
    "dy shape": (
        lambda: lstm().vjp(x())[2](x(T, B, 7)),
        ShapeError,
        r"dy has shape \(5, 4, 7\), expected \(5, 4, 2\)",
    ),
    "dy dtype": (
        lambda: lstm().vjp(x())[2](x(T, B, H, dtype=np.float64)),
        DTypeError,
        "dy has dtype float64",
    ),
    "dstate shape": (
        lambda: lstm().vjp(x())[2](None, state((1, B, H), (1, 9, H))),
        ShapeError,
        r"c_n's gradient has shape \(1, 9, 2\), expected \(1, 4, 2\)",
    ),
    "step features": (lambda: lstm().step(x(B, 7)), ShapeError, r"x_t has shape \(4, 7\), expected \(B, 3\)"),
    "step sequence": (lambda: lstm().step(x()), ShapeError, r"x_t has shape \(5, 4, 3\), expected \(B, 3\)"),
    "step backward": (
        lambda: lstm(bidirectional=True).step(x(B, I)),
        ArgumentError,
        "step needs bidirectional=False",
    ),
    "frozen x": (
        lambda: lstm().freeze()(x(T, B, 7)),
        ShapeError,
        r"x has shape \(5, 4, 7\), expected \(T, B, 3\)",
    ),
    "frozen step": (
        lambda: lstm().freeze().step(x(B, 7)),
        ShapeError,
        r"x_t has shape \(4, 7\), expected \(B, 3\)",
    ),
    "Linear x": (
        lambda: xplstm.Linear(I, H)(x(T, 7)),
        ShapeError,
        r"x has shape \(5, 7\), expected \(n0, 3\)",
    ),
    "Embedding high": (
        lambda: xplstm.Embedding(5, 2)(np.asarray([1, 5])),
        ArgumentError,
        r"ids contains 5, which is not in \[0, 5\)",
    ),
    "Embedding low": (
        lambda: xplstm.Embedding(5, 2)(np.asarray([1, -1])),
        ArgumentError,
        r"ids contains -1, which is not in \[0, 5\)",
    ),
    "Embedding dtype": (
        lambda: xplstm.Embedding(5, 2)(x(4)),
        DTypeError,
        "ids has dtype float32, expected integers",
    ),
}

PARAMETERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a name too many": (lambda: with_param("weight", x(1))(x()), ArgumentError, r"unknown \['weight'\]"),
    "a name missing": (lambda: without_param("bias_hh_l0")(x()), ArgumentError, r"missing \['bias_hh_l0'\]"),
    "a value None": (
        lambda: with_param("bias_ih_l0", None)(x()),
        DTypeError,
        "bias_ih_l0 is None, expected an array",
    ),
    "no dict": (
        lambda: lstm().load_state_dict(None),
        DTypeError,
        "state_dict must be a mapping .* got NoneType",
    ),
    "a rule of other shapes": (
        lambda: lstm().initialize(lambda shapes, _: {name: np.zeros(1) for name in shapes}),
        ShapeError,
        r"weight_ih_l0 has shape \(1,\), expected \(8, 3\)",
    ),
    "a shape": (
        lambda: with_param("weight_hh_l0", x(4, 2))(x()),
        ShapeError,
        r"weight_hh_l0 has shape \(4, 2\), expected \(8, 2\)",
    ),
    "a dtype": (
        lambda: with_param("bias_ih_l0", x(8, dtype=np.float64))(x()),
        DTypeError,
        "bias_ih_l0 has dtype float64, but weight_ih_l0 is float32",
    ),
    "not an array": (
        lambda: with_param("bias_ih_l0", [0.0])(x()),
        DTypeError,
        "bias_ih_l0 must be an array .* got list",
    ),
    "integers": (
        lambda: xplstm.lstm(x(), LSTMParams(x(8, 3, dtype=int), x(8, 2, dtype=int))),
        DTypeError,
        "weight_ih has dtype int64, expected one of float64",
    ),
    "literal weight_ih": (
        lambda: xplstm.lstm(x(), params(weight_ih=x(4, 3))),
        ShapeError,
        r"weight_ih has shape \(4, 3\), expected \(8, 3\): four gates of hidden_size 2 rows each",
    ),
    "literal weight_hh": (
        lambda: xplstm.lstm(x(), params(weight_hh=x(4, 2))),
        ShapeError,
        r"weight_hh has shape \(4, 2\), expected \(8, 2\): four gates of hidden_size 2 rows each",
    ),
    "literal weight_hr": (
        lambda: xplstm.lstm(x(), params(weight_hh=x(12, 2), weight_ih=x(12, 3), weight_hr=x(1, 3))),
        ShapeError,
        r"weight_hh .* expected \(12, 1\): .*, as weight_hr has shape \(1, 3\)",
    ),
    "literal bias": (
        lambda: xplstm.lstm(x(), params(bias_hh=x(4))),
        ShapeError,
        r"bias_hh has shape \(4,\), expected \(8,\)",
    ),
    "one bias": (
        lambda: xplstm.lstm(x(), params(bias_hh=None)),
        ArgumentError,
        "params.bias_hh is None, but the other bias is an array",
    ),
    "no weight": (
        lambda: xplstm.lstm(x(), params(weight_hh=None)),
        ArgumentError,
        "params.weight_hh is None",
    ),
    "flat weight": (
        lambda: xplstm.lstm(x(), params(weight_hh=x(8))),
        ShapeError,
        r"weight_hh has shape \(8,\), expected \(rows, columns\)",
    ),
    "projection": (
        lambda: xplstm.lstm(x(), params(weight_hr=x(2, 2))),
        ArgumentError,
        "proj_size=2 must be smaller than hidden_size=2",
    ),
    "no features": (lambda: xplstm.lstm(x(), params(weight_ih=x(8, 0))), ShapeError, "implies input_size=0"),
    "a dict": (lambda: xplstm.lstm(x(), {}), DTypeError, "params must be an LSTMParams, got dict"),
}


@pytest.mark.parametrize(
    "table", [CONSTRUCTION, CALLS, PARAMETERS], ids=["construction", "calls", "parameters"]
)
def test_every_wrong_argument_is_named_with_its_value_and_bound(
    table: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for what, (call, kind, text) in table.items():
        with subtests.test(what), pytest.raises(kind, match=text):
            call()


def test_errors_are_also_the_builtins_that_people_catch() -> None:
    for kind, builtin in (
        (xplstm.ShapeError, ValueError),
        (xplstm.ArgumentError, ValueError),
        (xplstm.FormatError, ValueError),
        (xplstm.DTypeError, TypeError),
        (xplstm.BackendError, RuntimeError),
        (xplstm.KernelError, RuntimeError),
    ):
        assert issubclass(kind, builtin)
        assert issubclass(kind, xplstm.XplstmError)


def test_a_state_dict_error_lists_everything() -> None:
    module = lstm()
    wrong = dict(module.state_dict())
    del wrong["bias_hh_l0"]
    wrong |= {
        "weight": x(1),
        "weight_hh_l0": x(4, 2),
        "bias_ih_l0": x(8, dtype=np.float64),
        "weight_ih_l0": [1.0],
    }
    with pytest.raises(ShapeError) as caught:
        module.load_state_dict(wrong)
    for text in (
        "5 problem(s) in the state dict",
        "bias_hh_l0 is missing, expected shape (8,)",
        "weight is unknown",
        "weight_hh_l0 has shape (4, 2), expected (8, 2)",
        "bias_ih_l0 has dtype float64, expected float32",
        "weight_ih_l0 must be an array, got list",
    ):
        assert text in str(caught.value)


def test_nothing_is_done_before_the_checks() -> None:
    """A failed load leaves the parameters unchanged."""
    module = lstm()
    before = {k: v.copy() for k, v in module.params.items()}
    with pytest.raises(DTypeError):
        module.load_state_dict({k: v.astype(np.float64) for k, v in before.items()})
    for key, value in before.items():
        np.testing.assert_array_equal(module.params[key], value)


@pytest.mark.parametrize(("name", "given"), [("lengths", [1, 2, 3, 4]), ("mask", np.ones((T, B), np.bool_))])
def test_a_copy_that_the_device_refuses_is_named(
    name: str, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy refuses copies from the host while a graph captures its stream."""
    layer = lstm()

    def refuse(*_: Any) -> None:
        msg = "device=... cannot store cupy arrays here: the current stream is capturing"
        raise BackendError(msg)

    monkeypatch.setattr(_array, "asarray", refuse)
    with pytest.raises(BackendError, match=f"^{name} cannot be copied .* is capturing; pass an array"):
        layer(x(), **{name: given})


@pytest.mark.parametrize("kind", [backend("torch"), backend("jax")])
def test_lengths_on_the_host_are_checked_on_other_backends_too(kind: str) -> None:
    module = lstm(xp=kind)
    from xplstm._array import asarray, resolve

    with pytest.raises(ArgumentError, match=r"lengths\[3\]=9 must be in \[0, T=5\]"):
        module(asarray(x(), resolve(kind)), lengths=np.asarray([1, 2, 3, 9]))


class Device:
    """Attributes of CuPy's devices that the check reads."""

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment]


def test_arrays_of_another_than_the_current_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "__module__", "cupy.cuda.device")
    devices = iter([Device(1), Device(0)])
    monkeypatch.setattr(_array, "device", lambda _: next(devices))
    a = np.zeros((2, 3), "float32")
    xp = _array.namespace(a, "a")
    words = r"x is on CUDA device 1, which is not the current device; call in `with cupy\.cuda\.Device\(1\):`"
    with pytest.raises(BackendError, match=words):
        _checks.array("x", a, _checks.Home(xp, Device(1), "float32"), (2, 3))
    assert _checks.array("x", a, _checks.Home(xp, Device(0), "float32"), (2, 3)) is a


CONTAINERS = {
    ("xarray.core.dataarray", "DataArray"): r"x\.data",
    ("xarray.core.dataset", "Dataset"): r"the data of one variable",
    ("zarr.core.array", "Array"): r"x\[\.\.\.\], or dask\.array\.from_zarr\(x\)",
    ("h5py._hl.dataset", "Dataset"): r"x\[\.\.\.\], or dask\.array\.from_array\(x\)",
    ("pandas", "DataFrame"): r"x\.to_numpy\(\)",
    ("builtins", "list"): r"numpy\.asarray\(x\)",
}


@pytest.mark.parametrize("kind", CONTAINERS, ids=lambda kind: ".".join(kind))
def test_a_container_is_refused_with_what_to_pass(kind: tuple[str, str]) -> None:
    module, name = kind
    container = [[1.0]] if name == "list" else type(name, (), {"__module__": module})()
    for call in (lstm(), lstm().freeze(), lstm().vjp, xplstm.Linear(I, 2), lstm().explain):
        with pytest.raises(DTypeError, match=f"got {name}; pass {CONTAINERS[kind]}"):
            call(container)


def test_tensors_of_other_layouts_are_refused_with_what_to_pass(torch: Any) -> None:
    layer, linear, dense = lstm(xp="torch"), xplstm.Linear(I, 2, xp="torch", rng=0), torch.ones(T, B, I)
    nested = torch.nested.nested_tensor([torch.ones(n, I) for n in (3, 2)], layout=torch.jagged)
    zeros = torch.zeros(1, B, H)
    for call in (layer, layer.freeze(), layer.vjp, layer.explain, linear):
        with pytest.raises(DTypeError, match=r"x is a sparse tensor; pass x\.to_dense\(\)"):
            call(dense.to_sparse())
        with pytest.raises(DTypeError, match=r"x is a nested tensor; pass x\.to_padded_tensor\(0\.0\)"):
            call(nested)
    with pytest.raises(DTypeError, match="h_0 is a sparse tensor"):
        layer(dense, (zeros.to_sparse(), zeros))
    padded = nested.to_padded_tensor(0.0)
    y, _ = lstm(xp="torch", batch_first=True)(padded, lengths=[3, 2])
    assert y.shape == (2, 3, H)


def test_a_packed_sequence_is_refused_with_what_to_pass(torch: Any) -> None:
    rnn, dense = torch.nn.utils.rnn, torch.ones(T, B, I)
    packed = rnn.pack_padded_sequence(dense, [5, 1, 3, 2], enforce_sorted=False)
    with pytest.raises(DTypeError, match=r"pass both results of pad_packed_sequence\(x\), as x and lengths="):
        lstm(xp="torch")(packed)
    padded, lengths = rnn.pad_packed_sequence(packed)
    assert lstm(xp="torch")(padded, lengths=lengths)[0].shape == (T, B, H)


def test_the_conversion_that_an_error_suggests_works(xp: Any) -> None:
    layer, given = xplstm.LSTM(I, H, xp=xp.xp, dtype="float64", rng=0), xp.asarray(x())
    with pytest.raises(DTypeError, match="x has dtype float32") as error:
        layer(given)
    suggested = re.search("convert it with (.*), or the layer", str(error.value))
    assert suggested is not None
    names = {"x": given, "xp": array_api_compat.array_namespace(given), "torch": sys.modules.get("torch")}
    y, _ = layer(eval(suggested[1], names))
    assert _array.dtype_name(y.dtype) == "float64"
