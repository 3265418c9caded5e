"""Character language model (many to many)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xplstm import _array, _values, losses
from xplstm._errors import ArgumentError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models import _vocabulary, decoding
from xplstm.models._composite import Composite, Params, State, between_layers, join_prefixed
from xplstm.models.batching import count_existing
from xplstm.nn import LSTM, Dropout, Embedding, Linear

if TYPE_CHECKING:
    from xplstm.io.onnx._whole import ModelGraph


class CharLM(Composite):
    """Predict each next character with an embedding, a stacked LSTM and a linear layer.

    Arrays are time-major. Train the model with `xplstm.training.fit`.

    Parameters
    ----------
    vocab : str or sequence of str
        The characters, each once. The id of a character is its index.
    hidden_size : int
        Units of each layer, at least 1.
    num_layers : int, optional
        Number of LSTM layers, at least 1.
    embedding_dim : int, optional
        Features of the embedding, at least 1; `hidden_size` if omitted.
    dropout : float, optional
        Dropout probability, in [0, 1), of the outputs of each LSTM layer in training.
    xp, device, dtype : optional
        Backend, device and dtype of the parameters, as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Seed or generator for the initialisation.

    Attributes
    ----------
    vocab : tuple of str
        The characters.
    params : dict of str to array
        All parameters, such as ``lstm.weight_ih_l0``. Setting it sets the parameters of the layers.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If `vocab` is empty or has a character twice, and as for `xplstm.LSTM`.

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
        self._ids = _vocabulary.number_tokens("vocab", vocab, characters=True)
        self.vocab = tuple(self._ids)
        self.dropout = Dropout(_values.probability("dropout", dropout))

    def _options(self) -> dict[str, Any]:
        return {"vocab": list(self.vocab), "dropout": self.dropout.p}

    def _fitting(self) -> dict[str, tuple[int, int]]:
        count = len(self.vocab)
        return {"embedding": (count, self.lstm.input_size), "linear": (count, self.lstm._stack.width)}

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model to an ONNX graph; `xplstm.io.onnx.export` calls this method.

        Parameters
        ----------
        graph : ModelGraph
            Graph to add to.
        softmax : bool
            Whether the output is probabilities instead of logits.

        Examples
        --------
        See `xplstm.io.onnx.export`.
        """
        self._network("lstm")
        y = graph.recur(graph.embed(self.embedding, graph.ids("ids")))
        graph.leave_logits(graph.linear(self.linear, y), ["T", "B", len(self.vocab)], softmax)

    def encode(self, text: str) -> Array:
        """Return the ids of the characters of `text`.

        Parameters
        ----------
        text : str
            Characters of `vocab`.

        Returns
        -------
        array of int64, shape (len(text),)
            Ids on the device of the parameters.

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
        return self._to_device(_vocabulary.numbers(text, self._ids, "vocab"))

    def __call__(self, ids: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Return the logits of the next character after each character.

        Parameters
        ----------
        ids : array of integers, shape (T, B) or (T,)
            Ids of characters, in [0, V).
        state : (h, c), optional
            Final state of the text before; zeros if omitted.

        Returns
        -------
        logits : array, shape (T, B, V) or (T, V)
            Logits of the next character.
        state : LSTMState
            Final state, from which the next call can continue.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `xplstm.Embedding` and `xplstm.LSTM`.
        """
        y, state = self._network("lstm")(self.embedding(ids), state)
        return self.linear(y), state

    def loss(self, ids: Array, targets: Array, state: State = None) -> tuple[Array, LSTMState]:
        """Return the mean of ``-log p(target)`` in nats, without dropout and residuals.

        Parameters
        ----------
        ids, targets : array of integers, shape (T, B) or (T,)
            Ids of characters, and ids of the next characters.
        state : (h, c), optional
            Final state of the text before; zeros if omitted.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            Final state.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call and for `xplstm.losses.softmax_cross_entropy`.

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
        """Return the loss, the final state, and the function that returns the gradients.

        Parameters
        ----------
        ids, targets : array of integers, shape (T, B) or (T,)
            Ids of characters, and ids of the next characters.
        state : (h, c), optional
            Final state of the text before; zeros if omitted. Backpropagation is truncated here.
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
        >>> from xplstm.models import CharLM
        >>> model = CharLM("abc", 8, rng=0)
        >>> loss, state, pullback = model.loss_vjp(model.encode("abba"), model.encode("bbac"), rng=1)
        >>> pullback().keys() == model.params.keys()
        True
        """
        rng = None if rng is None else _values.generator("rng", rng)
        x, embedding_pullback = self.embedding.vjp(ids)
        y, state, lstm_pullback = self._network("lstm").vjp(x, state, rng=rng)
        y, dropout_pullback = self.dropout.vjp(y, rng=rng)
        logits, linear_pullback = self.linear.vjp(y)
        loss, loss_pullback = losses.softmax_cross_entropy(logits, targets)

        def pullback(factor: float = 1.0) -> Params:
            dy, dlinear = linear_pullback(loss_pullback(_values.finite("factor", factor)))
            dx, _, dlstm = lstm_pullback(dropout_pullback(dy))
            return join_prefixed({"embedding": embedding_pullback(dx), "lstm": dlstm, "linear": dlinear})

        return loss, state, pullback

    def _count(self, inputs: Any, targets: Any) -> int:  # noqa: ARG002
        """Return the number of elements over which the loss is averaged."""
        _array.namespace(targets, "targets")
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
        """Continue a text with sampled characters.

        Parameters
        ----------
        prompt : str
            Text to continue, at least one character.
        length : int
            Number of characters to sample, at least 0.
        temperature : float, optional
            Divisor of the logits, at least 0. Below 1, probable characters become more probable; 0 always
            selects the most probable character.
        top_k : int, optional
            Sample only from the k most probable characters; at least 1.
        top_p : float, optional
            Sample from the fewest characters whose total probability reaches this value, in (0, 1].
            `probabilities` describes how the three options combine.
        rng : int or numpy.random.Generator, optional
            Seed or generator that draws the characters.

        Returns
        -------
        str
            `length` characters, without the prompt.

        Raises
        ------
        ArgumentError
            If the prompt is empty or has characters that are not in `vocab`, or a value is outside its range.

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
        lstm = self._network("lstm").freeze()
        logits, state = self(prompt_ids)
        last, written = logits[-1, ...], ""
        for _ in range(length):
            written += self.vocab[int(decoding.sample(last, **how, rng=rng))]
            y, state = lstm.step(self.embedding(self.encode(written[-1]))[0, ...], state)
            last = self.linear(y)
        return written
