"""Check that the gradient check passes correct gradients on every backend, and names wrong gradients."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import losses
from xplstm.testing import GradientError, check_grad

rng = np.random.default_rng(20)
X, H_0, C_0 = rng.normal(size=(3, 2, 2)), rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 2, 3))


def test_an_lstm_passes(xp):
    lstm = xplstm.LSTM(2, 3, bidirectional=True, xp=xp.xp, dtype="float64", rng=1)
    state = xplstm.LSTMState(xp.asarray(H_0), xp.asarray(C_0))
    few = 1 if xp.name == "dask" else 2  # each run of a lazy library starts again
    report = check_grad(lstm, {"x": xp.asarray(X[:2]), "state": state}, lengths=[1, 2], entries=few)
    assert report.passed
    names = [row.name for row in report.rows]
    assert names == ["x", "state.h", "state.c", *(f"params.{name}" for name in lstm.params)]
    # Something was measured, and it was not zero everywhere.
    assert max(abs(row.measured) for row in report.rows) > 1e-3


def test_every_element_of_a_small_one_passes():
    lstm = xplstm.LSTM(2, 3, proj_size=1, dtype="float64", rng=1)
    before = {name: a.copy() for name, a in lstm.params.items()}
    assert check_grad(lstm, {"x": X}).passed
    assert all(np.array_equal(a, before[name]) for name, a in lstm.params.items())


def test_the_functional_form_linear_embedding_dropout_and_losses_pass(xp):
    params = xplstm.LSTMParams(xp.asarray(rng.normal(size=(12, 2))), xp.asarray(rng.normal(size=(12, 3))))
    state = (xp.asarray(H_0[0]), xp.asarray(C_0[0]))
    named = {"x": xp.asarray(X), "state": state, "params": params}
    few = 1 if xp.name == "dask" else 2
    assert [row.name for row in check_grad(xplstm.lstm_vjp, named, reverse=True, entries=few).rows] == [
        "x",
        "state[0]",
        "state[1]",
        "params.weight_ih",
        "params.weight_hh",
    ]
    where = {"xp": xp.xp, "dtype": "float64", "rng": 2}
    assert check_grad(xplstm.Linear(2, 3, **where), {"x": xp.asarray(X)}, entries=2).passed
    ids = xp.asarray(np.asarray([[1, 0], [1, 2]]))
    assert check_grad(xplstm.Embedding(4, 2, **where), {}, ids=ids, entries=3).passed
    assert check_grad(xplstm.Dropout(0.5), {"x": xp.asarray(X)}, rng=3, entries=3).passed
    target = xp.asarray(rng.normal(size=X.shape))
    assert check_grad(losses.mse, {"pred": xp.asarray(X)}, target=target, entries=3).passed


def scaled(factor):
    """Compute three products; one element of the gradient with respect to b is `factor` times too large."""

    def vjp(a, b):
        def pullback(dy):
            db = dy * a
            db[1, 0] *= factor
            return {"a": dy * b, "b": db}

        return a * b, pullback

    return vjp


def test_one_wrong_element_is_named_with_its_values_and_bound():
    a, b = rng.normal(size=(2, 3)) + 2, rng.normal(size=(2, 3))
    assert check_grad(scaled(1.0), {"a": a, "b": b}).passed
    with pytest.raises(
        AssertionError, match=r"1 of 2 gradients.*\nok   a\[.*\nFAIL b\[1, 0\]: analytic"
    ) as caught:
        check_grad(scaled(1 + 1e-3), {"a": a, "b": b})
    assert isinstance(caught.value, xplstm.XplstmError)
    assert check_grad(scaled(1 + 1e-3), {"a": a, "b": b}, tolerance=1e-2).passed


def test_a_gradient_of_zero_has_to_be_zero():
    def vjp(x, claimed):
        return x * 0, lambda _: claimed

    assert check_grad(lambda x: vjp(x, np.zeros(2)), {"x": np.ones(2)}).passed
    with pytest.raises(GradientError, match="FAIL x"):
        check_grad(lambda x: vjp(x, np.full(2, 1e-9)), {"x": np.ones(2)})
    with pytest.raises(GradientError, match=r"FAIL x\[1\]: analytic nan"):
        check_grad(lambda x: vjp(x, np.asarray([0.0, np.nan])), {"x": np.ones(2)})


def test_an_lstm_with_a_wrong_pullback_fails():
    class Forgetful(xplstm.LSTM):
        """Layer that drops the gradient with respect to the final c."""

        def vjp(self, x, state=None, **options):
            y, state_n, pullback = super().vjp(x, state, **options)
            return y, state_n, lambda dy, dstate: pullback(dy, (dstate.h, dstate.c * 0))

    with pytest.raises(GradientError, match=r"FAIL params\.weight_ih_l0"):
        check_grad(Forgetful(2, 3, dtype="float64", rng=1), {"x": X})


SINGLE = xplstm.LSTM(2, 3, rng=1)
WRONG = [
    (lambda: check_grad(SINGLE, {"x": X}), xplstm.DTypeError, r"params\.weight_ih_l0 has dtype float32"),
    (lambda: check_grad(np.sin, {"x": 1.0}), xplstm.DTypeError, "x must be an array"),
    (lambda: check_grad(np.sin, {}), xplstm.ArgumentError, "no array"),
    (lambda: check_grad(np.sin, {"x": X}, step=0), xplstm.ArgumentError, "step=0 must be above 0"),
    (
        lambda: check_grad(np.sin, {"x": X}, tolerance=-1),
        xplstm.ArgumentError,
        "tolerance=-1 must be above 0",
    ),
    (
        lambda: check_grad(lambda x: (x, lambda d: d), {"x": X}, entries=0),
        xplstm.ArgumentError,
        "entries=0 must be at least 1",
    ),
    (
        lambda: check_grad(lambda x: (x, lambda d: d[0]), {"x": X}),
        GradientError,
        r"the gradient with respect to x has shape \(2, 2\), expected \(3, 2, 2\)",
    ),
    (
        lambda: check_grad(lambda x, w: (x * w, lambda d: (d,)), {"x": X, "w": X}),
        GradientError,
        "returned 1 gradients, expected one each for x, w",
    ),
    (
        lambda: check_grad(lambda x, w: (x * w, lambda d: d), {"x": X, "w": X}),
        GradientError,
        "returned a ndarray, expected one gradient each for x, w",
    ),
    (
        lambda: check_grad(lambda x: (x["a"], lambda d: {"b": d}), {"x": {"a": X}}),
        GradientError,
        r"no gradient with respect to x\.a$",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_gives_no_pullback_is_refused():
    with pytest.raises(xplstm.DTypeError, match="the outputs followed by the pullback"):
        check_grad(lambda x: x**2, {"x": np.arange(3.0)})


@pytest.mark.parametrize("checked", [("x", "state"), ("state", "x"), ("state",), ("x",), ()])
def test_the_arguments_of_a_layer_are_checked_in_any_order(checked, rng):
    lstm = xplstm.LSTM(3, 2, dtype="float64", rng=0)
    state = xplstm.LSTMState(rng.normal(size=(1, 2, 2)), rng.normal(size=(1, 2, 2)))
    given = {"x": rng.normal(size=(4, 2, 3)), "state": state}
    arguments = {name: given.pop(name) for name in checked}
    names = [row.name for row in check_grad(lstm, arguments, **given).rows]
    assert ("x" in names, "state.c" in names) == ("x" in checked, "state" in checked)
    assert names[-1] == "params.bias_hh_l0"


def test_a_layer_may_have_arguments_without_gradients(rng):
    class Scaled:
        def __init__(self):
            self.params = {"w": np.asarray(2.0)}

        def vjp(self, flags, x):
            kept = np.where(flags, x, 0.0)
            w = self.params["w"]
            return kept * w, lambda dy: (np.where(flags, dy * w, 0.0), {"w": np.sum(dy * kept)})

    assert check_grad(Scaled(), {"x": rng.normal(size=3)}, flags=np.asarray([True, False, True])).passed
