"""Check with a stand-in for CuPy that Dask arrays with chunks on a device stay there."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm.models import Forecaster, SequenceClassifier

da = pytest.importorskip("dask.array", reason="dask is not installed")
pytestmark = [
    pytest.mark.backend("dask"),
    pytest.mark.skipif(
        int(np.__version__.split(".")[0]) < 2, reason="NumPy 1 has not the names of the standard"
    ),
]

T, B, I = 7, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, B, I)).astype("float32")


def unwrapped(value: Any) -> Any:
    """Convert device arrays to NumPy arrays, and refuse NumPy arrays, as CuPy does."""
    if isinstance(value, Held):
        return value.held
    if isinstance(value, np.ndarray) and value.ndim:
        msg = "an array of the host in a call on the device"
        raise TypeError(msg)
    return type(value)(map(unwrapped, value)) if type(value) in (list, tuple) else value


def wrapped(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(wrapped, value))
    return Held(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


class Held(np.lib.mixins.NDArrayOperatorsMixin):
    """Array with NumPy's dtypes that NumPy functions do not accept, like CuPy's arrays."""

    device = "device 0"

    def __init__(self, held: np.ndarray) -> None:
        self.held = held

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return wrapped(getattr(ufunc, method)(*map(unwrapped, inputs), **options))

    def __array_function__(self, function: Any, types_: Any, args: Any, options: Any) -> Any:
        return wrapped(function(*map(unwrapped, args), **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "held":
            raise AttributeError(name)
        found = getattr(self.held, name)
        if callable(found):
            return lambda *args, **options: wrapped(found(*map(unwrapped, args), **options))
        return wrapped(found) if isinstance(found, np.ndarray) else found

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.held[unwrapped(index)])

    def __len__(self) -> int:
        return len(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __dlpack__(self, **options: Any) -> Any:
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()


class Namespace(types.ModuleType):
    """NumPy's functions of the array API standard, for device arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, device: Any = None, **options: Any) -> Any:
            assert device in (None, Held.device)
            if name == "asarray" and isinstance(args[0], np.ndarray):
                return Held(found(*args, **options))  # the one way to the device
            return wrapped(found(*map(unwrapped, args), **options))

        return call


NAMESPACE = Namespace("standin")


@pytest.fixture(autouse=True)
def joins_chunks() -> None:
    from dask.array.core import concatenate_lookup

    def join(parts: Any, axis: int = 0) -> Held:
        return Held(np.concatenate([part.held for part in parts], axis=axis))

    concatenate_lookup.register(Held, join)


def on_device(model: Any) -> Any:
    """Return the model with its parameters on the device."""
    model.params = {name: Held(a) for name, a in model.params.items()}
    return model


def chunked(x: np.ndarray, chunks: Any) -> Any:
    return da.from_array(x, chunks=chunks).map_blocks(Held, dtype=x.dtype, meta=Held(x[:0, :0, :0]))


def same(got: Any, want: np.ndarray) -> None:
    """Check that every chunk is on the device, as the array states, with the numbers of NumPy."""
    assert isinstance(got._meta, Held)
    parts = [block.compute(scheduler="synchronous") for block in got.to_delayed().reshape(-1)]
    assert all(isinstance(part, Held) for part in parts)
    whole = got.map_blocks(lambda a: a.held, dtype=got.dtype, meta=np.empty((0,) * got.ndim, got.dtype))
    np.testing.assert_allclose(whole.compute(scheduler="synchronous"), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("merge", ["concat", "sum", "none"])
@pytest.mark.parametrize("valid", [{}, {"lengths": [7, 0, 3, 5, 1, 7]}, {"reset": RNG.random((T, B)) < 0.3}])
def test_layers(merge: str, valid: dict[str, Any]) -> None:
    options = {"num_layers": 2, "bidirectional": True, "rng": 0}
    plain = xplstm.LSTM(I, 4, merge=merge, **options)
    y, state = plain(X, **valid)
    got, ends = on_device(xplstm.LSTM(I, 4, merge=merge, **options))(chunked(X, (3, 4, 2)), **valid)
    same(got, y)
    same(ends.h, state.h)
    same(ends.c, state.c)
    y, h_n = xplstm.GRU(I, 4, rng=0)(X, **valid)
    got, end = on_device(xplstm.GRU(I, 4, rng=0))(chunked(X, (3, 4, 3)), **valid)
    same(got, y)
    same(end, h_n)


def test_models() -> None:
    for options in ({}, {"pooling": "mean"}, {"each_step": True, "task": "multilabel"}):
        plain = SequenceClassifier(I, 4, 3, rng=0, **options)
        model = on_device(SequenceClassifier(I, 4, 3, rng=0, **options))
        same(model.predict(chunked(X, (3, 4, 2))), plain.predict(X))
        same(model.predict_proba(chunked(X, (3, 4, 2))), plain.predict_proba(X))
    plain = Forecaster(I, 4, mean=[1, 0, 2], std=[1, 2, 3], rng=0)
    same(
        on_device(Forecaster(I, 4, mean=[1, 0, 2], std=[1, 2, 3], rng=0))(chunked(X, (3, 4, 2)))[0],
        plain(X)[0],
    )


def test_chunks_of_another_library_are_refused_by_name() -> None:
    with pytest.raises(xplstm.BackendError, match="x has standin chunks, but the parameters are numpy"):
        xplstm.LSTM(I, 4)(chunked(X, (3, 4, 3)))
    with pytest.raises(xplstm.BackendError, match="x has numpy chunks, but the parameters are standin"):
        on_device(xplstm.LSTM(I, 4))(da.from_array(X, chunks=3))
