"""Forecast the next values of a series, one step or several steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models._composite import Params, State, between_layers, join_prefixed
from xplstm.models._forecast_roles import LARGEST, SMALLEST, Roles, check_future
from xplstm.models._forecast_series import SeriesModel
from xplstm.models.batching import Ragged, WithFuture, count_existing, existing, split_batch
from xplstm.nn import LSTM, Dropout, Linear, _blocks

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph

PerColumn: TypeAlias = "float | Sequence[float] | np.ndarray"
Inputs: TypeAlias = "Array | Ragged | WithFuture"
GAPS = "a forecast needs finite numbers; fill or drop gaps"
OVERFLOW = "the model has parameters that are not finite, or so large that the forecast overflows"


class _Read(NamedTuple):
    """A batch in the units of the network."""

    z: Array
    """All columns, standardised."""
    entered: Array
    """`z` and the known columns."""
    lengths: Any
    exists: Array | None
    """Valid steps; None if all steps are valid."""

    def last(self, a: Array) -> Array:
        """Return the values of `a` (T, B, ...) at the last valid step of each entry."""
        if self.exists is None:
            return a[-1, ...]
        xp = _array.namespace(a, "a")
        following = xp.concat([self.exists[1:, ...], xp.zeros_like(self.exists[:1, ...])], axis=0)
        place = _array.reshape(self.exists & ~following, (*a.shape[:2], *(1,) * (a.ndim - 2)))
        return xp.sum(xp.where(place, a, xp.zeros_like(a)), axis=0, dtype=a.dtype)


class Forecaster(SeriesModel):
    """Forecast the next values of a series at each step, with a stacked LSTM and a linear layer.

    The network reads ``(x - mean) / std``, and its output is added to the current value. A network with
    output 0 therefore predicts that the series does not change. `fit` trains the model on one series;
    `xplstm.training.fit` trains it on any batches.

    Without `horizon`, a forecast is the next step of all columns, and `forecast` feeds its own forecasts back
    for more steps. With `horizon`, the forecast is direct: each step forecasts the next `horizon` steps of
    the target columns at once, as numbers or as quantiles.

    Parameters
    ----------
    features : int
        F, columns of the series, at least 1.
    hidden_size : int
        Units of each layer, at least 1.
    num_layers : int, optional
        Number of LSTM layers, at least 1.
    mean, std : float or sequence of F floats, optional
        Mean and standard deviation of the training part of the series; std above 0. If omitted, they are 0
        and 1 until `fit` measures them.
    dropout : float, optional
        Dropout probability, in [0, 1), of the outputs of each LSTM layer in training.
    horizon : int, optional
        n, steps of a direct forecast, at least 1.
    targets : sequence of int, optional
        The M columns to forecast; all columns that are not `known` if omitted. Needs `horizon`.
    known : sequence of int, optional
        K columns that are known in advance, such as the month or a planned price. The model reads them for
        the next `horizon` steps; pass them with `WithFuture`. Needs `horizon`.
    quantiles : sequence of Q floats, optional
        Quantiles to forecast, ascending, in (0, 1). The model is then trained with the quantile loss.
        Quantiles cannot cross: neighbours differ by ``log(1 + exp(a))``. Needs `horizon`.
    xp, device, dtype : optional
        Backend, device and dtype of the parameters, as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Seed or generator for the initialisation.

    Attributes
    ----------
    mean, std : numpy.ndarray of float64, shape (F,)
        Scale of the columns, which may be set, as in the arguments. `save`, checkpoints and ONNX files store
        the scale; `state_dict` does not.
    targets, known : tuple of int
        Target columns and known columns.
    horizon : int or None
        Steps of a direct forecast.
    quantiles : tuple of float or None
        Quantiles to forecast.
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``. Setting it sets the parameters of the layers.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError, BackendError
        If an argument has the wrong type, shape, backend or value.

    Notes
    -----
    The loss is the mean over all steps of a window and the `horizon` steps after each. For direct forecasts
    and quantiles see Wen et al., "A multi-horizon quantile recurrent forecaster", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Forecaster
    >>> series = np.sin(np.arange(50.0))[:, None, None]
    >>> model = Forecaster(1, 8, mean=series.mean(), std=series.std(), dtype="float64", rng=0)
    >>> following, state = model(series)
    >>> following.shape, model.forecast(series, 12).shape
    ((50, 1, 1), (12, 1, 1))

    Forecast the first of three columns 4 steps ahead, as three quantiles:

    >>> model = Forecaster(3, 8, horizon=4, targets=[0], quantiles=[0.1, 0.5, 0.9], rng=0)
    >>> model.forecast(np.ones((50, 2, 3), dtype="float32")).shape
    (4, 2, 1, 3)
    """

    _parts = {"lstm": LSTM, "linear": Linear}  # noqa: RUF012

    def __init__(
        self,
        features: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        mean: PerColumn | None = None,
        std: PerColumn | None = None,
        dropout: float = 0.0,
        horizon: int | None = None,
        targets: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
        quantiles: Sequence[float] | None = None,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        features, hidden_size = _values.size("features", features), _values.size("hidden_size", hidden_size)
        roles = Roles.of(features, targets, known, horizon, quantiles)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        between = between_layers(num_layers, dropout)
        self.lstm = LSTM(roles.inputs, hidden_size, num_layers, dropout=between, **where)
        self.linear = Linear(hidden_size, roles.outputs, **where)
        self._set_options(mean, std, dropout, **roles.options())

    def _set_options(
        self,
        mean: PerColumn | None,
        std: PerColumn | None,
        dropout: float,
        horizon: int | None = None,
        targets: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
        quantiles: Sequence[float] | None = None,
    ) -> None:
        read_ahead = 0 if horizon is None else _values.size("horizon", horizon) * len(known or ())
        features = _values.size("features", self.lstm.input_size - read_ahead)
        self._roles = Roles.of(features, targets, known, horizon, quantiles)
        self._scale_given = mean is not None or std is not None
        self._set_scale(0.0 if mean is None else mean, 1.0 if std is None else std)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _set_scale(self, mean: PerColumn, std: PerColumn) -> None:
        """Check and store the scale of each column."""
        features = self._roles.features
        means, stds = _for_each("mean", mean, features), _for_each("std", std, features)
        smallest = SMALLEST[self._home().dtype]
        if not (stds > 0).all():
            msg = f"std={std} must be above 0"
            raise ArgumentError(msg)
        if not (stds > smallest).all():
            msg = f"std={std} must be above {smallest}, so that its inverse fits {self._home().dtype}"
            raise ArgumentError(msg)
        self._mean, self._std = means, stds

    @property
    def horizon(self) -> int | None:
        """Steps of a direct forecast; None for forecasts of one step."""
        return self._roles.horizon

    @property
    def targets(self) -> tuple[int, ...]:
        """Target columns."""
        return self._roles.targets

    @property
    def known(self) -> tuple[int, ...]:
        """Columns that are known in advance."""
        return self._roles.known

    @property
    def quantiles(self) -> tuple[float, ...] | None:
        """Quantiles to forecast, or None."""
        return self._roles.quantiles

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"mean": None, "std": None, "dropout": self.dropout.p}
        if self._has_scale():
            options |= {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return options | self._roles.options()

    def _fitting(self) -> dict[str, tuple[int, int]]:
        return {"linear": (self._roles.outputs, self.lstm._stack.width)}

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph; `xplstm.io.onnx.export` calls this method.

        Parameters
        ----------
        graph : ModelGraph
            Graph to add to.
        softmax : bool
            Must be False.

        Raises
        ------
        ArgumentError
            If `softmax` is True.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        if softmax:
            msg = "softmax=True needs a model with logits, got Forecaster"
            raise ArgumentError(msg)
        mean, std = (graph.number(name, a) for name, a in zip(("mean", "std"), self._scale(), strict=True))
        x = graph.features("x", self._roles.features)
        z = graph.apply("Div", graph.apply("Sub", x, mean, "centred"), std, "z")
        self._network("lstm")
        if self.horizon is not None:
            self._roles.export_to(graph, z, self._scale(), self.linear)
            return
        expected = graph.apply("Add", z, graph.linear(self.linear, graph.recur(z)), "expected")
        following = graph.apply("Add", graph.apply("Mul", expected, std, "wide"), mean, "original")
        graph.leave(following, "following", ["T", "B", self.linear.out_features])

    def __call__(self, x: Inputs, state: State = None) -> tuple[Array, LSTMState]:
        """Return a forecast from each step.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F), or Ragged, or WithFuture
            The observed series.
        state : (h, c), optional
            State after the steps before `x`; zeros if omitted.

        Returns
        -------
        following : array, shape of x, or (T, B, horizon, M) or (T, B, horizon, M, Q)
            At t the forecast for step t + 1, or for the steps t + 1 to t + horizon.
        state : LSTMState
            Final state, from which the next call can continue.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `xplstm.LSTM`.
        """
        if _blocks.takes(split_batch(x.x if isinstance(x, WithFuture) else x).x, self._home()):
            return self._in_blocks(x, state)
        read = self._read(x)
        y, state_n = self._network("lstm")(read.entered, state, lengths=read.lengths)
        return self._following(y, read.z), state_n

    def _following(self, y: Array, z: Array) -> Array:
        """Return the forecasts from each step in the units of the series."""
        return self._original(self._roles.forecasts(self.linear(y), z)[0])

    def _in_blocks(self, x: Any, state: Any) -> tuple[Any, LSTMState]:
        """Return the results of a call as Dask arrays, with one task for each chunk of time and batch."""
        if isinstance(x, WithFuture):
            msg = "x is a Dask array with a future, which only forecast accepts; use x.x.compute() for a call"
            raise ArgumentError(msg)
        check_future(None, self._roles)
        batch = split_batch(x)
        self._check_blocks(batch.x)
        steps, shape = "tb"[: batch.x.ndim - 1], dict(zip("uvw", self._roles.shape, strict=False))
        dtype, work = batch.x.dtype, Forecaster._standardise
        scaled = {"z": self._roles.features}
        z = _blocks.apply(work, f"{steps}z", scaled, dtype, (batch.x, f"{steps}f"), model=self)
        y, state_n = self._network("lstm")(z, state, lengths=batch.lengths)
        out, read = steps + "".join(shape), ((y, f"{steps}h"), (z, f"{steps}f"))
        return _blocks.apply(Forecaster._following, out, shape, dtype, *read, model=self), state_n

    def _check_blocks(self, x: Any) -> None:
        """Check the shape, the library and the dtype of a Dask array."""
        home, features = self._home(), self._roles.features
        if x.ndim not in (2, 3) or x.shape[-1] != features:
            msg = f"x has shape {x.shape}, expected (T, B, {features}) or (T, {features})"
            raise ShapeError(msg)
        _blocks.check_kind("x", x, home, home.dtype)

    def _forecast_blocks(self, batch: Ragged, future: Any, steps: int, state: Any) -> Any:
        """Return the forecast as a Dask array, with one task for each chunk of the batch."""
        x = batch.x
        if batch.lengths is not None:
            msg = "x is a Ragged batch of Dask arrays, and forecast needs series of one length; "
            msg += "pass Ragged(x.x.compute(), x.lengths)"
            raise ArgumentError(msg)
        self._check_blocks(x)
        check_future(future, self._roles)
        batched, rest = x.ndim == 3, self._roles.shape[0 if self.horizon is None else 1 :]
        axes = dict(zip("vw", rest, strict=False))
        x = x if batched else x[:, None, :]
        given = [(x, "tbf")]
        if future is not None:
            shape = (self._roles.horizon or 0, x.shape[1], len(self.known))
            future = future if batched else future[:, None, :]
            given.append((_blocks.in_batches("future", future, self._home(), shape, x), "jbk"))
        if state is not None and not isinstance(self.lstm, LSTM):
            state = LSTMState(state, state[..., :0])
        states = _blocks.states(self.lstm._stack, self._home(), state, x, batched)
        given += [] if states is None else [(states[0], "lbp"), (states[1], "lbq")]
        work, sizes = partial(_forecast_block, steps, future is not None), {"n": steps} | axes
        forecasts = _blocks.apply(work, "nb" + "".join(axes), sizes, x.dtype, *given, model=self)
        return forecasts if batched else forecasts[:, 0]

    def forecast(self, x: Inputs, steps: int | None = None, state: State = None) -> Array:
        """Forecast the steps after the last step of each series.

        Without `horizon`, each forecast is the input for the next forecast.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F), or Ragged, or WithFuture
            The observed series, each with at least 1 step and finite numbers, of any dtype that `fit`
            accepts. The forecasts of a batch entry begin after its own last step.
        steps : int, optional
            Number of steps to forecast, at least 0. With `horizon`, at most `horizon`, which is the default.
        state : (h, c), optional
            State after the steps before `x`; zeros if omitted.

        Returns
        -------
        array, shape (steps, B, F) or (steps, F)
            Forecasts. With `horizon` the last axis is M, the targets; with `quantiles` an axis Q follows.

        Raises
        ------
        ArgumentError
            If `steps` is outside its range, or a value of `x` or of the forecast is not finite. Values on a
            device or under a trace are not checked.
        ShapeError, DTypeError, BackendError
            As for a call, and if `x` or a batch entry has no step.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> model = Forecaster(2, 8, rng=0)
        >>> model.forecast(np.ones((6, 3, 2), dtype="float32"), 4).shape
        (4, 3, 2)
        """
        if steps is None and self.horizon is None:
            msg = "steps=None needs a model with horizon=; pass the number of steps"
            raise ArgumentError(msg)
        steps = _values.size("steps", self.horizon if steps is None else steps, 0)
        if self.horizon is not None and steps > self.horizon:
            msg = f"steps={steps} must be at most horizon={self.horizon}"
            raise ArgumentError(msg)
        given, future = x if isinstance(x, WithFuture) else (x, None)
        batch = split_batch(given)
        _array.namespace(batch.x, "x")
        if 0 in batch.x.shape[:1]:
            msg = f"x has shape {tuple(batch.x.shape)}, expected at least 1 step"
            raise ShapeError(msg)
        if _blocks.takes(batch.x, self._home()):
            return self._forecast_blocks(batch, future, steps, state)
        observed = self._convert_batch(batch)
        if isinstance(x, WithFuture):
            _array.namespace(x.future, "future")
            _checks.finite("future", x.future, GAPS)
            observed = WithFuture(observed, self._convert("future", x.future))
        read = self._read(observed)
        forecasts = self._iterate(read, steps, state) if self.horizon is None else self._direct(read, state)
        _checks.finite("the forecast", forecasts, OVERFLOW)
        return forecasts[:steps, ...]

    def _convert_batch(self, batch: Ragged) -> Any:
        """Check the numbers of the observed series, and return them in the dtype of the model."""
        exists = existing(batch)
        _checks.finite("x", batch.x, GAPS, exists)
        if exists is None:
            return self._convert("x", batch.x)
        if batch.x.ndim != 3:
            return batch  # `_read` raises an error that names the shape
        if not _array.is_lazy(exists):
            empty = np.flatnonzero(~_array.to_numpy(exists[0, ...]))
            if empty.size:
                msg = f"x: lengths[{empty[0]}]=0, expected at least 1 step"
                raise ShapeError(msg)
        xp = _array.namespace(batch.x, "x")
        # Padding may be a number that the dtype of the model cannot represent.
        filled = xp.where(exists[..., None], batch.x, xp.zeros_like(batch.x))
        return Ragged(self._convert("x", filled), batch.lengths)

    def _convert(self, name: str, a: Array) -> Array:
        """Return numbers of the model's library in its dtype, as `fit` converts a series."""
        home, xp = self._home(), _array.namespace(a, name)
        if xp is not home.xp or not xp.isdtype(a.dtype, ("real floating", "integral")):
            return a  # `_read` raises an error that names the dtype
        return _checks.convert(name, a, home.xp, home.device, home.dtype)

    def _iterate(self, read: _Read, steps: int, state: State) -> Array:
        """Return `steps` forecasts; each forecast is the input of the next one."""
        lstm = self._network("lstm").freeze()
        y, state_n = lstm(read.z, state, lengths=read.lengths)
        latest, expected = read.last(y), [read.last(read.z)]
        for _ in range(steps):
            expected.append(expected[-1] + self.linear(latest))
            latest, state_n = lstm.step(expected[-1], state_n)
        # Drop the last value of x, which the stack needs if steps is 0.
        xp = _array.namespace(latest, "x")
        return self._original(xp.stack(expected)[1:, ...])

    def _direct(self, read: _Read, state: State) -> Array:
        """Return the forecast from the last step, with the horizon as first axis."""
        y, _ = self._network("lstm")(read.entered, state, lengths=read.lengths)
        expected, _ = self._roles.forecasts(self.linear(read.last(y)), read.last(read.z))
        xp, original = _array.namespace(expected, "x"), self._original(expected)
        if original.ndim == len(self._roles.shape):
            return original
        return xp.permute_dims(original, (1, 0, *range(2, original.ndim)))

    def loss(self, x: Inputs, targets: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Return the mean loss in units of `std`, without dropout.

        The loss is the mean squared error, or the quantile loss for a model with `quantiles`.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F), or Ragged, or WithFuture
            The observed series.
        targets : array, shape of x, or (T, B, horizon, M)
            Values after each step, such as those from `windows`. Values after the length of an entry are
            ignored.
        state : (h, c), optional
            State after the steps before `x`; zeros if omitted.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            Final state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call, and for `xplstm.losses.mse` or `xplstm.losses.quantile`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> x = np.sin(np.arange(9.0))[:, None]
        >>> loss, state = Forecaster(1, 8, dtype="float64", rng=0).loss(x[:-1], x[1:])
        >>> float(loss) > 0
        True
        """
        read = self._read(x)
        y, state_n = self._network("lstm")(read.entered, state, lengths=read.lengths)
        expected, _ = self._roles.forecasts(self.linear(y), read.z)
        return self._roles.loss(expected, self._target_units(targets, read.z), read.exists)[0], state_n

    def loss_vjp(
        self,
        inputs: Inputs,
        targets: Array,
        state: State = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Return the loss, the final state, and the function that returns the gradients.

        Parameters
        ----------
        inputs : array, shape (T, B, F) or (T, F), or Ragged, or WithFuture
            The observed series.
        targets : array
            As for `loss`.
        state : (h, c), optional
            State after the steps before `inputs`; zeros if omitted. Backpropagation is truncated here.
        rng : int or numpy.random.Generator, optional
            Seed or generator for dropout; no dropout if omitted.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            Final state.
        pullback : callable
            ``pullback(factor=1.0)`` returns the gradients of ``factor * loss``, with the keys of `params`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `loss`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> model, x = Forecaster(1, 8, dtype="float64", rng=0), np.sin(np.arange(9.0))[:, None]
        >>> loss, state, pullback = model.loss_vjp(x[:-1], x[1:])
        >>> pullback().keys() == model.params.keys()
        True
        """
        rng = None if rng is None else _values.generator("rng", rng)
        read = self._read(inputs)
        y, state_n, lstm_pullback = self._network("lstm").vjp(
            read.entered, state, lengths=read.lengths, rng=rng, dx=False
        )
        y, dropout_pullback = self.dropout.vjp(y, rng=rng)
        raw, linear_pullback = self.linear.vjp(y)
        expected, forecast_pullback = self._roles.forecasts(raw, read.z)
        loss, loss_pullback = self._roles.loss(expected, self._target_units(targets, read.z), read.exists)

        def pullback(factor: float = 1.0) -> Params:
            dloss = loss_pullback(_values.finite("factor", factor))
            dy, dlinear = linear_pullback(forecast_pullback(dloss))
            _, _, dlstm = lstm_pullback(dropout_pullback(dy))
            return join_prefixed({"lstm": dlstm, "linear": dlinear})

        return loss, state_n, pullback

    def _last_loss(self, inputs: Inputs, targets: Array) -> Array:
        """Return the mean loss of the forecasts from the last step of each window."""
        read = self._read(inputs)
        y, _ = self._network("lstm")(read.entered)
        z = read.z[-1:, ...]
        expected, _ = self._roles.forecasts(self.linear(y[-1:, ...]), z)
        return self._roles.loss(expected, self._target_units(targets[-1:, ...], z), None)[0]

    def _count(self, inputs: Any, targets: Any) -> int:  # noqa: ARG002
        """Return the number of elements over which the loss is averaged."""
        x = split_batch(inputs.x if isinstance(inputs, WithFuture) else inputs)
        _array.namespace(x.x, "inputs")
        return count_existing(existing(x), tuple(x.x.shape[:-1]))

    def _read(self, inputs: Inputs) -> _Read:
        """Check a batch, and convert it to the units of the network."""
        given, future = inputs if isinstance(inputs, WithFuture) else (inputs, None)
        check_future(future, self._roles)
        batch = split_batch(given)
        z = self._standardise(batch.x)
        exists = existing(batch)
        if future is None or self.horizon is None:
            return _Read(z, z, batch.lengths, exists)
        xp, known = _array.namespace(z, "x"), self._roles.known
        shape = (self.horizon, *z.shape[1:-1], len(known))
        future = _checks.array("future", future, self._home(), shape, "(horizon, B, columns of known=)")
        mean, std = (self._roles.select(a, known) for a in self._scale())
        lengths = None if exists is None else xp.sum(xp.astype(exists, xp.int32), axis=0, dtype=xp.int32)
        entered = self._roles.join_input(z, (future - mean) / std, lengths)
        return _Read(z, entered, batch.lengths, exists)

    def _standardise(self, x: Array, name: str = "x") -> Array:
        """Convert `x`, the argument `name`, to the units of the network."""
        axes = ("T", "B")[: max(1, getattr(x, "ndim", 1) - 1)]
        x = _checks.array(name, x, self._home(), (*axes, len(self.mean)), "the last axis is features")
        mean, std = self._scale()
        return (x - mean) / std

    def _target_units(self, targets: Array, z: Array) -> Array:
        """Convert the targets of a batch to the units of the network."""
        if self.horizon is None:
            return self._standardise(targets, "targets")
        shape = (*z.shape[:-1], self.horizon, len(self.targets))
        targets = _checks.array("targets", targets, self._home(), shape, "the last are horizon and targets")
        mean, std = (self._roles.select(a, self.targets) for a in self._scale())
        return (targets - mean) / std

    def _original(self, z: Array) -> Array:
        """Convert forecasts of the network to the units of the series."""
        mean, std = (self._roles.select(a, self.targets) for a in self._scale())
        return z * std + mean if self.quantiles is None else z * std[..., None] + mean[..., None]

    def _scale(self) -> tuple[Array, Array]:
        """Return `mean` and `std` on the device of the parameters."""
        home = self._home()
        smallest, largest = SMALLEST[home.dtype], LARGEST[home.dtype]
        if self.std.min() < smallest or max(self.std.max(), np.abs(self.mean).max()) > largest:
            what = f"mean={self.mean.tolist()} and std={self.std.tolist()} do not fit {home.dtype}"
            bounds = f"std must be in [{smallest}, {largest}], and mean at most {largest}"
            msg = f"{what}: {bounds}; scale the series"
            raise ArgumentError(msg)
        return (
            _array.asarray(self.mean, home.xp, home.device, home.dtype),
            _array.asarray(self.std, home.xp, home.device, home.dtype),
        )


def _forecast_block(steps: int, ahead: bool, model: Forecaster, x: Array, *given: Array) -> Array:
    """Return the forecast of one chunk of the batch; `given` is the future, the state, or both."""
    future, state = (given[0], given[1:]) if ahead else (None, given)
    whole: Any = x if future is None else WithFuture(x, future)
    before: Any = None
    if state:
        before = LSTMState(*state) if isinstance(model.lstm, LSTM) else state[0]
    return model.forecast(whole, steps, before)


def _for_each(name: str, value: float | Sequence[float] | np.ndarray, features: int) -> np.ndarray:
    """Return one number for each feature."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        msg = f"{name} must be a number, or one for each feature: {error}"
        raise DTypeError(msg) from error
    if given.dtype.kind not in "fiu":
        msg = f"{name} has dtype {given.dtype}, expected numbers"
        raise DTypeError(msg)
    numbers = given.astype(np.float64)
    if numbers.shape not in ((), (features,)):
        msg = f"{name} has shape {numbers.shape}, expected () or ({features},), one for each feature"
        raise ShapeError(msg)
    if not np.isfinite(numbers).all():
        msg = f"{name}={value} must be finite"
        raise ArgumentError(msg)
    return np.broadcast_to(numbers, (features,)).copy()
