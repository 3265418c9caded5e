"""Check direct forecasts: covariates, a subset of the columns, many steps at once, and quantiles."""

from __future__ import annotations

import numpy as np
import pytest

import xplstm
from tests.support.modelcases import check_gradients, check_same, host, torch_copy
from xplstm import _array, optim, training
from xplstm.models import Forecaster, Ragged, WithFuture, windows

T, B, F, H, N = 5, 4, 3, 6, 2
LENGTHS = [2, 5, 0, 3]
MEAN, STD = (1.0, -2.0, 0.5), (2.0, 0.7, 1.5)
QUANTILES = (0.1, 0.25, 0.5, 0.9)
KINDS = {
    "all columns": {},
    "some columns": {"targets": [2, 0]},
    "known in advance": {"targets": [0], "known": [2]},
    "quantiles": {"targets": [0], "known": [2, 1], "quantiles": QUANTILES},
    "one quantile": {"quantiles": [0.7]},
}


def make(**options):
    given = {"horizon": N, "mean": MEAN, "std": STD, "num_layers": 2, "dtype": "float64", "rng": 3}
    return Forecaster(F, H, **(given | options))


def batch_of(model, rng, lengths=None, to=np.asarray):
    """Return inputs and targets for a model."""
    x = np.asarray(MEAN) + np.asarray(STD) * rng.normal(size=(T, B, F))
    targets = rng.normal(size=(T, B, N, len(model.targets)))
    future = rng.normal(size=(N, B, len(model.known)))
    inputs = to(x) if lengths is None else Ragged(to(x), lengths)
    return (WithFuture(inputs, to(future)) if model.known else inputs), to(targets)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_differences(kind, lengths, rng):
    inputs, targets = batch_of(make(**KINDS[kind]), rng, lengths)
    check_gradients(
        lambda: make(dropout=0.3, **KINDS[kind]), lambda model: model.loss_vjp(inputs, targets, None, 5)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_gives_the_same(kind, xp, rng):
    ours, theirs = make(xp=xp.xp, **KINDS[kind]), make(**KINDS[kind])
    seed = int(rng.integers(1000))
    given, expected = (
        batch_of(theirs, np.random.default_rng(seed), LENGTHS, to) for to in (xp.asarray, np.asarray)
    )
    check_same(host(ours.loss_vjp(*given)), host(theirs.loss_vjp(*expected)))
    found = _array.to_numpy(ours(given[0])[0])
    np.testing.assert_allclose(found, theirs(expected[0])[0], atol=1e-12)


def test_forecasts_and_quantile_loss_are_those_of_torch(rng, torch):
    model = make(targets=[2, 0], quantiles=QUANTILES[:3])
    theirs = torch_copy(model, {"lstm": torch.nn.LSTM(F, H, 2), "linear": torch.nn.Linear(H, N * 2 * 3)})
    x, targets = batch_of(model, rng)
    mean, std = (torch.tensor(a, dtype=torch.float64) for a in (MEAN, STD))
    z = (torch.tensor(x) - mean) / std
    raw = theirs["linear"](theirs["lstm"](z)[0]).reshape(T, B, N, 2, 3)
    gaps = torch.nn.functional.softplus(raw)
    middle = z[..., [2, 0]][..., None, :] + raw[..., 1]
    expected = torch.stack([middle - gaps[..., 0], middle, middle + gaps[..., 2]], dim=-1)
    error = ((torch.tensor(targets) - mean[[2, 0]]) / std[[2, 0]])[..., None] - expected
    q = torch.tensor(QUANTILES[:3], dtype=torch.float64)
    loss = torch.maximum(q * error, (q - 1) * error).mean()
    loss.backward()
    our_loss, _, pullback = model.loss_vjp(x, targets)
    assert float(our_loss) == pytest.approx(loss.item(), abs=1e-13)
    assert float(model.loss(x, targets)[0]) == pytest.approx(loss.item(), abs=1e-13)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(pullback()[name], parameter.grad, atol=1e-12, err_msg=name)
    in_units = expected * std[[2, 0], None] + mean[[2, 0], None]
    np.testing.assert_allclose(model(x)[0], in_units.detach(), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_entry_is_read_as_if_it_were_alone(kind, rng):
    model = make(**KINDS[kind])
    inputs, _ = batch_of(model, rng, LENGTHS)
    following, _ = model(inputs)
    x, future = inputs if isinstance(inputs, WithFuture) else (inputs, None)
    for entry, length in enumerate(LENGTHS):
        alone = x.x[:length, entry]
        ours, _ = model(alone if future is None else WithFuture(alone, future[:, entry]))
        np.testing.assert_allclose(following[:length, entry], ours, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forecast_is_that_of_the_last_step(kind, rng):
    model = make(**KINDS[kind])
    inputs, _ = batch_of(model, rng)
    following, _ = model(inputs)
    np.testing.assert_allclose(model.forecast(inputs), np.moveaxis(following[-1], 0, 1), atol=1e-13)
    np.testing.assert_allclose(model.forecast(inputs, 1), np.moveaxis(following[-1], 0, 1)[:1], atol=1e-13)
    assert model.forecast(inputs, 0).shape == (0, *model.forecast(inputs).shape[1:])
    x, future = inputs if isinstance(inputs, WithFuture) else (inputs, None)
    alone = x[:, 1] if future is None else WithFuture(x[:, 1], future[:, 1])
    np.testing.assert_allclose(model.forecast(alone), following[-1, 1], atol=1e-13)


def test_a_stream_with_a_future_continues_from_its_state(rng):
    model = make(known=[1])
    inputs, _ = batch_of(model, rng)
    whole, _ = model(inputs)
    first = WithFuture(inputs.x[:3], inputs.x[3:5, :, 1:2])
    _, state = model(first)
    following, _ = model(WithFuture(inputs.x[3:], inputs.future), state)
    np.testing.assert_allclose(following, whole[3:], atol=1e-13)


def test_what_is_known_ahead_is_read_at_the_steps_that_are_forecast(rng):
    """The next two values of column 1 change the forecast of a step; later ones do not."""
    model = make(known=[1], targets=[0])
    inputs, _ = batch_of(model, rng)
    before, _ = model(inputs)
    changed = inputs.x.copy()
    changed[3, :, 1] += 1
    after, _ = model(WithFuture(changed, inputs.future))
    assert [bool((after[t] != before[t]).any()) for t in range(T)] == [False, True, True, True, True]
    after, _ = model(WithFuture(inputs.x, inputs.future + np.asarray([[[0]], [[1]]])))
    assert [bool((after[t] != before[t]).any()) for t in range(T)] == [False] * 4 + [True]


def test_quantiles_never_cross(rng):
    for dtype in ("float32", "float64"):
        model = make(quantiles=QUANTILES, dtype=dtype)
        model.params = {n: (40 * rng.normal(size=a.shape)).astype(dtype) for n, a in model.params.items()}
        found, _ = model(batch_of(model, rng)[0].astype(dtype))
        assert (np.diff(found, axis=-1) >= 0).all()


def test_one_that_knows_nothing_says_that_all_stays(rng):
    model = make(targets=[2, 0])
    model.params = {name: np.zeros_like(a) for name, a in model.params.items()}
    x, _ = batch_of(model, rng)
    expected = np.broadcast_to(x[:, :, None, [2, 0]], (T, B, N, 2))
    np.testing.assert_allclose(model(x)[0], expected, atol=1e-14)


def test_padding_changes_nothing(rng):
    model = make(**KINDS["quantiles"])
    inputs, targets = batch_of(model, rng, LENGTHS)
    past = np.arange(T)[:, None] >= np.asarray(LENGTHS)
    x = np.where(past[..., None], np.nan, inputs.x.x)
    nan_targets = np.where(past[..., None, None], np.nan, targets)
    found = host(model.loss_vjp(WithFuture(Ragged(x, LENGTHS), inputs.future), nan_targets))
    check_same(found, host(model.loss_vjp(inputs, targets)))


def test_windows_hold_the_future_of_each_step(xp, rng):
    series = rng.normal(size=(12, 4))
    options = {"horizon": 3, "targets": [2, 0], "known": [1, 3]}
    inputs, targets = windows(xp.asarray(series), 4, **options)
    x, future, targets = (_array.to_numpy(a) for a in (*inputs, targets))
    assert x.shape == (4, 6, 4)
    for k in range(6):
        np.testing.assert_array_equal(x[:, k], series[k : k + 4])
        np.testing.assert_array_equal(future[:, k], series[k + 4 : k + 7, [1, 3]])
        for t in range(4):
            np.testing.assert_array_equal(targets[t, k], series[k + t + 1 : k + t + 4, [2, 0]])


def test_windows_of_numpy_take_no_memory():
    series = np.arange(4000.0).reshape(1000, 4)
    inputs, targets = windows(series, 50, horizon=20, known=[1])
    for a in (*inputs, targets):
        assert not a.flags.owndata
        assert not a.flags.writeable
        base = a
        while base.base is not None:
            base = base.base
        assert base.size <= series.size


@pytest.mark.slow
def test_a_wave_that_follows_what_is_known_is_learnt(tmp_path):
    """The target is the known column of the same step, which the past does not determine."""
    rng = np.random.default_rng(0)
    plan = rng.normal(size=(400, 1)).astype("float32")
    series = np.concatenate([3 * plan, plan], axis=1)
    inputs, targets = windows(series, 8, horizon=2, targets=[0], known=[1])
    model = Forecaster(2, 16, horizon=2, targets=[0], known=[1], mean=0, std=[3, 1], rng=0)
    file = tmp_path / "run.safetensors"
    training.fit(model, [(inputs, targets)], optim.Adam(0.03), updates=150, checkpoint=file, progress=False)
    error = np.abs(model(inputs)[0] - targets).mean()
    assert error < 0.4 * np.abs(targets).mean()
    again = Forecaster.load(file)
    np.testing.assert_array_equal(again.forecast(inputs), model.forecast(inputs))


X = np.zeros((T, B, F))
BAD = [
    (lambda: Forecaster(3, 4, targets=[0]), "targets=\\[0\\] needs horizon="),
    (lambda: Forecaster(3, 4, known=[0]), "known=\\[0\\] needs horizon="),
    (lambda: Forecaster(3, 4, quantiles=[0.5]), "quantiles=\\[0.5\\] needs horizon="),
    (lambda: make(horizon=0), "horizon=0 must be at least 1"),
    (lambda: make(targets=[3]), r"targets\[0\]=3 must be at most 2"),
    (lambda: make(targets=[1, 1]), r"targets=\[1, 1\] must not contain a column twice"),
    (lambda: make(targets=[]), "leaves no column to forecast"),
    (lambda: make(known=[0, 1, 2]), "leaves no column to forecast"),
    (lambda: make(targets=[1], known=[1]), r"targets=\[1\] and known=\[1\] both contain \[1\]"),
    (lambda: make(quantiles=[0.5, 0.5]), "must be one or more ascending numbers"),
    (lambda: make(quantiles=[]), "must be one or more ascending numbers"),
    (lambda: make(quantiles=[0.0, 0.5]), "must be one or more ascending numbers"),
    (lambda: make(quantiles=[0.5, 1.0]), r"quantiles\[1\]=1.0 must be"),
    (lambda: make(known=[1])(X), r"x has no future of the columns known=\[1\]"),
    (lambda: make()(WithFuture(X, X[:2])), "x has a future, but the model has no known columns"),
    (lambda: make(known=[1])(WithFuture(X, X[:2])), r"future has shape \(2, 4, 3\), expected \(2, 4, 1\)"),
    (lambda: make().loss(X, X), r"targets has shape \(5, 4, 3\), expected \(5, 4, 2, 3\)"),
    (lambda: make().forecast(X, 3), "steps=3 must be at most horizon=2"),
    (lambda: Forecaster(3, 4, dtype="float64").forecast(X), "steps=None needs a model with horizon="),
    (lambda: make().forecast(np.where(np.arange(F) == 1, np.nan, X)), r"x\[0, 0, 1\] is nan"),
    (lambda: make(known=[1]).forecast(WithFuture(X, X[:2, :, :1] + np.inf)), r"future\[0, 0, 0\] is inf"),
    (lambda: windows(X[:, 0], 4, horizon=2), "size=4 plus horizon=2 must be at most"),
    (lambda: windows(X[:, 0], 4, targets=[0]), r"targets=\[0\] needs horizon="),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(xplstm.XplstmError, match=message):
        call()
