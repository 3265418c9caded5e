"""Compare the four calls of a training loop with the gradients of one call over the whole sequence."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.support.cases import settled
from xplstm import _array, optim
from xplstm.training import StatefulTrainer

T, B, I, H = 5, 4, 3, 6
rng = np.random.default_rng(30)
X, DY = rng.normal(size=(T, B, I)), rng.normal(size=(T, B, H))
DSTATE = rng.normal(size=(2, 2, B, H))


def lstm(xp=None, **options):
    return xplstm.LSTM(I, H, num_layers=2, xp=xp, dtype="float64", rng=3, **options)


def close(found, expected):
    np.testing.assert_allclose(_array.to_numpy(found), _array.to_numpy(expected), rtol=0, atol=1e-13)


@pytest.mark.parametrize("windows", [[1] * T, [2, 3], [T]])
def test_gradients_through_all_calls_are_those_of_the_whole_sequence(windows, xp):
    whole = lstm(xp.xp)
    dstate = xplstm.LSTMState(*(xp.asarray(a) for a in DSTATE))
    y, state, pullback = whole.vjp(xp.asarray(X))
    dx, _, dparams = pullback(xp.asarray(DY), dstate)

    trainer = StatefulTrainer(lstm(xp.xp), optim.SGD(0.1))
    ends = np.cumsum(windows)
    parts = [slice(end - length, end) for end, length in zip(ends, windows, strict=True)]
    ys = [trainer.forward(xp.asarray(X[part])) for part in parts]
    dxs = trainer.backward([xp.asarray(DY[part]) for part in parts], dstate)
    assert trainer.grads.keys() == dparams.keys()
    pairs = [(found, y[part, ...]) for part, found in zip(parts, ys, strict=True)]
    pairs += [(found, dx[part, ...]) for part, found in zip(parts, dxs, strict=True)]
    pairs += [*zip(trainer.state, state, strict=True)]
    pairs += [(trainer.grads[name], expected) for name, expected in dparams.items()]
    results = iter(settled([a for pair in pairs for a in pair]))
    for found, expected in zip(results, results, strict=True):
        close(found, expected)

    trainer.update()
    expected = optim.SGD(0.1).update(whole.params, dparams)
    for name, a in trainer.lstm.params.items():
        close(a, expected[name])


def test_an_error_at_the_last_step_alone_reaches_the_first(xp):
    trainer = StatefulTrainer(lstm(xp.xp), optim.SGD(0.1))
    for x_t in X:
        trainer.forward(xp.asarray(x_t[None]))
    dx = trainer.backward(xp.asarray(DY[-1:]))
    assert len(dx) == T
    assert np.abs(_array.to_numpy(dx[0])).max() > 1e-6


def test_backward_cuts_but_the_state_goes_on():
    trainer = StatefulTrainer(lstm(), optim.Adam(0.01))
    trainer.forward(X[:2])
    trainer.backward(DY[:2])
    carried = trainer.state
    y = trainer.forward(X[2:])
    close(y, lstm()(X[2:], carried)[0])
    first = trainer.grads
    assert len(trainer.backward(DY[2:])) == 1
    _, _, pullback = lstm().vjp(X[2:], carried)
    second = pullback(DY[2:])[2]
    for name, a in trainer.grads.items():
        close(a, first[name] + second[name])


def test_update_clips_and_begins_to_add_anew():
    trainer = StatefulTrainer(lstm(), optim.SGD(1.0), max_norm=0.5)
    before = trainer.lstm.params
    trainer.forward(X)
    trainer.backward(DY)
    norm = np.sqrt(sum(np.sum(a**2) for a in trainer.grads.values()))
    assert norm > 1
    trainer.update()
    moved = np.sqrt(sum(np.sum((a - before[name]) ** 2) for name, a in trainer.lstm.params.items()))
    np.testing.assert_allclose(moved, 0.5, rtol=1e-12)
    assert trainer.grads is None


def test_the_bound_is_that_of_the_sum_of_tied_gradients():
    tied = lstm()
    names = ("bias_ih_l0", "bias_hh_l0")
    tied.params = {**tied.params, names[1]: tied.params[names[0]]}
    before, trainer = tied.params, StatefulTrainer(tied, optim.SGD(1.0), max_norm=0.5)
    trainer.forward(X)
    trainer.backward(DY)
    trainer.update()
    assert tied.params[names[0]] is tied.params[names[1]]
    moved = [before[name] - a for name, a in tied.params.items() if name != names[1]]
    assert np.sqrt(sum((a**2).sum() for a in moved)) == pytest.approx(0.5)


def test_reset_state_of_all_and_of_some_rows():
    trainer = StatefulTrainer(lstm(), optim.SGD(0.1))
    trainer.reset_state([0])
    trainer.forward(X)
    kept = trainer.state
    trainer.reset_state([1, 3])
    np.testing.assert_array_equal(trainer.state.c, kept.reset([1, 3]).c)
    assert not trainer.state.h[:, 1].any()
    assert trainer.state.h[:, 0].all()
    trainer.reset_state()
    assert trainer.state is None
    close(trainer.forward(X), lstm()(X)[0])


def test_options_go_to_the_layer():
    trainer = StatefulTrainer(lstm(dropout=0.5), optim.SGD(0.1))
    y = trainer.forward(X, lengths=[5, 0, 2, 3], rng=1)
    np.testing.assert_array_equal(y, lstm(dropout=0.5).vjp(X, lengths=[5, 0, 2, 3], rng=1)[0])


def test_calls_in_the_wrong_order_are_refused():
    trainer = StatefulTrainer(lstm(), optim.SGD(0.1))
    with pytest.raises(xplstm.ArgumentError, match="backward was called without a forward"):
        trainer.backward(DY)
    with pytest.raises(xplstm.ArgumentError, match="update was called without a backward"):
        trainer.update()
    trainer.forward(X)
    with pytest.raises(xplstm.ArgumentError, match="dy has 2 gradients, expected 1"):
        trainer.backward([DY, DY])
    trainer.backward(DY)
    trainer.forward(X)
    with pytest.raises(xplstm.ArgumentError, match="1 forward calls without a backward"):
        trainer.update()
    trainer.reset_state()
    with pytest.raises(xplstm.ArgumentError, match="backward was called without a forward"):
        trainer.backward(DY)
    with pytest.raises(xplstm.ArgumentError, match="max_norm=0 must be above 0"):
        StatefulTrainer(lstm(), optim.SGD(0.1), max_norm=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_rows_of_a_simple_network_begin_anew(layers):
    trainer = StatefulTrainer(xplstm.RNN(3, 2, layers, rng=0), optim.SGD(0.1))
    trainer.forward(np.ones((5, 4, 3), dtype="float32"))
    before = trainer.state
    trainer.reset_state([1])
    assert not trainer.state[:, 1].any()
    np.testing.assert_array_equal(trainer.state[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_what_is_no_layer_is_refused():
    with pytest.raises(xplstm.DTypeError, match="lstm=3 must have params and vjp"):
        StatefulTrainer(3, optim.SGD(0.1))


def test_a_refused_backward_adds_nothing():
    def gradients(*attempts):
        trainer = StatefulTrainer(lstm(), optim.SGD(0.1))
        trainer.forward(X)
        trainer.forward(X)
        for dys in attempts[:-1]:
            with pytest.raises(xplstm.ShapeError):
                trainer.backward(dys)
            assert trainer.grads is None
        trainer.backward(attempts[-1])
        return trainer.grads

    plain = gradients([DY, DY])
    for name, a in gradients([DY[..., :2], DY], [DY, DY]).items():
        np.testing.assert_array_equal(a, plain[name])


def test_an_update_that_ruins_the_parameters_is_refused():
    trainer = StatefulTrainer(lstm(), optim.Adam(0.1))
    trainer.forward(X)
    trainer.backward(DY * np.nan)
    before = trainer.lstm.params
    with pytest.raises(xplstm.NonFiniteError, match="weight_ih_l0"):
        trainer.update()
    assert trainer.lstm.params is before
    assert trainer.optimizer.state_dict() == {"step": 0}


@pytest.mark.parametrize("optimizer", [None, optim.SGD, "adam"])
def test_what_is_no_optimiser_is_refused(optimizer):
    with pytest.raises(xplstm.DTypeError, match="optimizer="):
        StatefulTrainer(lstm(), optimizer)


@pytest.mark.parametrize("max_norm", [-1.0, float("nan")])
def test_a_bound_below_0_is_refused(max_norm):
    with pytest.raises(xplstm.ArgumentError, match="max_norm="):
        StatefulTrainer(lstm(), optim.SGD(0.1), max_norm=max_norm)
