"""Many to one: the class, labels or numbers of a whole sequence; or, step by step, of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models._composite import Composite, Params, State, between_layers, prefixed
from xplstm.models._pooling import POOLS, in_blocks
from xplstm.models._task import GAPS, Task, TaskName, check_features
from xplstm.models.batching import Ragged, cleared, count_existing, existing, opened
from xplstm.nn import LSTM, Dropout, Embedding, Linear, _blocks

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph

Pooling = Literal["last", "mean", "max"]


class _Reading(NamedTuple):
    """What the network reads: features or ids, and which steps there are."""

    x: Array
    lengths: Any
    mask: Array | None
    exists: Array | None
    """As `mask`, where it is asked for; None where all steps exist."""


class SequenceClassifier(Composite):
    """Stacked LSTM, linear: the class of a sequence of features, or of ids of tokens.

    Many to one: the linear layer reads what `pooling` makes of the outputs. With
    `each_step` many to many: it reads every output. Trained by
    `xplstm.training.fit`, whose `Model` it is.

    Parameters
    ----------
    input_size : int or None
        I, features of a step, at least 1. None for ids of tokens, with `vocab_size`.
    hidden_size : int
        At least 1.
    num_classes : int
        C, at least 1: classes, labels or numbers to predict.
    num_layers : int, optional
    vocab_size : int, optional
        V, at least 1: inputs are then ids in [0, V), which an `Embedding` looks up.
    embedding_dim : int, optional
        Features of the vector of each id; `hidden_size` if left out.
    padding_idx : int, optional
        An id of the vocabulary that fills up short sequences, wherever it is in them. Its steps do not
        exist: they change no state, and no pooling and no loss counts them.
    bidirectional : bool, optional
    pooling : {"last", "mean", "max"}, optional
        The final state of the last layer, of each direction its own; or the mean or the largest of its
        outputs over the steps that exist, which is 0 where there are none.
    task : {"multiclass", "multilabel", "regression"}, optional
        One class (softmax and cross-entropy); any number of labels (sigmoid and binary cross-entropy); or
        numbers (mean squared error).
    class_weights : sequence of C floats, optional
        At least 0. How much the loss of each class counts; of ``"multilabel"``, that of each label where it
        is present.
    label_smoothing : float, optional
        In [0, 1), for ``"multiclass"``: see `xplstm.losses.softmax_cross_entropy`.
    each_step : bool, optional
        Classify each step instead of the whole sequence.
    dropout : float, optional
        Probability, in [0, 1), to drop in training what each LSTM layer gives.
    xp, device, dtype : optional
        Where the parameters are made: as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Of the initial values.

    Attributes
    ----------
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``; setting it sets those of the layers.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError, BackendError
        Naming the argument, its value and the bound.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Ragged, SequenceClassifier
    >>> model = SequenceClassifier(3, 8, num_classes=4, bidirectional=True, rng=0)
    >>> x = np.ones((6, 2, 3), dtype="float32")
    >>> model(x).shape, model(Ragged(x, [6, 1])).shape
    ((2, 4), (2, 4))

    Ids of tokens, filled up with 0:

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
        input_size: int | None,
        hidden_size: int,
        num_classes: int,
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
        self.linear = Linear(self.lstm._stack.width, _values.size("num_classes", num_classes), **where)
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
        self.each_step = _values.flag("each_step", each_step)
        self.pooling = _values.one_of("pooling", pooling, ("last", *POOLS))
        if self.each_step and self.pooling != "last":
            msg = f"pooling={pooling!r} and each_step=True exclude each other: there is nothing to pool"
            raise ArgumentError(msg)
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

    def _fitting(self) -> dict[str, tuple[int, int]]:
        found = {"linear": (self.linear.out_features, self.lstm._stack.width)}
        if self.embedding is not None:
            found["embedding"] = (self.embedding.num_embeddings, self.lstm.input_size)
        return found

    @property
    def padding_idx(self) -> int | None:
        """The id that fills up short sequences; None where there is none."""
        return None if self.embedding is None else self.embedding.padding_idx

    @property
    def _directions(self) -> int:
        return 2 if self.lstm.bidirectional else 1

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph: `xplstm.io.onnx.export` calls it.

        Parameters
        ----------
        graph : ModelGraph
        softmax : bool
            Give probabilities in the place of logits: softmax of classes, sigmoid of labels.

        Raises
        ------
        ArgumentError
            With `softmax` for numbers, and with `padding_idx` for each step.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        if softmax and self.task.name == "regression":
            msg = "softmax=True needs a model with logits, got a SequenceClassifier of task='regression'"
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
        """Give the logits of the classes.

        Parameters
        ----------
        x : array, shape (T, B, I) or (T, I), or Ragged
            With `vocab_size` ids, shape (T, B) or (T,).
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array, shape (B, C) or (C,); with `each_step` (T, B, C) or (T, C)
            Of an entry without steps, those of the initial state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `xplstm.LSTM` and `xplstm.Embedding`.
        """
        return self._logits(self._reading(x), state)

    def _logits(self, reading: _Reading, state: State) -> Array:
        read = reading.x if self.embedding is None else self.embedding(reading.x)
        y, state_n = self.lstm(read, state, lengths=reading.lengths, mask=reading.mask)
        if self.pooling in POOLS and not self.each_step and _blocks.takes(y, self._home()):
            return self.linear(in_blocks(self.pooling, y, reading.exists))
        return self.linear(self._pooled(y, state_n, reading)[0])

    def _predicted(self, x: Array | Ragged, state: State) -> Array:
        """Return the logits of finite features: gates saturate, so that logits need not show an infinity."""
        reading = self._reading(x)
        if self.embedding is None and _blocks.is_dask(reading.x):
            checked = _blocks.finite(reading.x, existing(opened(x)), GAPS)
            return self._logits(reading._replace(x=checked), state)
        logits = self._logits(reading, state)  # which checks x
        if self.embedding is None and not _array.is_lazy(reading.x):
            _checks.finite("x", reading.x, GAPS, existing(opened(x)))
        return logits

    def predict(self, x: Array | Ragged, state: State = None) -> Array:
        """Return the likeliest class, the labels that are likelier than not, or the numbers.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array of integers, shape (B,) or (); with `each_step` (T, B) or (T,)
            In [0, C). For ``"multilabel"`` booleans, for ``"regression"`` floats, of the shape of the logits.

        Raises
        ------
        ArgumentError
            If a feature of a step that exists, or a logit, is not finite. Values on a device or under a trace
            are not read. Dask arrays have their logits checked when they are computed.
        ShapeError, DTypeError, BackendError
            As for a call.

        Examples
        --------
        >>> import numpy as np
        >>> from xplstm.models import SequenceClassifier
        >>> SequenceClassifier(3, 8, 4, rng=0).predict(np.ones((6, 2, 3), dtype="float32")).shape
        (2,)
        """
        return self.task.predict(self._predicted(x, state))

    def predict_proba(self, x: Array | Ragged, state: State = None) -> Array:
        """Give the probability of each class, which sum to 1; or of each label.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array, of the shape and dtype of the logits

        Raises
        ------
        ArgumentError
            For ``"regression"``, and for numbers that are not finite, as `predict`.
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
        return self.task.probabilities(self._predicted(x, state))

    def loss(self, x: Array | Ragged, targets: Array, state: State = None) -> Array:
        """Mean of the loss of the task, nothing dropped and nothing kept for gradients.

        For classes and labels ``-log p(target)`` in nats, with the weights and the smoothing of the model.

        Parameters
        ----------
        x : array or Ragged
            As for a call.
        targets : array of integers, of the shape of the logits without its last axis
            In [0, C). With `each_step`, steps that do not exist do not count. For ``"multilabel"`` of the
            shape of the logits, integers, booleans or floats in [0, 1]; for ``"regression"`` floats.
        state : (h, c), optional
            Where the reading begins; zeros if left out.

        Returns
        -------
        array, shape ()

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call, and as `xplstm.losses`.

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
        """Give the loss, and the function that gives its gradients.

        Parameters
        ----------
        inputs : array or Ragged
            As for a call.
        targets : array
            As for `loss`.
        state : (h, c), optional
            Held constant.
        rng : int or numpy.random.Generator, optional
            Dropout is applied exactly when this is given.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            After the last step of each entry.
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
        return self._weighted_vjp(inputs, targets, None, state, rng)

    def _weighted_vjp(
        self,
        inputs: Array | Ragged,
        targets: Array,
        weights: Array | None,
        state: State,
        rng: int | np.random.Generator | None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Return what `loss_vjp` does, of a mean in which each sequence has a weight."""
        rng = None if rng is None else _values.generator("rng", rng)
        reading, home = self._reading(inputs), self._home()
        read, embedding_pullback = reading.x, None
        if self.embedding is not None:
            read, embedding_pullback = self.embedding.vjp(reading.x)
        y, state_n, lstm_pullback = self.lstm.vjp(
            *(read, state),
            lengths=reading.lengths,
            mask=reading.mask,
            rng=rng,
            dx=self.embedding is not None,
        )
        features, pool_pullback = self._pooled(y, state_n, reading)
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
            return prefixed(grads)

        return loss, state_n, pullback

    def _count(self, inputs: Any, targets: Any) -> int:
        """Return how many elements the loss is the mean of; refuse a mean that class weights divide."""
        if self.task.name == "multiclass" and self.task.class_weights is not None:
            msg = "class_weights divide the mean loss by the weights of the targets, so that no number of "
            msg += "elements weights a part of the batch; train without parallel=, or without class_weights"
            raise ArgumentError(msg)
        if not self.each_step:
            return int(targets.shape[0]) if len(targets.shape) else 1
        reading = self._reading(inputs)
        return count_existing(reading.exists, tuple(reading.x.shape[: 2 if self.embedding is None else None]))

    def _reading(self, inputs: Array | Ragged) -> _Reading:
        """Return what the network reads of an argument; which steps exist only if that is asked for."""
        batch = opened(inputs)
        _array.namespace(batch.x, "x")
        if self.embedding is None:
            check_features("x", batch.x)
            asked = self.each_step or self.pooling != "last"
            return _Reading(batch.x, batch.lengths, None, existing(batch) if asked else None)
        if batch.x.ndim not in (1, 2):
            msg = f"x has shape {tuple(batch.x.shape)}, expected ids of tokens (T, B) or (T,)"
            raise ShapeError(msg)
        exists, padding = existing(batch), self.embedding.padding_idx
        ids = cleared(batch, "x")
        if padding is None:
            return _Reading(ids, batch.lengths, None, exists)
        filled: Any = batch.x != padding
        exists = filled if exists is None else exists & filled
        return _Reading(ids, None, exists, exists)

    def _pooled(
        self, y: Array, state: LSTMState, reading: _Reading
    ) -> tuple[Array, Callable[[Array], tuple[Array | None, LSTMState | None]]]:
        """Return what the linear layer reads, and the gradients of y and state of the one of that."""
        if self.each_step:
            return y, lambda dy: (dy, None)
        if self.pooling == "last":
            return self._last(state), lambda dlast: (None, self._from_last(dlast, state))
        pooled, pullback = POOLS[self.pooling](y, reading.exists)
        return pooled, lambda dpooled: (pullback(dpooled), None)

    def _last(self, state: LSTMState) -> Array:
        """Return the last layer's h, (B, D*H), its directions joined as in y."""
        if _blocks.takes(state.h, self._home()):
            axes = "kbf" if state.h.ndim == 3 else "kf"
            size = {"o": self._directions * state.h.shape[-1]}
            work = partial(_joined, self._directions)
            return _blocks.apply(work, axes[1:-1] + "o", size, state.h.dtype, (state.h, axes))
        return _joined(self._directions, state.h)

    def _from_last(self, dlast: Array, state: LSTMState) -> LSTMState:
        """Return the gradient with respect to the final state, from that of `_last`."""
        xp, size = _array.namespace(dlast, "dlast"), state.h.shape[-1]
        own = xp.stack([dlast[..., d * size : (d + 1) * size] for d in range(self._directions)])
        below = xp.zeros_like(state.h[: -self._directions, ...])
        return LSTMState(xp.concat([below, own]), xp.zeros_like(state.c))


def _joined(directions: int, h: Array) -> Array:
    """Return h of the directions of the last layer, side by side."""
    xp = _array.namespace(h, "h_n")
    return xp.concat([h[d - directions, ...] for d in range(directions)], axis=-1)


def _refuse_without_vocabulary(input_size: Any, embedding_dim: Any, padding_idx: Any) -> None:
    """Refuse arguments that need `vocab_size`."""
    given = {"embedding_dim": embedding_dim, "padding_idx": padding_idx}
    for name, value in given.items():
        if value is not None:
            msg = f"{name}={value!r} needs vocab_size=, the number of ids"
            raise ArgumentError(msg)
    if input_size is None:
        msg = "input_size=None needs vocab_size=, the number of ids; for features, input_size is their number"
        raise ArgumentError(msg)
