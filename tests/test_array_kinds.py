"""Check unusual NumPy arrays: subclasses, byte orders, strides, read-only and unaligned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import losses, models, optim, training
from xplstm.training._trees import leaves


class Restless(np.ndarray):
    """Array that fails in every operation on it."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        msg = "an operation saw the subclass"
        raise RuntimeError(msg)


def kinds(a: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Return the same numbers in unusual arrays."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    fixed = a.copy()
    fixed.flags.writeable = False
    odd = np.empty(a.nbytes + 1, "uint8")[1:].view(a.dtype).reshape(a.shape)
    odd[...] = a
    yield from {
        "subclass": a.view(Restless),
        "big-endian": a.astype(a.dtype.newbyteorder(">")),
        "strided": wide[..., ::2],
        "fortran": np.asfortranarray(a),
        "read-only": fixed,
        "unaligned": odd,
    }.items()
    if a.ndim == 2:
        yield "matrix", a.view(np.matrix)


KINDS = ("subclass", "big-endian", "strided", "fortran", "read-only", "unaligned", "matrix")
RNG = np.random.default_rng(7)
X = RNG.normal(size=(5, 3, 4)).astype("float32")
ROWS = np.abs(X[:, 0]) / 9
H = RNG.normal(size=(1, 3, 3)).astype("float32")
LAYERS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: xplstm.LSTM(4, 3, rng=0),
    "GRU": lambda: xplstm.GRU(4, 3, rng=0),
    "RNN": lambda: xplstm.RNN(4, 3, rng=0),
}


def of_weight(name: str, a: np.ndarray) -> Any:
    lstm = xplstm.LSTM(4, 3, rng=0)
    lstm.params[name] = a
    y, _, pullback = lstm.vjp(X)
    return y, pullback(np.ones_like(y)), lstm.step(X[0]), lstm.freeze()(X)


def trained(a: np.ndarray) -> Any:
    class Model:
        def __init__(self) -> None:
            self.params = {"w": a}

        def loss_vjp(self, *_: Any) -> Any:
            return np.asarray(1.0), None, lambda: {"w": np.ones(a.shape, "float32")}

    model = Model()
    training.fit(model, [(0, 0)], optim.Adam(0.1), updates=3, average=0.5, progress=False)
    return model.params


def moved(a: np.ndarray, g: np.ndarray) -> Any:
    adam = optim.Adam(0.1)
    return adam.update(adam.update({"w": a}, {"w": g}), {"w": g}), adam.state_dict()


def weighted(function: Callable[..., Any], a: np.ndarray) -> Any:
    loss, pullback = function(ROWS, ROWS / 2, weights=a)
    return loss, pullback(), pullback(loss)


CALLS: dict[str, tuple[Callable[[np.ndarray], Any], np.ndarray]] = {
    **{f"{n}.x": (lambda a, new=new: new()(a), X) for n, new in LAYERS.items()},
    **{f"{n}.step": (lambda a, new=new: new().step(a), X[0]) for n, new in LAYERS.items()},
    **{f"{n}.dy": (lambda a, new=new: new().vjp(X)[2](a), X[..., :3]) for n, new in LAYERS.items()},
    "state": (lambda a: xplstm.LSTM(4, 3, rng=0)(X, (a, a)), H),
    "weight_hh": (lambda a: of_weight("weight_hh_l0", a), LAYERS["LSTM"]().params["weight_hh_l0"]),
    "bias_ih": (lambda a: of_weight("bias_ih_l0", a), LAYERS["LSTM"]().params["bias_ih_l0"]),
    "take": (lambda a: xplstm.LSTMState(a, a).take([0, 2]), H),
    "reset": (lambda a: xplstm.LSTMState(H, H).reset([1], to=(a, a)), H),
    "concat": (lambda a: xplstm.LSTMState.concat([(H, H), (a, a)]), H),
    "Adam": (lambda a: moved(a, ROWS), ROWS),
    "Adam of gradients": (lambda a: moved(ROWS, a), ROWS),
    "clip": (lambda a: optim.clip_by_global_norm({"w": a}, 0.1), ROWS),
    "fit": (trained, ROWS),
    **{
        f"{f.__name__} weights": (lambda a, f=f: weighted(f, a), ROWS[:, 0])
        for f in (losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy)
    },
    "classifier": (lambda a: models.SequenceClassifier(4, 3, 2, rng=0)(a), X),
    "forecast": (lambda a: models.Forecaster(4, 3, rng=0).forecast(a, 2), X),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers_give_the_same_plain_arrays(name: str, kind: str) -> None:
    call, a = CALLS[name]
    given = dict(kinds(a)).get(kind)
    if given is None:
        pytest.skip("a matrix has two axes")
    expected, found = (dict(leaves({"": call(b)})) for b in (a, given))
    for place, value in found.items():
        assert not isinstance(value, np.ndarray) or type(value) is np.ndarray, place
        np.testing.assert_allclose(value, expected[place], atol=1e-6)


@pytest.mark.parametrize("dtype", ["object", "complex64", "<U9", "int64", "longdouble", [("a", "f4")]])
@pytest.mark.parametrize("name", ["take", "reset", "concat", "state", "Adam", "fit", "mse weights", "clip"])
def test_arrays_of_other_things_are_refused(name: str, dtype: Any) -> None:
    call, a = CALLS[name]
    with pytest.raises(xplstm.DTypeError):
        call(a.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parameters_beyond_the_range_of_a_dtype_are_not_moved(dtype):
    lstm = xplstm.LSTM(3, 2, dtype="float64", rng=0)
    lstm.params["weight_hh_l0"][1, 1] = 1e39
    with pytest.raises(xplstm.ArgumentError, match="weight_hh_l0, which has numbers outside that dtype"):
        lstm.to(dtype=dtype)
    assert lstm.params["weight_hh_l0"].dtype == np.float64
