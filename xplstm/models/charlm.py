"""Many to many: a language model of characters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xplstm import _values, losses
from xplstm._errors import ArgumentError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models import _vocabulary, decoding
from xplstm.models._composite import Composite, Params, State, between_layers, prefixed
from xplstm.models.batching import count_existing
from xplstm.nn import LSTM, Dropout, Embedding, Linear

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph


class CharLM(Composite):
    """Embedding, stacked LSTM, linear: the probability of each next character.

    The source documents' CharLSTM, time-major. Trained by
    `xplstm.training.fit`, whose `Model` it is.

    Parameters
    ----------
    vocab : str or sequence of str
        The characters, each once; character number k has the id k.
    hidden_size : int
        Units of each layer, at least 1.
    num_layers : int, optional
    embedding_dim : int, optional
        `hidden_size` if left out, as in the documents.
    dropout : float, optional
        Probability, in [0, 1), to drop in training what each LSTM layer gives.
    xp, device, dtype : optional
        Where the parameters are made: as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Draws the initial values of the parameters.

    Attributes
    ----------
    vocab : tuple of str
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``; setting it sets those of the layers.

    Raises
    ------
    ArgumentError
        If `vocab` is empty or has a character twice; as `xplstm.LSTM` otherwise.

    Examples
    --------
    >>> from xplstm.models import CharLM
    >>> model = CharLM("abc", 8, rng=0)
    >>> logits, state = model(model.encode("abba"))
    >>> logits.shape
    (4, 3)
    >>> sorted(model.params)[:2]
    ['embedding.weight', 'linear.bias']
    """

    _parts = {"embedding": Embedding, "lstm": LSTM, "linear": Linear}  # noqa: RUF012

    def __init__(
        self,
        vocab: str | Sequence[str],
        hidden_size: int,
        num_layers: int = 2,
        *,
        embedding_dim: int | None = None,
        dropout: float = 0.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self._set_options(vocab, dropout)
        hidden_size = _values.size("hidden_size", hidden_size)
        width = hidden_size if embedding_dim is None else _values.size("embedding_dim", embedding_dim)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        self.embedding = Embedding(len(self.vocab), width, **where)
        self.lstm = LSTM(width, hidden_size, num_layers, dropout=between_layers(num_layers, dropout), **where)
        self.linear = Linear(hidden_size, len(self.vocab), **where)

    def _set_options(self, vocab: Iterable[str], dropout: float) -> None:
        self._ids = _vocabulary.numbered("vocab", vocab, characters=True)
        self.vocab = tuple(self._ids)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _options(self) -> dict[str, Any]:
        return {"vocab": list(self.vocab), "dropout": self.dropout.p}

    def _fitting(self) -> dict[str, tuple[int, int]]:
        count = len(self.vocab)
        return {"embedding": (count, self.lstm.input_size), "linear": (count, self.lstm._stack.width)}

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
        self._forward_only()
        y = graph.recur(graph.embed(self.embedding, graph.ids("ids")))
        graph.leave_logits(graph.linear(self.linear, y), ["T", "B", len(self.vocab)], softmax)

    def encode(self, text: str) -> Array:
        """Ids of the characters of `text`.

        Parameters
        ----------
        text : str

        Returns
        -------
        array of int64, shape (len(text),)
            Where the parameters are.

        Raises
        ------
        ArgumentError
            If a character is not in `vocab`.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> CharLM("abc", 8).encode("cab")
        array([2, 0, 1])
        """
        return self._here(_vocabulary.numbers(text, self._ids, "vocab"))

    def __call__(self, ids: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Give the logits of the character after each one.

        Parameters
        ----------
        ids : array of integers, shape (T, B) or (T,)
        state : (h, c), optional
            What the text before left; zeros if left out.

        Returns
        -------
        logits : array, shape (T, B, V) or (T, V)
        state : LSTMState
            State that the text left, from which the next call can continue.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `xplstm.Embedding` and `xplstm.LSTM`.
        """
        y, state = self._forward_only()(self.embedding(ids), state)
        return self.linear(y), state

    def loss(self, ids: Array, targets: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Mean of ``-log p(target)`` in nats, nothing dropped and nothing kept for gradients.

        Parameters
        ----------
        ids, targets : array of integers, shape (T, B) or (T,)
            Characters, and the one after each.
        state : (h, c), optional

        Returns
        -------
        loss : array, shape ()
        state : LSTMState

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As `xplstm.losses.softmax_cross_entropy`.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> model = CharLM("abc", 8, rng=0)
        >>> loss, state = model.loss(model.encode("abba"), model.encode("bbac"))
        >>> 0.8 < float(loss) < 1.5
        True
        """
        logits, state = self(ids, state)
        return losses.softmax_cross_entropy(logits, targets)[0], state

    def loss_vjp(
        self, ids: Array, targets: Array, state: State = None, rng: int | np.random.Generator | None = None
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Give the loss, and the function that gives its gradients.

        Parameters
        ----------
        ids, targets : array of integers, shape (T, B) or (T,)
            Characters, and the one after each.
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
        >>> from xplstm.models import CharLM
        >>> model = CharLM("abc", 8, rng=0)
        >>> loss, state, pullback = model.loss_vjp(model.encode("abba"), model.encode("bbac"), rng=1)
        >>> pullback().keys() == model.params.keys()
        True
        """
        rng = None if rng is None else _values.generator("rng", rng)
        x, embedding_pullback = self.embedding.vjp(ids)
        y, state, lstm_pullback = self._forward_only().vjp(x, state, rng=rng)
        y, dropout_pullback = self.dropout.vjp(y, rng=rng)
        logits, linear_pullback = self.linear.vjp(y)
        loss, loss_pullback = losses.softmax_cross_entropy(logits, targets)

        def pullback(factor: float = 1.0) -> Params:
            dy, dlinear = linear_pullback(loss_pullback(_values.finite("factor", factor)))
            dx, _, dlstm = lstm_pullback(dropout_pullback(dy))
            return prefixed({"embedding": embedding_pullback(dx), "lstm": dlstm, "linear": dlinear})

        return loss, state, pullback

    def _count(self, inputs: Any, targets: Any) -> int:  # noqa: ARG002
        """Return how many elements the loss is the mean of."""
        return count_existing(None, tuple(targets.shape))

    def generate(
        self,
        prompt: str,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> str:
        """Continue a text.

        Parameters
        ----------
        prompt : str
            At least one character. The first new character follows the last one.
        length : int
            Characters to write, at least 0.
        temperature : float, optional
            At least 0. Below 1, likely characters become more likely; 0 always takes the likeliest.
        top_k : int, optional
            Draw only from the k likeliest characters; at least 1.
        top_p : float, optional
            Draw from the fewest characters that together reach this probability; in (0, 1].
            `sample` describes how the three combine.
        rng : int or numpy.random.Generator, optional
            Seed or generator that draws the characters.

        Returns
        -------
        str
            `length` characters, without the prompt.

        Raises
        ------
        ArgumentError
            For an empty prompt, one with characters that `vocab` lacks, or a
            value outside its range.

        Examples
        --------
        >>> from xplstm.models import CharLM
        >>> len(CharLM("abc", 8, rng=0).generate("ab", 5, rng=1))
        5
        """
        prompt_ids = self.encode(prompt)
        if prompt_ids.shape[0] == 0:
            msg = "prompt='' must have at least 1 character"
            raise ArgumentError(msg)
        length = _values.size("length", length, 0)
        how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        decoding.check_sampling(**how)
        rng = _values.generator("rng", rng)
        lstm = self._forward_only().freeze()
        logits, state = self(prompt_ids)
        last, written = logits[-1, ...], ""
        for _ in range(length):
            written += self.vocab[int(decoding.sample(last, **how, rng=rng))]
            y, state = lstm.step(self.embedding(self.encode(written[-1]))[0, ...], state)
            last = self.linear(y)
        return written

    def _forward_only(self) -> LSTM:
        """Return the LSTM, which must not see the characters that are to be predicted."""
        if self.lstm.bidirectional or self.lstm.reverse or self.lstm.batch_first:
            msg = f"lstm={self.lstm!r} must have one direction, reverse=False and batch_first=False"
            raise ArgumentError(msg)
        return self.lstm
