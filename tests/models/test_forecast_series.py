"""Check a forecaster on one series: scaling, the split in time, and backtests from rolling origins."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from xplstm import _array, optim, training
from xplstm.models import Backtest, Forecaster, windows

N, WINDOW, AHEAD = 120, 8, 3
HOW = {"dtype": "float64", "rng": 1}
KINDS = {
    "one step": {},
    "direct": {"horizon": AHEAD},
    "covariates": {"horizon": AHEAD, "targets": [1], "known": [2]},
    "quantiles": {"horizon": AHEAD, "targets": [1], "known": [0, 2], "quantiles": [0.1, 0.5, 0.9]},
}


@pytest.fixture
def series(rng):
    t = np.arange(N)
    return np.stack([50 + 10 * np.sin(t / 4), 3 + np.cos(t / 4), t % 5], axis=1) + 0.1 * rng.normal(
        size=(N, 3)
    )


def make(kind="direct", **options):
    return Forecaster(3, 6, **(HOW | KINDS[kind] | options))


def fit(model, series, **options):
    return model.fit(series, WINDOW, **({"updates": 30, "rng": 0, "progress": False} | options))


@pytest.mark.parametrize("kind", KINDS)
def test_fit_lowers_the_loss_and_keeps_the_best(kind, series):
    model = make(kind)
    history = fit(model, series, updates=80, validate_every=10)
    losses = [loss for _, loss in history.validations]
    assert min(losses) < 0.8 * losses[0]
    later = series[96 - WINDOW :]
    roles = {n: getattr(model, n) for n in ("targets", "known")} if model.horizon else {}
    inputs, targets = windows(later, WINDOW, horizon=model.horizon, **roles)
    assert float(model._last_loss(inputs, targets)) == pytest.approx(min(losses), rel=1e-9)


def test_the_scale_is_that_of_the_part_that_is_trained_on(series):
    model = make()
    fit(model, series, updates=1, validation=0.25)
    np.testing.assert_allclose(model.mean, series[:90].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(model.std, series[:90].std(axis=0), rtol=1e-14)


def test_a_refused_fit_leaves_no_scale(series):
    model = make()
    with pytest.raises(xplstm.ArgumentError, match="patience=0"):
        fit(model, 5 + 1000 * series, patience=0)
    np.testing.assert_array_equal((model.mean, model.std), ([0, 0, 0], [1, 1, 1]))
    fit(model, series, updates=1)
    np.testing.assert_allclose(model.std, series[:96].std(axis=0), rtol=1e-14)


def test_a_series_of_tiny_numbers_is_no_constant(series):
    model = make()
    fit(model, series * 1e-200, updates=1)
    np.testing.assert_allclose(model.std, series[:96].std(axis=0) * 1e-200, rtol=1e-12)


def test_a_scale_that_is_given_or_was_measured_is_kept(series):
    given = make(mean=[50, 3, 2])
    fit(given, series, updates=1)
    np.testing.assert_array_equal(given.mean, [50, 3, 2])
    np.testing.assert_array_equal(given.std, [1, 1, 1])
    measured = make()
    fit(measured, series[:60], updates=1)
    before = measured.mean.copy()
    fit(measured, series, updates=1)
    np.testing.assert_array_equal(measured.mean, before)


def test_a_column_that_does_not_change_has_std_one(series):
    series[:, 2] = 7
    model = make()
    fit(model, series, updates=2)
    assert model.std[2] == 1
    assert np.isfinite(model.forecast(series[:20])).all()


@pytest.mark.parametrize("value", [0.1, 1e30, -7.3e-30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rounding_of_a_constant_is_no_deviation(value, dtype):
    model = Forecaster(1, 3, dtype=dtype, rng=0)
    fit(model, np.full(80, value), updates=1)
    np.testing.assert_array_equal(model.std, 1)


def test_what_is_held_out_does_not_reach_the_training(series):
    """Without validation, scale and parameters do not depend on the last fifth."""
    changed = series.copy()
    changed[96:] = 1000 + changed[96:] ** 2
    models = make(), make()
    for model, given in zip(models, (series, changed), strict=True):
        fit(model, given, patience=None)
    np.testing.assert_array_equal(models[0].mean, models[1].mean)
    for name, a in models[0].params.items():
        np.testing.assert_array_equal(a, models[1].params[name])


def test_without_validation_everything_is_trained_on(series):
    model = make()
    history = fit(model, series, validation=0, updates=3)
    assert not history.validations
    np.testing.assert_allclose(model.mean, series.mean(axis=0), rtol=1e-14)


def test_fit_gives_the_same_bits_from_the_same_seed(series):
    one, two, other = make(), make(), make()
    for model, seed in zip((one, two, other), (4, 4, 5), strict=True):
        fit(model, series, rng=seed, batch_size=16)
    np.testing.assert_array_equal(one.forecast(series), two.forecast(series))
    assert (one.forecast(series) != other.forecast(series)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_file_and_checkpoint_hold_scale_and_roles(kind, series, tmp_path):
    model, file, point = make(kind), tmp_path / "model.safetensors", tmp_path / "run.safetensors"
    fit(model, series, checkpoint=point)
    model.save(file)
    expected = model.backtest(series, WINDOW, start=100, steps=AHEAD)
    for again in (Forecaster.load(file), Forecaster.load(point)):
        np.testing.assert_array_equal(again.mean, model.mean)
        np.testing.assert_array_equal(again.std, model.std)
        found = again.backtest(series, WINDOW, start=100, steps=AHEAD)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert again.config() == model.config()


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(series, tmp_path):
    rate, path = optim.warmup_cosine(1e-2, 3, 30), tmp_path / "run.safetensors"
    models = [make(dropout=0.3) for _ in range(3)]
    whole = fit(models[0], series, optimizer=optim.Adam(rate))
    options = {"checkpoint": path, "resume": "auto"}
    fit(models[1], series, optimizer=optim.Adam(rate), updates=11, validate_every=11, **options)
    with pytest.raises(xplstm.ArgumentError, match="validate_every=25 must be 11"):
        fit(models[2], series, optimizer=optim.Adam(rate), **options)
    path.unlink()
    model, calls = make(dropout=0.3), []

    def interrupt(*args, work=model.loss_vjp):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return work(*args)

    model.loss_vjp = interrupt
    with pytest.raises(KeyboardInterrupt):
        fit(model, series, optimizer=optim.Adam(rate), **options)
    assert fit(models[2], series, optimizer=optim.Adam(rate), **options) == whole
    for name, a in models[0].params.items():
        np.testing.assert_array_equal(models[2].params[name], a)
    np.testing.assert_array_equal(models[2].mean, models[0].mean)


def test_a_frame_and_a_single_column_are_series(series):
    pandas = pytest.importorskip("pandas")
    models = make(), make()
    fit(models[0], series)
    fit(models[1], pandas.DataFrame(series, columns=list("abc")))
    np.testing.assert_array_equal(models[0].forecast(series), models[1].forecast(series))
    one = Forecaster(1, 4, horizon=2, **HOW)
    fit(one, list(series[:, 0]))
    assert one.mean[0] == pytest.approx(series[:96, 0].mean())


def test_dates_that_do_not_increase_are_refused(series):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(series, index=pandas.date_range("2020-01-01", periods=N))
    history = fit(make(), frame)
    assert fit(make(), series) == history
    for dates in (frame.index, frame.index.to_period(), frame.index - frame.index[0]):
        with pytest.raises(xplstm.ArgumentError, match=r"dates do not increase; pass series.sort_index\(\)"):
            fit(make(), frame.set_axis(dates).iloc[::-1])
    assert fit(make(), frame.iloc[::-1].sort_index()) == history
    with pytest.raises(xplstm.ArgumentError, match=r"several steps with the date 2020-01-02 .* one series"):
        fit(make(), frame.set_axis(frame.index.delete(0).insert(1, frame.index[1])))


def test_dates_of_xarray_that_do_not_increase_are_refused(series):
    xarray, pandas = pytest.importorskip("xarray"), pytest.importorskip("pandas")
    dates = pandas.date_range("2020-01-01", periods=N)
    labelled = xarray.DataArray(series, dims=("day", "column"), coords={"day": dates})
    assert fit(make(), labelled) == fit(make(), series)
    with pytest.raises(xplstm.ArgumentError, match=r"dates do not increase; pass series.sortby\('day'\)"):
        fit(make(), labelled[::-1])


def test_a_tensor_with_a_gradient_is_a_series(series, torch):
    tensor = torch.tensor(series, requires_grad=True)
    assert fit(make(), tensor) == fit(make(), series)


def test_a_dataset_is_refused_by_name(series):
    xarray = pytest.importorskip("xarray")
    with pytest.raises(xplstm.DTypeError, match=r"a Dataset, is not an array of numbers: .*DataArray"):
        fit(make(), xarray.Dataset({"a": ("time", series[:, 0])}))


def test_every_backend_is_trained_on_host_series(xp, series):
    ours, theirs = make(xp=xp.xp), make()
    for model in (ours, theirs):
        fit(model, series, updates=3)
    for name, a in theirs.params.items():
        np.testing.assert_allclose(_array.to_numpy(ours.params[name]), a, atol=1e-10, err_msg=name)
    found = ours.backtest(xp.asarray(series), WINDOW, start=110)
    np.testing.assert_allclose(
        found.forecasts, theirs.backtest(series, WINDOW, start=110).forecasts, atol=1e-8
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_backtest_forecasts_each_origin_alone(kind, series):
    model = make(kind, mean=series.mean(axis=0), std=series.std(axis=0))
    found = model.backtest(series, WINDOW, start=100, steps=AHEAD, stride=4)
    np.testing.assert_array_equal(found.origins, [100, 104, 108, 112, 116])
    for k, o in enumerate(found.origins):
        x = series[o - WINDOW : o]
        if model.known:
            x = xplstm.models.WithFuture(x, series[o : o + AHEAD][:, model.known])
        np.testing.assert_allclose(found.forecasts[k], model.forecast(x, AHEAD), atol=1e-12)
        np.testing.assert_array_equal(found.happened[k], series[o : o + AHEAD][:, model.targets])


def test_a_backtest_does_not_see_what_it_forecasts(series):
    """From the origin on, it reads only the columns that are known in advance."""
    model = make("covariates", mean=series.mean(axis=0), std=series.std(axis=0))
    before = model.backtest(series[:103], WINDOW, start=100).forecasts
    changed = series[:103].copy()
    changed[100:, [0, 1]] += 100
    np.testing.assert_array_equal(model.backtest(changed, WINDOW, start=100).forecasts, before)
    changed[100:, 2] += 100
    assert (model.backtest(changed, WINDOW, start=100).forecasts != before).any()


def test_refit_gets_the_past_of_each_origin_and_a_copy(series):
    model, pasts = make(), []
    before = model.forecast(series)

    def refit(copy, past):
        pasts.append(past)
        assert copy is not model
        copy.fit(past, WINDOW, updates=5, validation=0, rng=0, progress=False)

    found = model.backtest(series, WINDOW, start=100, stride=5, refit=refit, refit_every=2)
    assert [len(past) for past in pasts] == [100, 110]
    np.testing.assert_array_equal(pasts[1], series[:110])
    np.testing.assert_array_equal(model.forecast(series), before)
    copy = make()
    refit(copy, series[:100])
    for k, o in ((0, 100), (1, 105)):
        np.testing.assert_allclose(found.forecasts[k], copy.forecast(series[o - WINDOW : o]), atol=1e-12)


def test_errors_and_coverage_are_those_by_hand(rng):
    happened, forecasts = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2, 3))
    found = Backtest(np.arange(5), forecasts, happened, (0.1, 0.5, 0.9))
    for m in range(2):
        errors = [forecasts[r, j, m, 1] - happened[r, j, m] for r in range(5) for j in range(3)]
        assert found.mae[m] == pytest.approx(np.mean(np.abs(errors)))
        assert found.rmse[m] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
        for q in range(3):
            below = [happened[r, j, m] <= forecasts[r, j, m, q] for r in range(5) for j in range(3)]
            assert found.coverage[m, q] == pytest.approx(np.mean(below))


def test_quantiles_cover_what_they_say():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=1500)
    model = Forecaster(1, 4, horizon=1, quantiles=[0.1, 0.5, 0.9], rng=0)
    model.fit(noise, 4, updates=300, optimizer=optim.Adam(0.01), rng=0, progress=False)
    np.testing.assert_allclose(
        model.backtest(rng.normal(size=1000), 4, start=4).coverage, [[0.1, 0.5, 0.9]], atol=0.06
    )


def gap(series, value=np.nan):
    broken = series.copy()
    broken[17, 2] = value
    return broken


QUANTILES = Backtest(np.zeros(1), np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1)), (0.4,))
BAD = [
    (lambda s: fit(make(), gap(s)), r"series\[17, 2\] is nan, expected .* fill or drop gaps"),
    (
        lambda s: fit(make(dtype="float32"), gap(s, 1e39)),
        r"series\[17, 2\] is 1e\+39, expected a number of at most 3.4e\+38",
    ),
    (lambda s: make().backtest(gap(s), WINDOW, start=100), r"series\[17, 2\] is nan"),
    (lambda s: fit(make(), s[:, :2]), r"series has shape \(120, 2\), expected \(N, 3\)"),
    (lambda s: fit(make(), s.astype(str)), "series has dtype <U.*expected numbers"),
    (
        lambda s: fit(make(), s[:12]),
        "has 12 steps, and validation=0.2 leaves 10 for training; window=8 and 3 steps ahead",
    ),
    (
        lambda s: fit(make(), s, validation=0.01),
        "validation=0.01 holds out 1 steps, but a forecast needs 3",
    ),
    (lambda s: fit(make(), s, validation=1), "validation=1 must be"),
    (lambda s: fit(make(), s, batch_size=0), "batch_size=0 must be at least 1"),
    (lambda s: make().fit(s, 0), "window=0 must be at least 1"),
    (lambda s: make().backtest(s, WINDOW, start=7), "start=7 must be at least 8"),
    (lambda s: make().backtest(s, WINDOW, start=118), "start=118 of 120 steps leaves fewer than 3 steps"),
    (lambda s: make().backtest(s, WINDOW, start=100, steps=4), "steps=4 must be at most 3"),
    (lambda s: make("one step").backtest(s, WINDOW, start=100), "steps=None needs a model with horizon="),
    (lambda s: make().backtest(s, WINDOW, start=100, stride=0), "stride=0 must be at least 1"),
    (lambda s: make().backtest(s, WINDOW, start=100, refit=3), "refit=3 must be"),
    (lambda _: QUANTILES.mae, r"quantiles=\[0.4\] must contain 0.5"),
    (lambda s: make().backtest(s, WINDOW, start=100).coverage, "coverage needs a model with quantiles="),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message, series):
    with pytest.raises(xplstm.XplstmError, match=message):
        call(series)


def test_shards_give_the_bits_of_a_batch_with_a_future(series):
    inputs, targets = windows(series, WINDOW, horizon=AHEAD, targets=[1], known=[2])
    found = []
    for count in (2, 2):
        model = make("covariates", mean=series.mean(axis=0), std=series.std(axis=0))
        training.fit(
            model,
            [(inputs, targets)],
            optim.Adam(0.01),
            updates=2,
            progress=False,
            parallel=training.Shards(None, count),
        )
        found.append(model.params)
    whole = make("covariates", mean=series.mean(axis=0), std=series.std(axis=0))
    training.fit(whole, [(inputs, targets)], optim.Adam(0.01), updates=2, progress=False)
    for name, a in whole.params.items():
        np.testing.assert_array_equal(found[0][name], found[1][name])
        np.testing.assert_allclose(found[0][name], a, atol=1e-9)


def test_what_the_dtype_of_the_model_cannot_hold_is_refused():
    wave = np.sin(np.arange(100.0))
    with pytest.raises(
        xplstm.ArgumentError, match=r"series\[:, 0\] has standard deviation .* subtract a constant first"
    ):
        Forecaster(1, 4, horizon=2, rng=0).fit(wave + 1e8, 5, updates=1, progress=False)
    Forecaster(1, 4, horizon=2, dtype="float64", rng=0).fit(wave + 1e8, 5, updates=1, progress=False)
    with pytest.raises(xplstm.DTypeError, match="series is a masked array"):
        Forecaster(1, 4, horizon=2, rng=0).fit(np.ma.masked_less(wave, 0), 5, updates=1, progress=False)
