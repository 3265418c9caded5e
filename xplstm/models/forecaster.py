"""Many to many, and one to many: the next values of a series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xplstm import _array, _checks, _values, losses
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models._composite import Composite, Params, State, between_layers, prefixed
from xplstm.models.batching import Ragged, count_existing, existing, opened
from xplstm.nn import LSTM, Dropout, Linear

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph

# Smaller divisors overflow.
_SMALLEST = {"float64": 1e-300, "float32": 1e-37, "bfloat16": 1e-37, "float16": 6.2e-5}


_LARGEST = {"float64": 1.7e308, "float32": 3.4e38, "bfloat16": 3.3e38, "float16": 65504.0}


class Forecaster(Composite):
    """Stacked LSTM, linear: at each step, the next values of a series.

    The network sees ``(x - mean) / std`` and gives what is added to that to get
    the next step: one that knows nothing says that all stays as it is. Trained by
    `xplstm.training.fit`, whose `Model` it is.

    Parameters
    ----------
    features : int
        F, values of a step, at least 1.
    hidden_size : int
        At least 1.
    num_layers : int, optional
    mean, std : float or sequence of F floats, optional
        Of the part of the series that is learnt from; std above 0.
    dropout : float, optional
        Probability, in [0, 1), to drop in training what each LSTM layer gives.
    xp, device, dtype : optional
        Where the parameters are made: as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Of the first values.

    Attributes
    ----------
    mean, std : numpy.ndarray of float64, shape (F,)
        No parameters: a model for the same parameters is made with the same ones.
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``; setting it sets those of the layers.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError, BackendError
        Naming the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Forecaster
    >>> series = np.sin(np.arange(50.0))[:, None, None]
    >>> model = Forecaster(1, 8, mean=series.mean(), std=series.std(), dtype="float64", rng=0)
    >>> following, state = model(series)
    >>> following.shape, model.forecast(series, 12).shape
    ((50, 1, 1), (12, 1, 1))
    """

    _parts = {"lstm": LSTM, "linear": Linear}  # noqa: RUF012

    def __init__(
        self,
        features: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        mean: float | Sequence[float] | np.ndarray = 0.0,
        std: float | Sequence[float] | np.ndarray = 1.0,
        dropout: float = 0.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        features, hidden_size = _values.size("features", features), _values.size("hidden_size", hidden_size)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        self.lstm = LSTM(
            features, hidden_size, num_layers, dropout=between_layers(num_layers, dropout), **where
        )
        self.linear = Linear(hidden_size, features, **where)
        self._set_options(mean, std, dropout)

    def _set_options(
        self,
        mean: float | Sequence[float] | np.ndarray,
        std: float | Sequence[float] | np.ndarray,
        dropout: float,
    ) -> None:
        features = self.lstm.input_size
        self.mean, self.std = _for_each("mean", mean, features), _for_each("std", std, features)
        smallest = _SMALLEST[self._home().dtype]
        if not (self.std > 0).all():
            msg = f"std={std} must be above 0"
            raise ArgumentError(msg)
        if not (self.std > smallest).all():
            msg = f"std={std} must be above {smallest}, whose inverse {self._home().dtype} can hold"
            raise ArgumentError(msg)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _options(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "dropout": self.dropout.p}

    def _fitting(self) -> dict[str, tuple[int, int]]:
        return {"linear": (self.lstm.input_size, self.lstm._stack.width)}

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph: `xplstm.io.onnx.export` calls it.

        Parameters
        ----------
        graph : ModelGraph
        softmax : bool
            Must be False.

        Raises
        ------
        ArgumentError
            With `softmax`.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        if softmax:
            msg = "softmax=True needs a model with logits, got Forecaster"
            raise ArgumentError(msg)
        mean, std = (graph.number(name, a) for name, a in zip(("mean", "std"), self._scale(), strict=True))
        z = graph.scaled("Div", graph.scaled("Sub", graph.features("x"), mean, "centred"), std, "z")
        expected = graph.scaled("Add", z, graph.linear(self.linear, graph.recur(z)), "expected")
        following = graph.scaled("Add", graph.scaled("Mul", expected, std, "wide"), mean, "original")
        graph.leave(following, "following", ["T", "B", self.linear.out_features])

    def __call__(self, x: Array | Ragged, state: State = None) -> tuple[Array, LSTMState]:
        """Give for each step a forecast of the next.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F), or Ragged
        state : (h, c), optional
            What the steps before left; zeros if left out.

        Returns
        -------
        following : array, shape of x
            At t what is expected at t + 1.
        state : LSTMState
            To go on with.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `xplstm.LSTM`.
        """
        expected, state_n = self._expected(x, state)
        return self._original(expected), state_n

    def forecast(self, x: Array, steps: int, state: State = None) -> Array:
        """Go on with a series: each forecast is read as if it had come true.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F)
            What has happened, T at least 1.
        steps : int
            How far, at least 0.
        state : (h, c), optional
            What the steps before `x` left; zeros if left out.

        Returns
        -------
        array, shape (steps, B, F) or (steps, F)

        Raises
        ------
        ArgumentError
            If `steps` is negative.
        ShapeError, DTypeError, BackendError
            As for a call; and if `x` has no step.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> model = Forecaster(2, 8, rng=0)
        >>> model.forecast(np.ones((6, 3, 2), dtype="float32"), 4).shape
        (4, 3, 2)
        """
        steps = _values.size("steps", steps, 0)
        _array.namespace(x, "x")
        if 0 in x.shape[:1]:
            msg = f"x has shape {tuple(x.shape)}; there must be at least 1 step to go on from"
            raise ShapeError(msg)
        xp, lstm = _array.namespace(x, "x"), self.lstm.freeze()
        z = self._standardised(x)
        y, state_n = lstm(z, state)
        latest, expected = y[-1, ...], [z[-1, ...]]
        for _ in range(steps):
            expected.append(expected[-1] + self.linear(latest))
            latest, state_n = lstm.step(expected[-1], state_n)
        # Without the last value of x, which also is what there is to stack where steps is 0.
        return self._original(xp.stack(expected)[1:, ...])

    def loss(self, x: Array | Ragged, targets: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Mean squared error in units of `std`, nothing dropped and nothing kept for gradients.

        Parameters
        ----------
        x : array, shape (T, B, F) or (T, F), or Ragged
        targets : array, shape of x
            What came after each step; past a row's length it does not count.
        state : (h, c), optional

        Returns
        -------
        loss : array, shape ()
        state : LSTMState

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call, and as `xplstm.losses.mse`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import Forecaster
        >>> x = np.sin(np.arange(9.0))[:, None]
        >>> loss, state = Forecaster(1, 8, dtype="float64", rng=0).loss(x[:-1], x[1:])
        >>> float(loss) > 0
        True
        """
        expected, state_n = self._expected(x, state)
        happened = self._standardised(targets, "targets")
        return losses.mse(expected, happened, mask=existing(opened(x)))[0], state_n

    def loss_vjp(
        self,
        inputs: Array | Ragged,
        targets: Array,
        state: State = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Give the loss, and the function that gives its gradients.

        Parameters
        ----------
        inputs : array, shape (T, B, F) or (T, F), or Ragged
        targets : array, shape of x
            As for `loss`.
        state : (h, c), optional
            Held constant: here backpropagation is cut.
        rng : int or numpy.random.Generator, optional
            Dropout is applied exactly when this is given.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
        pullback : callable
            ``pullback(factor=1.0)`` gives the gradients of ``factor * loss``, with the keys of `params`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `loss`.

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
        x, lengths = opened(inputs)
        z = self._standardised(x)
        y, state_n, lstm_pullback = self.lstm.vjp(z, state, lengths=lengths, rng=rng)
        y, dropout_pullback = self.dropout.vjp(y, rng=rng)
        change, linear_pullback = self.linear.vjp(y)
        happened = self._standardised(targets, "targets")
        loss, loss_pullback = losses.mse(z + change, happened, mask=existing(opened(inputs)))

        def pullback(factor: float = 1.0) -> Params:
            dy, dlinear = linear_pullback(loss_pullback(factor))
            _, _, dlstm = lstm_pullback(dropout_pullback(dy))
            return prefixed({"lstm": dlstm, "linear": dlinear})

        return loss, state_n, pullback

    def _count(self, inputs: Any, targets: Any) -> int:  # noqa: ARG002
        """Return how many elements the loss is the mean of."""
        x = opened(inputs)
        return count_existing(existing(x), tuple(x.x.shape[:-1]))

    def _expected(self, x: Array | Ragged, state: State) -> tuple[Array, LSTMState]:
        """What follows each step, as the network sees it."""
        x, lengths = opened(x)
        z = self._standardised(x)
        y, state_n = self.lstm(z, state, lengths=lengths)
        return z + self.linear(y), state_n

    def _standardised(self, x: Array, name: str = "x") -> Array:
        """Return `x`, the argument called `name`, as the network sees it."""
        axes = ("T", "B")[: max(0, getattr(x, "ndim", 1) - 1)]
        x = _checks.array(name, x, self._home(), (*axes, len(self.mean)), "the last is features")
        mean, std = self._scale()
        return (x - mean) / std

    def _original(self, z: Array) -> Array:
        """What the network gives, in the units of the series."""
        mean, std = self._scale()
        return z * std + mean

    def _scale(self) -> tuple[Array, Array]:
        """Return `mean` and `std` where the parameters live."""
        home = self._home()
        smallest, largest = _SMALLEST[home.dtype], _LARGEST[home.dtype]
        if self.std.min() < smallest or max(self.std.max(), np.abs(self.mean).max()) > largest:
            what = f"mean={self.mean.tolist()} and std={self.std.tolist()} do not fit {home.dtype}"
            msg = (
                f"{what}: std must be in [{smallest}, {largest}] and mean at most as large; scale the series"
            )
            raise ArgumentError(msg)
        return (
            _array.asarray(self.mean, home.xp, home.device, home.dtype),
            _array.asarray(self.std, home.xp, home.device, home.dtype),
        )


def _for_each(name: str, value: float | Sequence[float] | np.ndarray, features: int) -> np.ndarray:
    """`value` once for each feature."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        msg = f"{name} must be a number, or one for each feature: {error}"
        raise DTypeError(msg) from error
    if given.dtype.kind not in "fiu":
        msg = f"{name} has dtype {given.dtype}; numbers were expected"
        raise DTypeError(msg)
    numbers = given.astype(np.float64)
    if numbers.shape not in ((), (features,)):
        msg = f"{name} has shape {numbers.shape}, expected () or ({features},): one for each feature"
        raise ShapeError(msg)
    if not np.isfinite(numbers).all():
        msg = f"{name}={value} must be finite"
        raise ArgumentError(msg)
    return np.broadcast_to(numbers, (features,)).copy()
