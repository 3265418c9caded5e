"""Encoder-decoder model: map one sequence to another of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xplstm import _array, _values, losses
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array, Device, FloatDType, Namespace
from xplstm.models import _vocabulary, decoding
from xplstm.models._composite import Composite, Params, State, between_layers, hidden, join_prefixed
from xplstm.models.batching import Ragged, clear_padding, count_existing, existing, pad, split_batch
from xplstm.models.decoding import Hypothesis
from xplstm.nn import LSTM, Dropout, Embedding, Linear, _blocks


class Seq2Seq(Composite):
    """Map one sequence to another with an encoder and a decoder, each an embedding and a stacked LSTM.

    The final state of the encoder is the initial state of the decoder (Sutskever, Vinyals and Le, 2014). The
    decoder starts with the end token and then reads its own tokens. At each step it returns the logits of the
    next token. Train the model with `xplstm.training.fit`.

    Parameters
    ----------
    source_vocab, target_vocab : str or sequence of str
        The tokens, each once. The id of a token is its index. The end token is not part of a vocabulary.
    hidden_size : int
        Units of each layer, at least 1.
    num_layers : int, optional
        Number of layers of the encoder and of the decoder, at least 1.
    embedding_dim : int, optional
        Features of the embeddings, at least 1; `hidden_size` if omitted.
    dropout : float, optional
        Dropout probability, in [0, 1), in training. It applies between the layers of the encoder, and to the
        outputs of each layer of the decoder.
    teacher_forcing : float, optional
        Probability, in [0, 1], that the decoder reads the target token at a step of training instead of its
        own most probable token (Bengio et al., 2015). It can be set between updates.
    xp, device, dtype : optional
        Backend, device and dtype of the parameters, as for `xplstm.LSTM`.
    rng : int or numpy.random.Generator, optional
        Seed or generator for the initialisation.

    Attributes
    ----------
    source_vocab, target_vocab : tuple of str
        The tokens.
    end : int
        Id of the end token, ``len(target_vocab)``.
    params : dict of str to array
        All parameters, such as ``encoder.weight_ih_l0``. Setting it sets the parameters of the layers.

    Raises
    ------
    ArgumentError, DTypeError, BackendError
        If a vocabulary is empty or has a token twice, or `teacher_forcing` is outside its range, and as for
        `xplstm.LSTM`.

    Examples
    --------
    >>> from xplstm.models import Seq2Seq
    >>> model = Seq2Seq("0123456789", "abc", 8, rng=0)
    >>> source, target = model.batch(["12", "345"], ["ab", "c"])
    >>> logits, state = model(source, target)
    >>> logits.shape  # the longest target has 2 tokens and its end, and there are 3 tokens and the end
    (3, 2, 4)
    >>> len(model.translate(["12", "345"], max_length=5, width=3))
    2
    """

    _parts = {  # noqa: RUF012
        "encoder_embedding": Embedding,
        "encoder": LSTM,
        "decoder_embedding": Embedding,
        "decoder": LSTM,
        "linear": Linear,
    }

    def __init__(
        self,
        source_vocab: str | Sequence[str],
        target_vocab: str | Sequence[str],
        hidden_size: int,
        num_layers: int = 1,
        *,
        embedding_dim: int | None = None,
        dropout: float = 0.0,
        teacher_forcing: float = 1.0,
        xp: str | Namespace | None = None,
        device: Device | None = None,
        dtype: FloatDType | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self._set_options(source_vocab, target_vocab, dropout, teacher_forcing)
        hidden_size = _values.size("hidden_size", hidden_size)
        width = hidden_size if embedding_dim is None else _values.size("embedding_dim", embedding_dim)
        rng = _values.generator("rng", rng)
        where: dict[str, Any] = {"xp": xp, "device": device, "dtype": dtype, "rng": rng}
        self.encoder_embedding = Embedding(len(self.source_vocab), width, **where)
        self.encoder = LSTM(
            width, hidden_size, num_layers, dropout=between_layers(num_layers, dropout), **where
        )
        self.decoder_embedding = Embedding(self.end + 1, width, **where)
        self.decoder = LSTM(
            width, hidden_size, num_layers, dropout=between_layers(num_layers, dropout), **where
        )
        self.linear = Linear(hidden_size, self.end + 1, **where)

    def _set_options(
        self, source_vocab: Iterable[str], target_vocab: Iterable[str], dropout: float, teacher_forcing: float
    ) -> None:
        self._source_ids = _vocabulary.number_tokens("source_vocab", source_vocab)
        self._target_ids = _vocabulary.number_tokens("target_vocab", target_vocab)
        self.source_vocab, self.target_vocab = tuple(self._source_ids), tuple(self._target_ids)
        self.end = len(self.target_vocab)
        self.dropout = Dropout(_values.probability("dropout", dropout))
        self.teacher_forcing = teacher_forcing

    def _options(self) -> dict[str, Any]:
        return {
            "source_vocab": list(self.source_vocab),
            "target_vocab": list(self.target_vocab),
            "dropout": self.dropout.p,
            "teacher_forcing": self.teacher_forcing,
        }

    def _fitting(self) -> dict[str, tuple[int, int]]:
        return {
            "encoder_embedding": (len(self.source_vocab), self.encoder.input_size),
            "decoder_embedding": (self.end + 1, self.decoder.input_size),
            "linear": (self.end + 1, self.decoder._stack.width),
        }

    @property
    def teacher_forcing(self) -> float:
        """Probability that the decoder reads the target token at a step of training."""
        return self._teacher_forcing

    @teacher_forcing.setter
    def teacher_forcing(self, value: float) -> None:
        number = _values.finite("teacher_forcing", value)
        if not 0 <= number <= 1:
            msg = f"teacher_forcing={value} must be in [0, 1]"
            raise ArgumentError(msg)
        self._teacher_forcing = number

    def encode(self, text: str | Sequence[str]) -> Array:
        """Return the ids of the tokens of a source.

        Parameters
        ----------
        text : str or sequence of str
            Tokens of `source_vocab`.

        Returns
        -------
        array of int64, shape (len(text),)
            Ids on the device of the parameters.

        Raises
        ------
        ArgumentError
            If a token is not in `source_vocab`.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> Seq2Seq("abc", "xy", 8).encode("cab")
        array([2, 0, 1])
        """
        return self._to_device(_vocabulary.numbers(text, self._source_ids, "source_vocab"))

    def encode_target(self, text: str | Sequence[str]) -> Array:
        """Return the ids of the tokens of a target, followed by the end token.

        Parameters
        ----------
        text : str or sequence of str
            Tokens of `target_vocab`.

        Returns
        -------
        array of int64, shape (len(text) + 1,)
            Ids on the device of the parameters.

        Raises
        ------
        ArgumentError
            If a token is not in `target_vocab`.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> Seq2Seq("abc", "xy", 8).encode_target("yx")
        array([1, 0, 2])
        """
        ids = _vocabulary.numbers(text, self._target_ids, "target_vocab")
        return self._to_device(np.append(ids, self.end))

    def batch(
        self, sources: Sequence[str | Sequence[str]], targets: Sequence[str | Sequence[str]]
    ) -> tuple[Ragged, Ragged]:
        """Create a batch of texts for `loss_vjp` and `xplstm.training.fit`.

        Parameters
        ----------
        sources, targets : sequence of texts
            Equal numbers of texts, at least 1. A text is a str or a sequence of tokens.

        Returns
        -------
        source : Ragged
            Ids of the sources.
        target : Ragged
            Ids of the targets, with end tokens.

        Raises
        ------
        ArgumentError
            If the numbers differ or are 0, or a token is unknown.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> source, target = Seq2Seq("abc", "xy", 8).batch(["ab", "c"], ["", "yx"])
        >>> target.x.T.tolist(), target.lengths.tolist()
        ([[2, 0, 0], [1, 0, 2]], [1, 3])
        """
        for name, texts in (("sources", sources), ("targets", targets)):
            _check_texts(name, texts, 0)
        if len(sources) != len(targets):
            msg = f"sources has {len(sources)} texts, but targets has {len(targets)}; pass equal numbers"
            raise ArgumentError(msg)
        _check_texts("sources", sources, 1)
        return pad([self.encode(s) for s in sources]), pad([self.encode_target(t) for t in targets])

    def __call__(
        self, source: Array | Ragged, target: Array | Ragged, state: State = None
    ) -> tuple[Array, LSTMState]:
        """Return the logits of each target token from the source and the earlier target tokens.

        Parameters
        ----------
        source : array of integers, shape (S, B) or (S,), or Ragged
            Ids of the sources.
        target : array of integers, shape (U, B) or (U,), or Ragged
            Ids of the targets, with end tokens.
        state : (h, c), optional
            Initial state of the encoder; zeros if omitted.

        Returns
        -------
        logits : array, shape (U, B, V + 1) or (U, V + 1)
            Logits of the target tokens and the end token.
        state : LSTMState
            Final state of the encoder.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for `xplstm.Embedding` and `xplstm.LSTM`.
        """
        _check_pair(source, target)
        between = self._read(source, state)
        y, _ = self._network("decoder")(self.decoder_embedding(self._force(target)), between)
        return self.linear(y), between

    def loss(
        self, source: Array | Ragged, target: Array | Ragged, state: State = None
    ) -> tuple[Array, LSTMState]:
        """Return the mean of ``-log p(token | source, earlier tokens)`` over the target tokens, in nats.

        The method applies no dropout and keeps no residuals.

        Parameters
        ----------
        source, target : array of integers, or Ragged
            As for a call.
        state : (h, c), optional
            Initial state of the encoder; zeros if omitted.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            Final state of the encoder.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> model = Seq2Seq("abc", "xy", 8, rng=0)
        >>> loss, state = model.loss(*model.batch(["ab", "c"], ["", "yx"]))
        >>> 0.5 < float(loss) < 2
        True
        """
        logits, between = self(source, target, state)
        opened_target = split_batch(target)
        return losses.softmax_cross_entropy(logits, opened_target.x, mask=existing(opened_target, "target"))[
            0
        ], between

    def loss_vjp(
        self,
        inputs: Array | Ragged,
        targets: Array | Ragged,
        state: State = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, LSTMState, Callable[..., Params]]:
        """Return the loss, the final state of the encoder, and the function that returns the gradients.

        A token that the decoder reads from itself is its most probable token without dropout. Such tokens are
        constants for the gradients.

        Parameters
        ----------
        inputs, targets : array of integers, or Ragged
            Source and target, as for a call.
        state : (h, c), optional
            Initial state of the encoder; zeros if omitted. No gradient with respect to the state is
            computed.
        rng : int or numpy.random.Generator, optional
            Seed or generator for dropout and teacher forcing; no dropout if omitted. A `teacher_forcing`
            between 0 and 1 needs `rng`.

        Returns
        -------
        loss : array, shape ()
        state : LSTMState
            Final state of the encoder.
        pullback : callable
            ``pullback(factor=1.0)`` returns the gradients of ``factor * loss``, with the keys of `params`.

        Raises
        ------
        ArgumentError
            If `teacher_forcing` needs `rng`.
        ShapeError, DTypeError, BackendError
            As for a call.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> model = Seq2Seq("abc", "xy", 8, teacher_forcing=0.5, rng=0)
        >>> loss, state, pullback = model.loss_vjp(*model.batch(["ab", "c"], ["", "yx"]), rng=1)
        >>> pullback().keys() == model.params.keys()
        True
        """
        rng = None if rng is None else _values.generator("rng", rng)
        source, target = _check_pair(inputs, targets)
        x, source_pullback = self.encoder_embedding.vjp(clear_padding(source, "source"))
        _, between, encoder_pullback = self._network("encoder", causal=False).vjp(
            x, state, lengths=source.lengths, rng=rng
        )
        read = self._force(target) if self.teacher_forcing == 1 else self._mix(target, between, rng)
        x, target_pullback = self.decoder_embedding.vjp(read)
        y, _, decoder_pullback = self._network("decoder").vjp(x, between, rng=rng)
        y, dropout_pullback = self.dropout.vjp(y, rng=rng)
        logits, linear_pullback = self.linear.vjp(y)
        loss, loss_pullback = losses.softmax_cross_entropy(logits, target.x, mask=existing(target, "target"))

        def pullback(factor: float = 1.0) -> Params:
            dy, dlinear = linear_pullback(loss_pullback(_values.finite("factor", factor)))
            dx, dbetween, ddecoder = decoder_pullback(dropout_pullback(dy))
            dx_source, _, dencoder = encoder_pullback(None, dbetween)
            grads = (source_pullback(dx_source), dencoder, target_pullback(dx), ddecoder, dlinear)
            return join_prefixed(dict(zip(self._parts, grads, strict=True)))

        return loss, between, pullback

    def _count(self, inputs: Any, targets: Any) -> int:  # noqa: ARG002
        """Return the number of elements over which the loss is averaged."""
        target = split_batch(targets)
        _array.namespace(target.x, "targets")
        return count_existing(existing(target, "target"), tuple(target.x.shape))

    def decode(
        self,
        source: Array | Ragged,
        *,
        max_length: int,
        width: int = 1,
        length_penalty: float = 0.0,
        state: State = None,
    ) -> list[list[Hypothesis]]:
        """Find the most probable targets with `beam_search`.

        Parameters
        ----------
        source : array of integers, shape (S, B), or Ragged
            Ids of the sources.
        max_length : int
            Largest number of tokens of a target, including the end token; at least 1.
        width : int, optional
            Number of targets to keep for each source, at least 1; 1 is greedy decoding.
        length_penalty : float, optional
            As for `beam_search`.
        state : (h, c), optional
            Initial state of the encoder; zeros if omitted.

        Returns
        -------
        list of B lists of Hypothesis
            At most `width` hypotheses each, the best first.

        Raises
        ------
        ShapeError, DTypeError, BackendError, ArgumentError
            As for a call and for `beam_search`.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq, pad
        >>> model = Seq2Seq("abc", "xy", 8, rng=0)
        >>> found = model.decode(pad([model.encode("ab"), model.encode("c")]), max_length=4, width=3)
        >>> [len(row) for row in found]
        [3, 3]
        """
        ids = split_batch(source).x
        _array.namespace(ids, "source")
        if _blocks.takes(ids, self._home()):
            msg = "source is a Dask array, but decode returns lists; use source.compute(), or call decode "
            msg += "in a dask.delayed function for each block"
            raise BackendError(msg)
        shape = tuple(ids.shape)
        if len(shape) != 2:
            msg = f"source has shape {shape}, expected (S, B)"
            raise ShapeError(msg)
        decoder = self._network("decoder").freeze()

        between: Any = self._read(source, state)
        pair = isinstance(between, LSTMState)

        def step(tokens: np.ndarray, before: Any) -> tuple[Array, Any]:
            x = self.decoder_embedding(self._to_device(tokens))
            y, after = decoder.step(x, before if pair else before[0])
            return self.linear(y), after if pair else (after,)

        return decoding.beam_search(
            step,
            between if pair else (between,),
            [self.end] * hidden(between).shape[1],
            end=self.end,
            width=width,
            max_length=max_length,
            length_penalty=length_penalty,
        )

    def translate(
        self,
        texts: Sequence[str | Sequence[str]],
        *,
        max_length: int,
        width: int = 1,
        length_penalty: float = 0.0,
    ) -> list[str]:
        """Return the best target of each source as text.

        Parameters
        ----------
        texts : sequence of texts
            Sources, at least 1. A text is a str or a sequence of tokens.
        max_length : int
            As for `decode`.
        width : int, optional
            As for `decode`.
        length_penalty : float, optional
            As for `decode`.

        Returns
        -------
        list of str
            The joined tokens of each target.

        Raises
        ------
        ArgumentError
            If there is no text, or a token is not in `source_vocab`, and as for `decode`.

        Examples
        --------
        >>> from xplstm.models import Seq2Seq
        >>> Seq2Seq("abc", "xy", 8, rng=0).translate(["ab"], max_length=1)
        ['x']
        """
        _check_texts("texts", texts, 1)
        source = pad([self.encode(text) for text in texts])
        hypotheses = self.decode(source, max_length=max_length, width=width, length_penalty=length_penalty)
        return ["".join(self.target_vocab[token] for token in best.tokens) for best, *_ in hypotheses]

    def _read(self, source: Array | Ragged, state: State) -> LSTMState:
        """Return the final state of the encoder."""
        batch = split_batch(source)
        x = self.encoder_embedding(clear_padding(batch, "source"))
        return self._network("encoder", causal=False)(x, state, lengths=batch.lengths)[1]

    def _force(self, target: Array | Ragged) -> Array:
        """Return the decoder input with teacher forcing: the target, shifted by one step."""
        ids: Any = clear_padding(split_batch(target), "target")
        if not _blocks.is_dask(ids):
            return _one_later(self.end, ids)
        axes = "tb"[: ids.ndim]
        later = _blocks.apply(
            partial(_one_later, self.end), axes, {}, ids.dtype, (ids.rechunk({0: -1}), axes)
        )
        return later.rechunk({0: ids.chunks[0]})

    def _mix(self, target: Ragged, state: LSTMState, rng: np.random.Generator | None) -> Array:
        """Return the decoder input with target tokens and own tokens, mixed at random."""
        if rng is None and self.teacher_forcing > 0:
            msg = f"teacher_forcing={self.teacher_forcing} needs rng=, which selects the steps"
            raise ArgumentError(msg)
        forced, decoder = self._force(target), self._network("decoder").freeze()
        coins = np.zeros(forced.shape) if rng is None else rng.random(forced.shape)
        is_forced = self._to_device(coins < self.teacher_forcing)
        xp = _array.namespace(forced, "target")
        read = [forced[0, ...]]
        for t in range(1, forced.shape[0]):
            y, state = decoder.step(self.decoder_embedding(read[-1]), state)
            own = xp.astype(xp.argmax(self.linear(y), axis=-1), forced.dtype)
            read.append(xp.where(is_forced[t, ...], forced[t, ...], own))
        return xp.stack(read)


def _check_texts(name: str, texts: Any, least: int) -> None:
    """Check that `texts` is a sequence of at least `least` texts and not one text."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        msg = f"{name}={texts!r} must be a sequence of texts; pass one text in a list"
        raise DTypeError(msg)
    if len(texts) < least:
        msg = f"{name}={texts!r} must have at least 1 text"
        raise ArgumentError(msg)


def _one_later(first: int, ids: Array) -> Array:
    """Shift ids (U, ...) by one step, with `first` as the new first step."""
    xp = _array.namespace(ids, "target")
    return xp.concat([xp.full_like(ids[:1, ...], first), ids[:-1, ...]])


def _check_pair(source: Array | Ragged, target: Array | Ragged) -> tuple[Ragged, Ragged]:
    """Return source and target, and check that their batch sizes are equal."""
    pair = split_batch(source), split_batch(target)
    shapes = []
    for name, batch in zip(("source", "target"), pair, strict=True):
        _array.namespace(batch.x, name)
        shapes.append(tuple(batch.x.shape))
    # The network compares the chunks if Dask does not know the batch size.
    known = all(n == n for shape in shapes for n in shape)
    fitting = shapes[0][1:] == shapes[1][1:] or not known
    if len(shapes[0]) != len(shapes[1]) or not 1 <= len(shapes[0]) <= 2 or not fitting:
        found = f"source has shape {shapes[0]} and target {shapes[1]}"
        msg = f"{found}, expected (S, B) and (U, B), or (S,) and (U,)"
        raise ShapeError(msg)
    return pair
