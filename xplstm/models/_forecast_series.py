"""Train a forecaster on one series, and test the forecaster on later parts of the series."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from xplstm import _array, _values, optim, training
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._summary import brief
from xplstm._typing import Array
from xplstm.models._composite import Composite, Params, State
from xplstm.models._forecast_roles import LARGEST, Roles, mean_and_deviation
from xplstm.models.batching import WithFuture, windows

# Number of windows in one call outside training.
_AT_ONCE = 256


class Backtest(NamedTuple):
    """Forecasts from many origins, and the actual values: the result of `Forecaster.backtest`.

    Attributes
    ----------
    origins : numpy.ndarray of int64, shape (R,)
        First step of each forecast.
    forecasts : numpy.ndarray of float64, shape (R, n, M) or (R, n, M, Q)
        Forecasts of n steps of the M targets; Q numbers each for a model with quantiles.
    happened : numpy.ndarray of float64, shape (R, n, M)
        Actual values of the targets.
    quantiles : tuple of Q floats, or None
        Quantiles of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Backtest
    >>> test = Backtest(np.asarray([8]), np.asarray([[[1.0], [4.0]]]), np.asarray([[[2.0], [1.0]]]), None)
    >>> test.mae, test.rmse
    (array([2.]), array([2.23606798]))
    """

    origins: np.ndarray
    forecasts: np.ndarray
    happened: np.ndarray
    quantiles: tuple[float, ...] | None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def point(self) -> np.ndarray:
        """Forecasts as single numbers, (R, n, M); the median for a model with quantiles."""
        if self.quantiles is None:
            return self.forecasts
        if 0.5 not in self.quantiles:
            msg = f"quantiles={list(self.quantiles)} must contain 0.5, since errors are those of the median"
            raise ArgumentError(msg)
        return self.forecasts[..., self.quantiles.index(0.5)]

    @property
    def mae(self) -> np.ndarray:
        """Mean absolute error of each target, (M,)."""
        return np.abs(self.point - self.happened).mean(axis=(0, 1))

    @property
    def rmse(self) -> np.ndarray:
        """Root mean square error of each target, (M,)."""
        return np.sqrt(np.square(self.point - self.happened).mean(axis=(0, 1)))

    @property
    def coverage(self) -> np.ndarray:
        """Fraction of actual values at or below each quantile, (M, Q); ideally equal to the quantiles."""
        if self.quantiles is None:
            msg = "coverage needs a model with quantiles="
            raise ArgumentError(msg)
        return (self.happened[..., None] <= self.forecasts).mean(axis=(0, 1))


class SeriesModel(Composite):
    """Methods of a forecaster for one series: `fit` and `backtest`."""

    _roles: Roles
    _scale_given: bool
    _mean: np.ndarray
    _std: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean of each column."""
        return self._mean

    @mean.setter
    def mean(self, mean: Any) -> None:
        self._set_scale(mean, self._std)
        self._scale_given = True

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each column."""
        return self._std

    @std.setter
    def std(self, std: Any) -> None:
        self._set_scale(self._mean, std)
        self._scale_given = True

    def _has_scale(self) -> bool:
        """Return whether the scale was given, measured or set, also by writing to its arrays."""
        return bool(self._scale_given or self._mean.any() or (self._std != 1).any())

    @abstractmethod
    def _set_scale(self, mean: Any, std: Any) -> None:
        """Check and store the scale of each column."""

    @abstractmethod
    def loss_vjp(
        self,
        inputs: Any,
        targets: Array,
        state: State = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, Any, Callable[..., Params]]:
        """Return the loss, and the function that returns its gradients."""

    @abstractmethod
    def _last_loss(self, inputs: Any, targets: Array) -> Array:
        """Return the mean loss of the forecasts from the last step of each window."""

    @abstractmethod
    def forecast(self, x: Any, steps: int | None = None, state: State = None) -> Array:
        """Continue a series after its last step."""

    def fit(
        self,
        series: Any,
        window: int,
        *,
        updates: int = 500,
        optimizer: optim.Optimizer | None = None,
        batch_size: int = 64,
        validation: float = 0.2,
        validate_every: int = 25,
        patience: int | None = 10,
        max_norm: float | None = 1.0,
        rng: int | np.random.Generator | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool | Literal["auto"] = False,
        progress: bool = True,
    ) -> training.History:
        """Train on the windows of one series, with the end of the series held out for validation.

        If the model has no `mean` and `std`, this method measures them on the training part. A constant
        column gets std 1.

        Parameters
        ----------
        series : array_like, shape (N, F), or (N,) for F = 1
            Finite numbers in order of time, such as a pandas DataFrame or an array of any library. Each batch
            is converted to the dtype of the model.
        window : int
            Steps of a window, at least 1.
        updates : int, optional
            Largest number of updates, at least 0.
        optimizer : Optimizer, optional
            ``Adam(warmup_cosine(1e-2, updates // 10, updates))`` if omitted.
        batch_size : int, optional
            Windows of a batch, at least 1. The windows are shuffled in each epoch.
        validation : float, optional
            Fraction of the series, in [0, 1), that is held out at its end. No training window overlaps
            it. The validation loss is the mean loss of the forecasts from the last step of each window, over
            held-out steps only.
        validate_every, patience, max_norm : optional
            As for `xplstm.training.fit`. With ``validation=0`` there is no validation.
        rng : int or numpy.random.Generator, optional
            Seed or generator for the order of the windows and for dropout.
        checkpoint, resume, progress : optional
            As for `xplstm.training.fit`. A resumed run needs the series and the `rng` of its start.
            The default optimiser depends on `updates`: pass `optimizer` to continue with more updates.

        Returns
        -------
        History
            As from `xplstm.training.fit`.

        Raises
        ------
        ArgumentError, DTypeError, ShapeError
            If the series is too short, has a value that is not finite, or does not have F columns.
        NonFiniteError
            As for `xplstm.training.fit`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> series = np.sin(np.arange(200) / 3)
        >>> model = Forecaster(1, 8, horizon=4, rng=0)
        >>> history = model.fit(series, 12, updates=10, rng=0, progress=False)
        >>> model.mean.round(2), model.std.round(2)
        (array([0.04]), array([0.71]))
        """
        window = _values.size("window", window)
        values = self._series(series)
        held = _values.probability("validation", validation)
        cut = len(values) - round(held * len(values))
        ahead = self._roles.horizon or 1
        trained = cut - window - ahead + 1
        if trained < 1:
            msg = (
                f"series has {len(values)} steps, and validation={held} leaves {cut} for training; "
                f"window={window} and {ahead} steps ahead need {window + ahead}"
            )
            raise ArgumentError(msg)
        if held > 0 and len(values) - cut < ahead:
            msg = f"validation={held} holds out {len(values) - cut} steps, but a forecast needs {ahead}"
            raise ArgumentError(msg)
        later = values[cut - window :] if held else None
        rng = _values.generator("rng", rng)
        seed, size = int(rng.integers(1 << 62)), _values.size("batch_size", batch_size)
        inputs, targets = self._windows(values[:cut], window)

        def batches(epoch: int) -> _Parts:
            order = np.random.default_rng([seed, epoch]).permutation(trained)
            parts = np.array_split(order, math.ceil(trained / size))
            return _Parts(self, inputs, targets, parts)

        total = _values.size("updates", updates, 0)
        rate = optim.warmup_cosine(1e-2, warmup=total // 10, total=max(total, 1))
        scale, params = (self._mean, self._std, self._scale_given), self.params
        if not self._has_scale():
            self._fit_scale(values[:cut])
        try:
            return training.fit(
                self,
                batches,
                optim.Adam(rate) if optimizer is None else optimizer,
                updates=total,
                max_norm=max_norm,
                rng=rng,
                validate=None if later is None else self._validation(later, window),
                validate_every=validate_every,
                patience=None if later is None else patience,
                checkpoint=checkpoint,
                resume=resume,
                progress=progress,
            )
        except BaseException:
            if all(a is params[name] for name, a in self.params.items()):  # no update was made
                self._mean, self._std, self._scale_given = scale
            raise

    def _fit_scale(self, values: np.ndarray) -> None:
        """Set the scale to the mean and the standard deviation of a series."""
        mean, spread = mean_and_deviation(values)
        # Rounding errors give a constant column a small standard deviation.
        deviations = spread * (np.ptp(values, axis=0) > 0)
        self._check_offset(values, deviations)
        self._set_scale(mean, np.where(deviations > 0, deviations, 1.0))
        self._scale_given = True

    def backtest(
        self,
        series: Any,
        window: int,
        *,
        start: int,
        steps: int | None = None,
        stride: int = 1,
        refit: Callable[[Self, np.ndarray], object] | None = None,
        refit_every: int = 1,
    ) -> Backtest:
        """Forecast from many origins of a series, each from earlier steps only (rolling origin).

        Parameters
        ----------
        series : array_like, shape (N, F), or (N,) for F = 1
            As for `fit`.
        window : int
            Number of steps that each forecast reads, at least 1.
        start : int
            First origin, the index of the first step to forecast; at least `window`.
        steps : int, optional
            n, steps of each forecast, at least 1; the horizon of the model if omitted.
        stride : int, optional
            Steps between two origins, at least 1.
        refit : callable, optional
            ``refit(model, past)`` trains on the steps before an origin, (origin, F) float64, such as
            ``lambda model, past: model.fit(past, window, updates=50)``. All calls get the same copy of this
            model; this model itself does not change.
        refit_every : int, optional
            Origins between two calls of `refit`, at least 1.

        Returns
        -------
        Backtest
            Forecasts and actual values.

        Raises
        ------
        ArgumentError, DTypeError, ShapeError
            As for `fit`, and if `start` leaves no origin.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> series = np.sin(np.arange(200) / 3)
        >>> model = Forecaster(1, 8, horizon=4, rng=0)
        >>> model.backtest(series, 12, start=150).forecasts.shape
        (47, 4, 1)
        """
        window, values = _values.size("window", window), self._series(series)
        horizon = self._roles.horizon
        if steps is None and horizon is None:
            msg = "steps=None needs a model with horizon=; pass the number of steps"
            raise ArgumentError(msg)
        n = _values.size("steps", horizon if steps is None else steps, 1, horizon or _values.LARGEST)
        start, stride = _values.size("start", start, window), _values.size("stride", stride)
        # The known columns are read for the whole horizon.
        origins = np.arange(start, len(values) - (horizon or n) + 1, stride)
        if not len(origins):
            msg = f"start={start} of {len(values)} steps leaves fewer than {horizon or n} steps to forecast"
            raise ArgumentError(msg)
        model: Self = self
        group, every = _AT_ONCE, _values.size("refit_every", refit_every)
        if refit is not None:
            refit = _values.function("refit", refit)
            group = every
            home = self._home()
            model = type(self).from_config("this model", self.config(), self.params, home.xp, home.device)
        forecasts = []
        for first in range(0, len(origins), group):
            if refit is not None:
                refit(model, values[: origins[first]].copy())
            chosen = origins[first : first + group]
            parts = np.array_split(chosen, math.ceil(len(chosen) / _AT_ONCE))
            forecasts += [model._from_origins(values, window, part, n) for part in parts]
        happened = values[:, self._roles.targets]
        truth = np.stack([happened[o : o + n] for o in origins])
        return Backtest(origins, np.concatenate(forecasts), truth, self._roles.quantiles)

    def _from_origins(self, values: np.ndarray, window: int, origins: np.ndarray, steps: int) -> np.ndarray:
        """Return forecasts (R, steps, ...) from several origins."""
        roles = self._roles
        x: Any = self._move_to_params(np.stack([values[o - window : o] for o in origins], axis=1))
        if roles.known:
            following = [values[o : o + (roles.horizon or 0), roles.known] for o in origins]
            ahead = np.stack(following, axis=1)
            x = WithFuture(x, self._move_to_params(ahead))
        forecasts = _array.to_numpy(self.forecast(x, steps))
        return np.moveaxis(forecasts.astype(np.float64), 1, 0)

    def _check_offset(self, values: np.ndarray, deviations: np.ndarray) -> None:
        """Check that a series keeps its variation when it is rounded to the dtype of the model."""
        dtype = self._home().dtype
        steps = 2.0 ** -{"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[dtype]
        sizes = np.abs(values).max(axis=0, initial=0.0)
        lost = np.argwhere((deviations > 0) & (deviations < 16 * steps * sizes))
        if len(lost):
            (column,) = lost[0]
            msg = (
                f"series[:, {column}] has standard deviation {deviations[column]:.3g} and values up to "
                f"{sizes[column]:.3g}, too large for the precision of {dtype}; subtract a constant first, or "
                "create the model with dtype='float64'"
            )
            raise ArgumentError(msg)

    def _series(self, series: Any) -> np.ndarray:
        """Return a series as float64 (N, F) on the host."""
        if isinstance(series, np.ma.MaskedArray):
            _array.namespace(series, "series")  # names the argument in its error
        _check_order(series)
        is_array = hasattr(series, "__array__") or hasattr(series, "__dlpack__")
        try:
            values = _array.to_numpy(series) if is_array else np.asarray(series)
        except (TypeError, ValueError) as error:
            msg = f"series, a {type(series).__name__}, is not an array of numbers: {error}"
            raise DTypeError(msg) from error
        if values.dtype.kind not in "fiu":
            msg = f"series has dtype {values.dtype}, expected numbers"
            raise DTypeError(msg)
        values = values.astype(np.float64, order="C")
        features = self._roles.features
        if values.ndim == 1 and features == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != features:
            msg = f"series has shape {values.shape}, expected (N, {features}), one column for each feature"
            raise ShapeError(msg)
        largest = LARGEST[self._home().dtype]
        bad = np.argwhere(~(np.abs(values) <= largest))
        if len(bad):
            step, column = bad[0]
            msg = (
                f"series[{step}, {column}] is {values[step, column]}, expected a number of at most "
                f"{largest}; fill or drop gaps"
            )
            raise ArgumentError(msg)
        return values

    def _windows(self, values: np.ndarray, window: int) -> tuple[Any, Any]:
        """Return the windows of a series, and the targets of each of their steps."""
        roles = self._roles
        if roles.horizon is None:
            return windows(values, window)
        return windows(values, window, horizon=roles.horizon, targets=roles.targets, known=roles.known)

    def _move_to_params(self, values: np.ndarray) -> Array:
        """Move host values to the library, device and dtype of the parameters."""
        home = self._home()
        return _array.asarray(values, home.xp, home.device, home.dtype)

    def _validation(self, values: np.ndarray, window: int) -> Callable[[], float]:
        """Return the function that computes the mean loss of the last steps of all windows."""
        inputs, targets = self._windows(values, window)
        order = np.arange(targets.shape[1])
        parts = np.array_split(order, math.ceil(len(order) / _AT_ONCE))

        def validate() -> float:
            batches = _Parts(self, inputs, targets, parts)
            terms = [len(part) * float(self._last_loss(*batches[k])) for k, part in enumerate(parts)]
            return sum(terms) / len(order)

        return validate


def _check_order(series: Any) -> None:
    """Check that the dates of a pandas object, or on the first axis of an xarray object, increase."""
    index: Any = getattr(series, "index", None)
    remedy, dims = "series.sort_index()", getattr(series, "dims", None)
    if isinstance(dims, tuple) and dims:
        index, remedy = series.indexes.get(dims[0]), f"series.sortby({dims[0]!r})"
    if hasattr(index, "freq") and not index.is_monotonic_increasing:
        msg = f"series has an index whose dates do not increase; pass {remedy}"
        raise ArgumentError(msg)
    if hasattr(index, "freq") and not index.is_unique:
        (first, *_) = index[index.duplicated()]
        msg = f"series has several steps with the date {first}; pass one series, with one step for each date"
        raise ArgumentError(msg)


class _Parts(Sequence[tuple[Any, Array]]):
    """Batches of windows, moved to the device of the parameters on access."""

    def __init__(self, model: SeriesModel, inputs: Any, targets: np.ndarray, parts: list[np.ndarray]) -> None:
        self._model, self._inputs, self._targets, self._parts = model, inputs, targets, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        def part(a: Any) -> Array:
            return self._model._move_to_params(a[:, self._parts[index]])

        if isinstance(self._inputs, WithFuture):
            return WithFuture(*map(part, self._inputs)), part(self._targets)
        return part(self._inputs), part(self._targets)
