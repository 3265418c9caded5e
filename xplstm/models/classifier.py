"""Many to one: the class of a whole sequence; or, step by step, of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from xplstm import _array, _values, losses
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models._composite import Composite, Params, State, between_layers, prefixed
from xplstm.models.batching import Ragged, existing, opened
from xplstm.nn import LSTM, Dropout, Linear

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph


class SequenceClassifier(Composite):
    """Stacked LSTM, linear: the class of a sequence.

    Many to one: the linear layer reads the last layer's final state, of each
    direction its own, so that both have seen the whole sequence. With
    `each_step` many to many: it reads every output. Trained by
    `xplstm.training.fit`, whose `Model` it is.

    Parameters
    ----------
    input_size, hidden_size : int
        At least 1.
    num_classes : int
        C, at least 1.
    num_layers : int, optional
    bidirectional : bool, optional
    each_step : bool, optional
        Classify each step instead of the whole sequence.
    dropout : float, optional
        Probability, in [0, 1), to drop in training what each LSTM layer gives.
    xp, device, dtype : optional
        Where the parameters are made: as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Of the first values.

    Attributes
    ----------
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``; setting it sets those of the layers.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        Naming the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Ragged, SequenceClassifier
    >>> model = SequenceClassifier(3, 8, num_classes=4, bidirectional=True, rng=0)
    >>> x = np.ones((6, 2, 3), dtype="float32")
    >>> model(x).shape, model(Ragged(x, [6, 1])).shape
    ((2, 4), (2, 4))
    """

    _parts = {"lstm": LSTM, "linear": Linear}  # noqa: RUF012

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        each_step: bool = False,
        dropout: float = 0.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self._set_options(each_step, dropout)
        hidden_size = _values.size("hidden_size", hidden_size)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        between = between_layers(num_layers, dropout)
        self.lstm = LSTM(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=between,
            **where,
        )
        self.linear = Linear(self.lstm._stack.width, _values.size("num_classes", num_classes), **where)

    def _set_options(self, each_step: bool, dropout: float) -> None:
        self.each_step = _values.flag("each_step", each_step)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _options(self) -> dict[str, Any]:
        return {"each_step": self.each_step, "dropout": self.dropout.p}

    def _fitting(self) -> dict[str, tuple[int, int]]:
        return {"linear": (self.linear.out_features, self.lstm._stack.width)}

    @property
    def _directions(self) -> int:
        return 2 if self.lstm.bidirectional else 1

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph: `xplstm.io.onnx.export` calls it.

        Parameters
        ----------
        graph : ModelGraph
        softmax : bool
            Give probabilities in the place of logits.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        y = graph.recur(graph.features("x"))
        logits = graph.linear(self.linear, y if self.each_step else graph.last())
        axes = ["T", "B"] if self.each_step else ["B"]
        graph.leave_logits(logits, [*axes, self.linear.out_features], softmax)

    def __call__(self, x: Array | Ragged, state: State = None) -> Array:
        """Give the logits of the classes.

        Parameters
        ----------
        x : array, shape (T, B, I) or (T, I), or Ragged
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array, shape (B, C) or (C,); with `each_step` (T, B, C) or (T, C)
            Of a row without steps, those of the initial state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `xplstm.LSTM`.
        """
        x, lengths = opened(x)
        y, state_n = self.lstm(x, state, lengths=lengths)
        return self.linear(y if self.each_step else self._last(state_n))

    def predict(self, x: Array | Ragged, state: State = None) -> Array:
        """Give the likeliest class.

        Parameters
        ----------
        x : array, shape (T, B, I) or (T, I), or Ragged
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array of integers, shape (B,) or (); with `each_step` (T, B) or (T,)
            In [0, C).

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> SequenceClassifier(3, 8, 4, rng=0).predict(np.ones((6, 2, 3), dtype="float32")).shape
        (2,)
        """
        logits = self(x, state)
        return _array.namespace(logits, "logits").argmax(logits, axis=-1)

    def loss(self, x: Array | Ragged, targets: Array, state: State = None) -> Array:
        """Mean of ``-log p(target)`` in nats, nothing dropped and nothing kept for gradients.

        Parameters
        ----------
        x : array, shape (T, B, I) or (T, I), or Ragged
        targets : array of integers, of the shape of the logits without its last axis
            In [0, C). With `each_step`, what stands past a row's length does not count.
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array, shape ()

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call, and as `xplstm.losses.softmax_cross_entropy`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> model = SequenceClassifier(3, 8, 4, rng=0)
        >>> loss = model.loss(np.ones((6, 2, 3), dtype="float32"), np.asarray([3, 0]))
        >>> 1.0 < float(loss) < 2.0
        True
        """
        return losses.softmax_cross_entropy(self(x, state), targets, mask=self._counting(x))[0]

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
        inputs : array, shape (T, B, I) or (T, I), or Ragged
        targets : array of integers
            As for `loss`.
        state : (h, c), optional
            Held constant.
        rng : int or numpy.random.Generator, optional
            Dropout is applied exactly when this is given.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            After each row's last step.
        pullback : callable
            ``pullback(factor=1.0)`` gives the gradients of ``factor * loss``, with the keys of `params`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `loss`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> model = SequenceClassifier(3, 8, 4, rng=0)
        >>> x, targets = np.ones((6, 2, 3), dtype="float32"), np.asarray([3, 0])
        >>> loss, state, pullback = model.loss_vjp(x, targets)
        >>> pullback().keys() == model.params.keys()
        True
        """
        rng = None if rng is None else _values.generator("rng", rng)
        x, lengths = opened(inputs)
        y, state_n, lstm_pullback = self.lstm.vjp(x, state, lengths=lengths, rng=rng)
        features = y if self.each_step else self._last(state_n)
        features, dropout_pullback = self.dropout.vjp(features, rng=rng)
        logits, linear_pullback = self.linear.vjp(features)
        loss, loss_pullback = losses.softmax_cross_entropy(logits, targets, mask=self._counting(inputs))

        def pullback(factor: float = 1.0) -> Params:
            dfeatures, dlinear = linear_pullback(loss_pullback(factor))
            dfeatures = dropout_pullback(dfeatures)
            dy, dstate_n = (
                (dfeatures, None) if self.each_step else (None, self._from_last(dfeatures, state_n))
            )
            _, _, dlstm = lstm_pullback(dy, dstate_n)
            return prefixed({"lstm": dlstm, "linear": dlinear})

        return loss, state_n, pullback

    def _counting(self, x: Array | Ragged) -> Array | None:
        """Which targets count: all of whole sequences, else those of steps that exist."""
        return existing(opened(x)) if self.each_step else None

    def _last(self, state: LSTMState) -> Array:
        """The last layer's h, (B, D*H), its directions side by side as in y."""
        xp = _array.namespace(state.h, "h_n")
        return xp.concat([state.h[d - self._directions, ...] for d in range(self._directions)], axis=-1)

    def _from_last(self, dlast: Array, state: LSTMState) -> LSTMState:
        """The gradient by the final state, from the one by `_last`."""
        xp, size = _array.namespace(dlast, "dlast"), state.h.shape[-1]
        own = xp.stack([dlast[..., d * size : (d + 1) * size] for d in range(self._directions)])
        below = xp.zeros_like(state.h[: -self._directions, ...])
        return LSTMState(xp.concat([below, own]), xp.zeros_like(state.c))
