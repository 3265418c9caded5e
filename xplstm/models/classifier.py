"""Predict the class, labels or numbers of a sequence (many to one) or of each step (many to many)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models._composite import Composite, Params, State, between_layers, hidden, join_prefixed
from xplstm.models._pooling import POOLS, in_blocks
from xplstm.models._task import GAPS, Task, TaskName, check_features
from xplstm.models.batching import Ragged, clear_padding, count_existing, existing, split_batch
from xplstm.nn import LSTM, Dropout, Embedding, Linear, _blocks

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph

Pooling = Literal["last", "mean", "max"]


class _Reading(NamedTuple):
    """Input of the network: features or ids, and the valid steps."""

    x: Array
    lengths: Any
    mask: Array | None
    exists: Array | None
    """Booleans (T, B) if pooling or the loss needs them; None if all steps are valid."""


class SequenceClassifier(Composite):
    """Classify sequences of features or token ids with a stacked LSTM and a linear layer.

    The linear layer reads the pooled outputs (many to one). With `each_step` it reads the output of every
    step (many to many). Train the model with `xplstm.training.fit`.

    Parameters
    ----------
    input_size : int or None
        I, features of a step, at least 1. None for token ids, with `vocab_size`.
    hidden_size : int
        Units of each layer, at least 1. Must be given, like `num_classes`.
    num_classes : int
        C, number of classes, labels or numbers to predict; at least 1.
    num_layers : int, optional
        Number of LSTM layers, at least 1.
    vocab_size : int, optional
        V, at least 1. Inputs are then ids in [0, V), and the first layer is an `Embedding`.
    embedding_dim : int, optional
        Features of the embedding, at least 1; `hidden_size` if omitted.
    padding_idx : int, optional
        Id of the padding token, in [0, V). Steps with this id are skipped at any position in a sequence. They
        do not change the state, and pooling and loss ignore them.
    bidirectional : bool, optional
        Whether a second direction reads each sequence from its end.
    pooling : {"last", "mean", "max"}, optional
        ``"last"`` reads the final state of the last layer in each direction. ``"mean"`` and ``"max"`` read
        the mean or maximum of its outputs over the valid steps, or 0 if there are none.
    task : {"multiclass", "multilabel", "regression"}, optional
        One class (softmax and cross-entropy), any number of labels (sigmoid and binary cross-entropy), or
        numbers (mean squared error).
    class_weights : sequence of C floats, optional
        Weights of the classes in the loss, at least 0. For ``"multilabel"``, weights of the positive labels.
    label_smoothing : float, optional
        In [0, 1), for ``"multiclass"``; see `xplstm.losses.softmax_cross_entropy`.
    each_step : bool, optional
        Whether to classify each step instead of the whole sequence.
    dropout : float, optional
        Dropout probability, in [0, 1), of the outputs of each LSTM layer in training.
    xp, device, dtype : optional
        Backend, device and dtype of the parameters, as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Seed or generator for the initialisation.

    Attributes
    ----------
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``. Setting it sets the parameters of the layers.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError, BackendError
        If an argument has the wrong type, shape, backend or value.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Ragged, SequenceClassifier
    >>> model = SequenceClassifier(3, 8, num_classes=4, bidirectional=True, rng=0)
    >>> x = np.ones((6, 2, 3), dtype="float32")
    >>> model(x).shape, model(Ragged(x, [6, 1])).shape
    ((2, 4), (2, 4))

    Token ids, padded with 0:

    >>> model = SequenceClassifier(None, 8, 2, vocab_size=100, padding_idx=0, pooling="mean", rng=0)
    >>> ids = np.asarray([[7, 9, 4, 0], [5, 0, 0, 0]]).T  # (T, B)
    >>> model.predict_proba(ids).shape
    (2, 2)
    """

    _parts = {"embedding": Embedding, "lstm": LSTM, "linear": Linear}  # noqa: RUF012
    _optional = frozenset({"embedding"})
    embedding: Embedding | None

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        num_classes: int | None = None,
        num_layers: int = 1,
        *,
        vocab_size: int | None = None,
        embedding_dim: int | None = None,
        padding_idx: int | None = None,
        bidirectional: bool = False,
        pooling: Pooling = "last",
        task: TaskName = "multiclass",
        class_weights: Sequence[float] | np.ndarray | None = None,
        label_smoothing: float = 0.0,
        each_step: bool = False,
        dropout: float = 0.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        _values.probability("dropout", dropout)
        hidden_size = _values.size("hidden_size", hidden_size)
        num_classes = _values.size("num_classes", num_classes)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        self.embedding = None
        if vocab_size is None:
            _refuse_without_vocabulary(input_size, embedding_dim, padding_idx)
        else:
            if input_size is not None:
                msg = (
                    f"input_size={input_size} must be None with vocab_size=; embedding_dim= sets the features"
                )
                raise ArgumentError(msg)
            input_size = hidden_size if embedding_dim is None else embedding_dim
            input_size = _values.size("embedding_dim", input_size)
            vocab_size = _values.size("vocab_size", vocab_size)
            self.embedding = Embedding(vocab_size, input_size, padding_idx=padding_idx, **where)
        self.lstm = LSTM(
            _values.size("input_size", input_size),
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=between_layers(num_layers, dropout),
            **where,
        )
        self.linear = Linear(self.lstm._stack.width, num_classes, **where)
        self._set_options(each_step, dropout, pooling, task, class_weights, label_smoothing)

    def _set_options(
        self,
        each_step: bool,
        dropout: float,
        pooling: str = "last",
        task: str = "multiclass",
        class_weights: Sequence[float] | np.ndarray | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self._each_step, self.pooling = _values.flag("each_step", each_step), pooling
        self.task = Task.of(task, class_weights, label_smoothing, self.linear.out_features)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _options(self) -> dict[str, Any]:
        weights = self.task.class_weights
        return {
            "each_step": self.each_step,
            "dropout": self.dropout.p,
            "pooling": self.pooling,
            "task": self.task.name,
            "class_weights": None if weights is None else list(weights),
            "label_smoothing": self.task.label_smoothing,
        }

    @property
    def each_step(self) -> bool:
        """Whether the model classifies each step instead of the whole sequence."""
        return self._each_step

    @property
    def pooling(self) -> str:
        """What the linear layer sees of the outputs: the last, their mean or maximum. May be set."""
        return self._pooling

    @pooling.setter
    def pooling(self, pooling: str) -> None:
        pooling = _values.one_of("pooling", pooling, ("last", *POOLS))
        if self.each_step and pooling != "last":
            msg = f"pooling={pooling!r} cannot be combined with each_step=True"
            raise ArgumentError(msg)
        self._pooling = pooling

    def _fitting(self) -> dict[str, tuple[int, int]]:
        sizes = {"linear": (self.linear.out_features, self.lstm._stack.width)}
        if self.embedding is not None:
            sizes["embedding"] = (self.embedding.num_embeddings, self.lstm.input_size)
        return sizes

    @property
    def padding_idx(self) -> int | None:
        """Id of the padding token, or None."""
        return None if self.embedding is None else self.embedding.padding_idx

    @property
    def targets_axis(self) -> int:
        """Batch axis of targets with two or more axes: 0 for the targets (B, C) of whole sequences."""
        return self.batch_axis if self.each_step else 0

    @property
    def _directions(self) -> int:
        return 2 if self.lstm.bidirectional else 1

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph; `xplstm.io.onnx.export` calls this method.

        Parameters
        ----------
        graph : ModelGraph
            Graph to add to.
        softmax : bool
            Whether the output is probabilities instead of logits: softmax of classes, sigmoid of labels.

        Raises
        ------
        ArgumentError
            If `softmax` is True for a regression, or a model with `each_step` has `padding_idx`.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        if softmax and self.task.name == "regression":
            msg = "softmax=True needs a model with logits, got a SequenceClassifier with task='regression'"
            raise ArgumentError(msg)
        if self.each_step and self.padding_idx is not None:
            msg = "a SequenceClassifier with each_step=True and padding_idx= has no ONNX graph; use lengths"
            raise ArgumentError(msg)
        if self.embedding is None:
            y = graph.recur(graph.features("x"))
        else:
            y = graph.recur_on_ids(self.embedding, "ids")
        if not self.each_step:
            y = graph.last() if self.pooling == "last" else graph.pool(self.pooling, y)
        axes = ["T", "B"] if self.each_step else ["B"]
        shape = [*axes, self.linear.out_features]
        link = "Sigmoid" if self.task.name == "multilabel" else "Softmax"
        graph.leave_logits(graph.linear(self.linear, y), shape, softmax, link)

    def __call__(self, x: Array | Ragged, state: State = None) -> Array:
        """Return the logits.

        Parameters
        ----------
        x : array, shape (T, B, I) or (T, I), or Ragged
            Features. With `vocab_size`, ids of shape (T, B) or (T,).
        state : (h, c), optional
            Initial state; zeros if omitted.

        Returns
        -------
        array, shape (B, C) or (C,); with `each_step` (T, B, C) or (T, C)
            Logits. An entry without steps has the logits of the initial state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `xplstm.LSTM` and `xplstm.Embedding`.
        """
        return self._logits(self._reading(x), state)

    def _logits(self, reading: _Reading, state: State) -> Array:
        read = reading.x if self.embedding is None else self.embedding(reading.x)
        y, state_n = self._network("lstm", causal=False)(
            read, state, lengths=reading.lengths, mask=reading.mask
        )
        if self.pooling in POOLS and not self.each_step and _blocks.takes(y, self._home()):
            return self.linear(in_blocks(self.pooling, y, reading.exists))
        return self.linear(self._pool(y, state_n, reading)[0])

    def _compute_logits(self, x: Array | Ragged, state: State) -> Array:
        """Return the logits, and check that features are finite; saturated gates would hide an infinity."""
        reading = self._reading(x)
        if self.embedding is None and _blocks.is_dask(reading.x):
            checked = _blocks.finite(reading.x, existing(split_batch(x)), GAPS)
            return self._logits(reading._replace(x=checked), state)
        logits = self._logits(reading, state)  # which checks x
        if self.embedding is None and not _array.is_lazy(reading.x):
            _checks.finite("x", reading.x, GAPS, existing(split_batch(x)))
        return logits

    def predict(self, x: Array | Ragged, state: State = None) -> Array:
        """Return the most probable class, the labels with a probability above 0.5, or the numbers.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        state : (h, c), optional
            Initial state; zeros if omitted.

        Returns
        -------
        array of integers, shape (B,) or (); with `each_step` (T, B) or (T,)
            Classes in [0, C). For ``"multilabel"`` booleans and for ``"regression"`` floats, both with the
            shape of the logits. An entry without steps has the prediction of the initial state.

        Raises
        ------
        ArgumentError
            If a feature of a valid step, or a logit, is not finite. Values on a device or under a trace
            are not checked. For Dask arrays, the logits are checked when they are computed.
        ShapeError, DTypeError, BackendError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> SequenceClassifier(3, 8, 4, rng=0).predict(np.ones((6, 2, 3), dtype="float32")).shape
        (2,)
        """
        return self.task.predict(self._compute_logits(x, state))

    def predict_proba(self, x: Array | Ragged, state: State = None) -> Array:
        """Return the probability of each class or label; those of classes sum to 1.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        state : (h, c), optional
            Initial state; zeros if omitted.

        Returns
        -------
        array, with the shape and dtype of the logits
            Probabilities in [0, 1].

        Raises
        ------
        ArgumentError
            If the task is ``"regression"``, or a feature or logit is not finite, as for `predict`.
        ShapeError, DTypeError, BackendError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> p = SequenceClassifier(3, 8, 4, rng=0).predict_proba(np.ones((6, 2, 3), dtype="float32"))
        >>> p.shape, np.allclose(p.sum(axis=-1), 1)
        ((2, 4), True)
        """
        return self.task.probabilities(self._compute_logits(x, state))

    def loss(self, x: Array | Ragged, targets: Array, state: State = None) -> Array:
        """Return the mean loss of the task, without dropout and residuals.

        For classes and labels, the loss is ``-log p(target)`` in nats, with `class_weights` and
        `label_smoothing`.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        targets : array of integers, with the shape of the logits without the last axis
            Classes in [0, C). With `each_step`, the loss ignores padded and masked steps. For
            ``"multilabel"``, integers, booleans or floats in [0, 1] with the shape of the logits. For
            ``"regression"``, floats with the shape of the logits.
        state : (h, c), optional
            Initial state; zeros if omitted.

        Returns
        -------
        array, shape ()
            Mean loss. An entry without steps counts with the logits of the initial state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call and for `xplstm.losses`.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> model = SequenceClassifier(3, 8, 4, rng=0)
        >>> loss = model.loss(np.ones((6, 2, 3), dtype="float32"), np.asarray([3, 0]))
        >>> 1.0 < float(loss) < 2.0
        True
        """
        mask = self._reading(x).exists if self.each_step else None
        return self.task.loss(self._home(), self(x, state), targets, mask)[0]

    def loss_vjp(
        self,
        inputs: Array | Ragged,
        targets: Array,
        state: State = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Return the loss, the final state, and the function that returns the gradients.

        Parameters
        ----------
        inputs : array or Ragged
            As for a call.
        targets : array
            As for `loss`.
        state : (h, c), optional
            Initial state; zeros if omitted. No gradient with respect to the state is computed.
        rng : int or numpy.random.Generator, optional
            Seed or generator for dropout; no dropout if omitted.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            State after the last step of each entry.
        pullback : callable
            ``pullback(factor=1.0)`` returns the gradients of ``factor * loss``, with the keys of `params`.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `loss`.

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
        return self._weighted_vjp(inputs, targets, None, state, rng)

    def _weighted_vjp(
        self,
        inputs: Array | Ragged,
        targets: Array,
        weights: Array | None,
        state: State,
        rng: int | np.random.Generator | None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Return the results of `loss_vjp` for a mean with a weight for each sequence."""
        rng = None if rng is None else _values.generator("rng", rng)
        reading, home = self._reading(inputs), self._home()
        read, embedding_pullback = reading.x, None
        if self.embedding is not None:
            read, embedding_pullback = self.embedding.vjp(reading.x)
        y, state_n, lstm_pullback = self._network("lstm", causal=False).vjp(
            *(read, state),
            lengths=reading.lengths,
            mask=reading.mask,
            rng=rng,
            dx=self.embedding is not None,
        )
        features, pool_pullback = self._pool(y, state_n, reading)
        features, dropout_pullback = self.dropout.vjp(features, rng=rng)
        logits, linear_pullback = self.linear.vjp(features)
        counting = reading.exists if self.each_step else None
        loss, loss_pullback = self.task.loss(home, logits, targets, counting, weights)

        def pullback(factor: float = 1.0) -> Params:
            dfeatures, dlinear = linear_pullback(loss_pullback(_values.finite("factor", factor)))
            dx, _, dlstm = lstm_pullback(*pool_pullback(dropout_pullback(dfeatures)))
            grads = {"lstm": dlstm, "linear": dlinear}
            if embedding_pullback is not None:
                grads = {"embedding": embedding_pullback(dx)} | grads
            return join_prefixed(grads)

        return loss, state_n, pullback

    def _count(self, inputs: Any, targets: Any) -> int:
        """Return the number of elements over which the loss is averaged; not defined for class weights."""
        if self.task.name == "multiclass" and self.task.class_weights is not None:
            msg = "class_weights do not allow a count: the loss is divided by the weights of the targets; "
            msg += "train without parallel=, or without class_weights"
            raise ArgumentError(msg)
        if not self.each_step:
            _array.namespace(targets, "targets")
            return int(targets.shape[0]) if len(targets.shape) else 1
        reading = self._reading(inputs)
        return count_existing(reading.exists, tuple(reading.x.shape[: 2 if self.embedding is None else None]))

    def _reading(self, inputs: Array | Ragged) -> _Reading:
        """Return the network input from an argument, with `exists` only if pooling or the loss needs it."""
        batch = split_batch(inputs)
        _array.namespace(batch.x, "x")
        if self.embedding is None:
            check_features("x", batch.x)
            needs_steps = self.each_step or self.pooling != "last"
            return _Reading(batch.x, batch.lengths, None, existing(batch) if needs_steps else None)
        if batch.x.ndim not in (1, 2):
            msg = f"x has shape {tuple(batch.x.shape)}, expected ids of tokens (T, B) or (T,)"
            raise ShapeError(msg)
        exists, padding = existing(batch), self.embedding.padding_idx
        ids = clear_padding(batch, "x")
        if padding is None:
            return _Reading(ids, batch.lengths, None, exists)
        filled: Any = batch.x != padding
        exists = filled if exists is None else exists & filled
        return _Reading(ids, None, exists, exists)

    def _pool(
        self, y: Array, state: Any, reading: _Reading
    ) -> tuple[Array, Callable[[Array], tuple[Array | None, Any]]]:
        """Return the input of the linear layer, and the pullback from it to y and the final state."""
        if self.each_step:
            return y, lambda dy: (dy, None)
        if self.pooling == "last":
            return self._last(hidden(state)), lambda dlast: (None, self._from_last(dlast, state))
        pooled, pullback = POOLS[self.pooling](y, reading.exists)
        return pooled, lambda dpooled: (pullback(dpooled), None)

    def _last(self, h: Array) -> Array:
        """Return h of the last layer, (B, D*H), with the directions joined as in y."""
        if _blocks.takes(h, self._home()):
            axes = "kbf" if h.ndim == 3 else "kf"
            size = {"o": self._directions * h.shape[-1]}
            work = partial(_join_directions, self._directions)
            return _blocks.apply(work, axes[1:-1] + "o", size, h.dtype, (h, axes))
        return _join_directions(self._directions, h)

    def _from_last(self, dlast: Array, state: Any) -> Any:
        """Return the gradient with respect to the final state from the gradient of `_last`."""
        xp, h = _array.namespace(dlast, "dlast"), hidden(state)
        size = h.shape[-1]
        own = xp.stack([dlast[..., d * size : (d + 1) * size] for d in range(self._directions)])
        dh = xp.concat([xp.zeros_like(h[: -self._directions, ...]), own])
        return LSTMState(dh, xp.zeros_like(state.c)) if isinstance(state, LSTMState) else dh


def _join_directions(directions: int, h: Array) -> Array:
    """Concatenate h of the directions of the last layer."""
    xp = _array.namespace(h, "h_n")
    return xp.concat([h[d - directions, ...] for d in range(directions)], axis=-1)


def _refuse_without_vocabulary(input_size: Any, embedding_dim: Any, padding_idx: Any) -> None:
    """Check that no argument needs `vocab_size`."""
    given = {"embedding_dim": embedding_dim, "padding_idx": padding_idx}
    for name, value in given.items():
        if value is not None:
            msg = f"{name}={value!r} needs vocab_size=, the number of ids"
            raise ArgumentError(msg)
    if input_size is None:
        msg = "input_size=None needs vocab_size=, the number of ids; for features pass their number"
        raise ArgumentError(msg)
