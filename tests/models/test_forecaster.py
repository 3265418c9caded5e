"""Check Forecaster against PyTorch and differences, and between backends."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import check_gradients, check_same, check_torch, host, torch_copy
from xplstm import _array, optim, training
from xplstm.models import Forecaster, Ragged, WithFuture, windows

T, B, F, H = 5, 4, 3, 6
LENGTHS = [2, 5, 0, 3]
MEAN, STD = (1.0, -2.0, 0.5), (2.0, 0.7, 1.5)


def make(**options):
    scale = {"mean": MEAN, "std": STD}
    return Forecaster(F, H, **({"num_layers": 2, "dtype": "float64", "rng": 3} | scale | options))


@pytest.fixture
def x(rng):
    return np.asarray(MEAN) + np.asarray(STD) * rng.normal(size=(T, B, F))


@pytest.fixture
def targets(rng):
    return np.asarray(MEAN) + np.asarray(STD) * rng.normal(size=(T, B, F))


@pytest.fixture
def state(rng):
    return tuple(rng.normal(size=(2, B, H)) for _ in "hc")


def test_forecasts_loss_and_gradients_are_those_of_torch(x, targets, state, torch):
    model = make()
    theirs = torch_copy(model, {"lstm": torch.nn.LSTM(F, H, 2), "linear": torch.nn.Linear(H, F)})
    mean, std = (torch.tensor(a, dtype=torch.float64) for a in (MEAN, STD))
    z = (torch.tensor(x) - mean) / std
    y, (h_n, c_n) = theirs["lstm"](z, tuple(torch.tensor(a) for a in state))
    expected = z + theirs["linear"](y)
    loss = torch.nn.functional.mse_loss(expected, (torch.tensor(targets) - mean) / std)
    loss.backward()

    following, state_n = model(x, state)
    np.testing.assert_allclose(following, (expected * std + mean).detach(), atol=1e-12)
    our_loss, again, pullback = model.loss_vjp(x, targets, state)
    assert float(our_loss) == pytest.approx(loss.item(), abs=1e-13)
    assert float(model.loss(x, targets, state)[0]) == pytest.approx(loss.item(), abs=1e-13)
    for found in (state_n, again):
        np.testing.assert_allclose(found.h, h_n.detach(), atol=1e-12)
        np.testing.assert_allclose(found.c, c_n.detach(), atol=1e-12)
    check_torch(pullback, theirs)


def test_gradients_of_a_ragged_batch_with_dropout_are_differences(x, targets):
    check_gradients(
        lambda: make(dropout=0.3), lambda model: model.loss_vjp(Ragged(x, LENGTHS), targets, None, 5)
    )


def test_gradients_from_a_state_are_differences(x, targets, state):
    check_gradients(make, lambda model: model.loss_vjp(x, targets, state))


def test_padding_changes_nothing(x, targets):
    past = (np.arange(T)[:, None] >= np.asarray(LENGTHS))[..., None]
    nan_x, nan_targets = (np.where(past, np.nan, a) for a in (x, targets))
    expected = make().loss_vjp(Ragged(x, LENGTHS), targets)
    check_same(host(make().loss_vjp(Ragged(nan_x, LENGTHS), nan_targets)), host(expected))
    assert float(make().loss(Ragged(nan_x, LENGTHS), nan_targets)[0]) == pytest.approx(float(expected[0]))


def test_every_row_is_read_as_if_it_were_alone(x):
    following, state = make()(Ragged(x, LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone, of_row = make()(x[:length, row])
        np.testing.assert_allclose(following[:length, row], alone, atol=1e-13)
        np.testing.assert_allclose(state.h[:, row], of_row.h, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_forecast_reads_each_forecast_as_if_it_had_come_true(x, state, steps):
    model = make()
    series = x
    for _ in range(steps):
        series = np.concatenate([series, model(series, state)[0][-1:]])
    np.testing.assert_allclose(model.forecast(x, steps, state), series[T:], atol=1e-12)
    alone = model.forecast(x[:, 1], steps, tuple(a[:, 1] for a in state))
    np.testing.assert_allclose(alone, series[T:, 1], atol=1e-12)


def test_one_that_knows_nothing_says_that_all_stays(x):
    model = make()
    model.params = {name: np.zeros_like(a) for name, a in model.params.items()}
    np.testing.assert_allclose(model(x)[0], x, atol=1e-14)
    np.testing.assert_allclose(model.forecast(x, 3), np.tile(x[-1:], (3, 1, 1)), atol=1e-14)


def test_units_do_not_matter(x, targets):
    metres, millimetres = make(), make(mean=1000 * np.asarray(MEAN), std=1000 * np.asarray(STD))
    np.testing.assert_allclose(millimetres(1000 * x)[0], 1000 * metres(x)[0], rtol=1e-12)
    losses = metres.loss(x, targets)[0], millimetres.loss(1000 * x, 1000 * targets)[0]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-12)


def test_every_backend_gives_the_same(xp, x, targets, state):
    ours = make(xp=xp.xp, dropout=0.3)
    given = tuple(xp.asarray(a) for a in state)
    found = ours.loss_vjp(Ragged(xp.asarray(x), LENGTHS), xp.asarray(targets), given, 2)
    check_same(host(found), host(make(dropout=0.3).loss_vjp(Ragged(x, LENGTHS), targets, state, 2)))
    ahead = _array.to_numpy(ours.forecast(xp.asarray(x), 3, given))
    np.testing.assert_allclose(ahead, make().forecast(x, 3, state), atol=1e-12)


def test_dropout_reaches_between_the_layers_and_before_the_linear_one(x, targets):
    one = make(dropout=0.5, num_layers=1)
    assert float(one.loss_vjp(x, targets, rng=1)[0]) != float(one.loss(x, targets)[0])
    two = make(dropout=0.5)
    two.dropout = xplstm.Dropout(0.0)
    assert float(two.loss_vjp(x, targets, rng=1)[0]) != float(two.loss(x, targets)[0])
    assert float(two.loss_vjp(x, targets)[0]) == pytest.approx(float(two.loss(x, targets)[0]), abs=1e-14)


def test_fit_trains_it_and_its_checkpoint_makes_it_again(tmp_path):
    """The error is below half of that of repeating the last value of a wave."""
    pytest.importorskip("safetensors")
    series = (10 + 3 * np.sin(np.arange(120) / 2)).astype("float32")[:, None]
    inputs, targets = windows(series, 12)
    file = tmp_path / "run.safetensors"
    scale = {"mean": 10, "std": 2}
    model = Forecaster(1, 8, rng=0, **scale)
    training.fit(
        model, [(inputs, targets)], optim.Adam(0.03), updates=80, rng=0, checkpoint=file, progress=False
    )
    error = np.abs(model(inputs)[0][-1] - targets[-1]).mean()
    assert error < np.abs(inputs[-1] - targets[-1]).mean() / 2
    again = Forecaster(1, 8, rng=9, **scale)
    again.load_state_dict(training.load_checkpoint(file).params)
    np.testing.assert_array_equal(again.forecast(inputs, 5), model.forecast(inputs, 5))


@pytest.mark.parametrize("dtype", ["float64", "int32"])
@pytest.mark.parametrize("options", [{}, {"horizon": 3, "known": [2]}])
def test_forecast_takes_every_dtype_that_fit_takes(dtype, options, xp):
    model = make(dtype="float32", xp=xp.xp, **options)
    x, future = np.arange(15).reshape(5, 3) % 7, np.arange(3)[:, None]

    def forecast(dtype):
        given, ahead = (xp.asarray(a.astype(dtype)) for a in (x, future))
        return _array.to_numpy(model.forecast(WithFuture(given, ahead) if options else given, 3))

    np.testing.assert_array_equal(forecast(dtype), forecast("float32"))


RAGGED = [{}, {"horizon": 3}, {"horizon": 3, "known": [2], "quantiles": [0.2, 0.5]}]


@pytest.mark.parametrize("options", RAGGED)
def test_each_entry_of_a_ragged_batch_is_forecast_from_its_own_last_step(options, xp, rng):
    model, lengths = make(xp=xp.xp, **options), [2, 5, 1, 3]
    x, future = rng.normal(size=(T, B, F)), rng.normal(size=(3, B, 1))
    state = tuple(rng.normal(size=(2, B, H)) for _ in "hc")

    def forecast(x, future, state):
        state = tuple(xp.asarray(a) for a in state)
        ahead = WithFuture(x, xp.asarray(future)) if "known" in options else x
        return _array.to_numpy(model.forecast(ahead, 3, state))

    together = forecast(Ragged(xp.asarray(x), lengths), future, state)
    for b, length in enumerate(lengths):
        alone = forecast(xp.asarray(x[:length, b]), future[:, b], tuple(a[:, b] for a in state))
        np.testing.assert_allclose(together[:, b], alone, atol=1e-13)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e300])
def test_padding_does_not_change_a_forecast(padding, x):
    model, lengths = make(dtype="float32"), [2, 5, 1, 3]
    padded = np.where((np.arange(T)[:, None] < lengths)[..., None], x, padding)
    np.testing.assert_array_equal(
        model.forecast(Ragged(padded, lengths), 2), model.forecast(Ragged(x, lengths), 2)
    )


def test_a_number_beyond_the_dtype_of_the_model_is_refused(x):
    with pytest.raises(xplstm.ArgumentError, match="dtype='float32' cannot represent x"):
        make(dtype="float32").forecast(x * 1e39, 2)


@pytest.mark.parametrize("options", [{}, {"horizon": 2}])
def test_a_forecast_that_is_not_finite_is_refused(options, x):
    model = make(**options)
    model.params = {**model.params, "linear.bias": model.params["linear.bias"] * np.nan}
    calls = (lambda: model.forecast(x, 2), lambda: model.backtest(x[:, 0], 2, start=3, steps=2))
    for call in calls:
        with pytest.raises(
            xplstm.ArgumentError,
            match=r"the forecast\[.*is nan, one of \d+ that are not finite; the model has parameters",
        ):
            call()


BAD = [
    (lambda _: Forecaster(0, H), xplstm.ArgumentError, "features=0 must be at least 1"),
    (lambda _: make(std=0), xplstm.ArgumentError, "std=0 must be above 0"),
    (lambda _: make(std=(1.0, -1.0, 1.0)), xplstm.ArgumentError, "must be above 0"),
    (lambda _: make(mean=np.nan), xplstm.ArgumentError, "mean=nan must be finite"),
    (lambda _: make(mean=(1.0, 2.0)), xplstm.ShapeError, r"mean has shape \(2,\), expected \(\) or \(3,\)"),
    (lambda x: make()(x[..., :1]), xplstm.ShapeError, r"x has shape \(5, 4, 1\).*the last axis is features"),
    (
        lambda x: make()(x[:, 0, 0]),
        xplstm.ShapeError,
        r"x has shape \(5,\), expected \(T, \d\): the last axis",
    ),
    (lambda x: make()(x.astype("float32")), xplstm.DTypeError, "x has dtype float32"),
    (lambda x: make().forecast(x, -1), xplstm.ArgumentError, "steps=-1 must be at least 0"),
    (lambda x: make().forecast(x[:0], 2), xplstm.ShapeError, "expected at least 1 step"),
    (lambda x: make().forecast(Ragged(x, LENGTHS), 2), xplstm.ShapeError, r"x: lengths\[2\]=0, expected"),
    (lambda x: make().forecast(Ragged(x, [1]), 2), xplstm.ShapeError, r"x: lengths has shape \(1,\)"),
    (lambda x: make().forecast(Ragged(x[:, 0], [1, 1, 1]), 2), xplstm.ShapeError, "lengths"),
    (
        lambda x: make().forecast(Ragged(np.where(x == x[1, 1, 2], np.nan, x), [2] * B), 2),
        xplstm.ArgumentError,
        r"x\[1, 1, 2\] is nan; a forecast needs finite numbers",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message, x):
    with pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize("change", ["set", "write"])
def test_a_scale_that_is_set_is_kept(tmp_path, change):
    model = Forecaster(2, 3, dtype="float64", rng=0)
    if change == "set":
        model.mean, model.std = [5.0, -1.0], 2.0
    else:
        model.mean[:], model.std[:] = [5.0, -1.0], 2.0
    expected = Forecaster(2, 3, mean=[5.0, -1.0], std=2.0, dtype="float64", rng=0)
    series = np.random.default_rng(0).normal(size=(30, 2))
    model.save(tmp_path / "model.safetensors")
    for other in (model, Forecaster.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(other.forecast(series, 3), expected.forecast(series, 3))
    model.fit(series, 4, updates=1, progress=False)
    np.testing.assert_array_equal(model.mean, expected.mean)
    with pytest.raises(xplstm.ArgumentError, match="std=0 must be above 0"):
        model.std = 0
    np.testing.assert_array_equal(model.std, expected.std)
