"""Decode logits to tokens by sampling or beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from xplstm import _array, _state, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._typing import Array

States: TypeAlias = tuple[Array, ...]
Step: TypeAlias = Callable[[np.ndarray, States], tuple[Array, States]]


def probabilities(
    logits: Array, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Return the probabilities from which `sample` draws tokens.

    The probabilities are ``softmax(logits / temperature)``. `top_k` keeps the k largest. Then `top_p` keeps
    the fewest tokens whose total probability reaches p (nucleus sampling: Holtzman et al., 2020). The
    remaining probabilities are scaled so that they sum to 1. Of equal probabilities, lower tokens are kept
    first.

    Parameters
    ----------
    logits : array, shape (..., V)
        Array of any library and float dtype. A logit of minus infinity excludes a token.
    temperature : float, optional
        Divisor of the logits, at least 0. Below 1, probable tokens become more probable; 0 selects the most
        probable token. Temperatures close to 0 do not overflow.
    top_k : int, optional
        Number of tokens to keep, at least 1; all if omitted.
    top_p : float, optional
        Total probability to keep, in (0, 1]; all tokens if omitted.

    Returns
    -------
    numpy.ndarray of float64, shape (..., V)
        Probabilities on the host, so that one seed draws the same tokens on every device.

    Raises
    ------
    ArgumentError
        If a value is outside its range, a logit is NaN or plus infinity, or all logits of a row are minus
        infinity.
    DTypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import probabilities
    >>> logits = np.log([0.5, 0.3, 0.15, 0.05])
    >>> probabilities(logits, top_k=2).round(3)
    array([0.625, 0.375, 0.   , 0.   ])
    >>> probabilities(logits, top_p=0.9).round(3)
    array([0.526, 0.316, 0.158, 0.   ])
    >>> probabilities(logits, temperature=1e-300)
    array([1., 0., 0., 0.])
    """
    check_sampling(temperature, top_k, top_p)
    z = _on_host(logits)
    if temperature == 0:
        return np.asarray(np.arange(z.shape[-1]) == z.argmax(axis=-1)[..., None], dtype=np.float64)
    # The largest logit is 0. For temperatures close to 0, the others become minus infinity and not NaN.
    with np.errstate(over="ignore"):
        p = _normalise(np.exp(z / temperature))
    if top_k is None and top_p in (None, 1):
        return p
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    if top_k is not None:
        ranked[..., top_k:] = 0
        ranked = _normalise(ranked)
    if top_p not in (None, 1):
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked = _normalise(np.where(before < top_p, ranked, 0))
    np.put_along_axis(p, order, ranked, axis=-1)
    return p


def sample(
    logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Sample one token for each row of logits.

    Parameters
    ----------
    logits : array, shape (..., V)
        As for `probabilities`.
    temperature : float, optional
        As for `probabilities`.
    top_k : int, optional
        As for `probabilities`.
    top_p : float, optional
        As for `probabilities`.
    rng : int or numpy.random.Generator, optional
        Seed or generator that draws the tokens.

    Returns
    -------
    numpy.ndarray of int64, shape (...)
        Tokens in [0, V).

    Raises
    ------
    ArgumentError, DTypeError
        As for `probabilities`.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import sample
    >>> logits = np.asarray([[0.0, 5.0, 1.0], [9.0, 0.0, 0.0]])
    >>> sample(logits, temperature=0)
    array([1, 0])
    >>> np.bincount(sample(np.zeros((1000, 2)), rng=0), minlength=2)
    array([473, 527])
    """
    p = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    generator = _values.generator("rng", rng)
    if temperature == 0:
        return np.asarray(p.argmax(axis=-1), dtype=np.int64)
    reached = np.cumsum(p, axis=-1)
    threshold = generator.random(p.shape[:-1])[..., None] * reached[..., -1:]
    return np.asarray((reached <= threshold).sum(axis=-1), dtype=np.int64)


class Hypothesis(NamedTuple):
    """A sequence that `beam_search` found.

    Attributes
    ----------
    tokens : tuple of int
        Tokens without the end token.
    score : float
        Rank of the search: the log-probability divided by a power of the length.
    log_probability : float
        Natural logarithm of the probability of all tokens, including the end token.
    ended : bool
        Whether the sequence has an end token; otherwise it was truncated at `max_length`.

    Examples
    --------
    >>> from xplstm.models import Hypothesis
    >>> Hypothesis((3, 1), score=-0.2, log_probability=-0.6, ended=True).tokens
    (3, 1)
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    ended: bool


def beam_search(
    step: Step,
    state: States,
    first: Sequence[int] | np.ndarray,
    *,
    end: int,
    width: int,
    max_length: int,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """Find the most probable continuations with beam search.

    At each step, the search keeps the `width` most probable continuations of the kept sequences. A sequence
    with the end token is complete and leaves the beam (Sutskever, Vinyals and Le, 2014, section 3.2). A
    width of 1 is greedy decoding. A width equal to the number of all sequences finds the best sequence. The
    search stops when no sequence in the beam can still become one of the `width` best.

    Parameters
    ----------
    step : callable
        ``step(tokens, state) -> logits, state``. tokens is a NumPy array (N,) of int64, and logits is an
        array (N, V) of any library. N changes from call to call.
    state : tuple of arrays, shape (rows, B, ...) each
        State before the first step; the second axis is the batch.
    first : integers, shape (B,)
        Start token of each sequence, which is not part of the result.
    end : int
        End token, in [0, V).
    width : int
        Number of sequences to keep for each batch entry, at least 1.
    max_length : int
        Largest number of tokens, including the end token; at least 1. Longer sequences are truncated.
    length_penalty : float, optional
        Sequences are ranked by log-probability / length**length_penalty (Wu et al., 2016, section 7). The
        length includes the end token. 0 ranks by probability, which favours short sequences; 1 ranks by the
        mean log-probability. At least 0.

    Returns
    -------
    list of B lists of Hypothesis
        At most `width` hypotheses each, the best first.

    Raises
    ------
    ArgumentError, DTypeError
        If a value is outside its range, and as for `probabilities`.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import beam_search
    >>> start, end = 3, 2
    >>> following = {start: [0.55, 0.45, 0, 0], 0: [0.4, 0.35, 0.25, 0], 1: [0.02, 0.02, 0.96, 0]}
    >>> def step(tokens, state):
    ...     with np.errstate(divide="ignore"):
    ...         return np.log([following[token] for token in tokens.tolist()]), state
    >>> for width in (1, 2):
    ...     ((best, *_),) = beam_search(step, (), [start], end=end, width=width, max_length=4)
    ...     print(best.tokens, round(np.exp(best.log_probability), 3))
    (0, 0, 0, 0) 0.035
    (1,) 0.432
    """
    width, max_length = _values.size("width", width), _values.size("max_length", max_length)
    end = _values.size("end", end, 0)
    length_penalty = _penalty(length_penalty, max_length)
    _values.function("step", step)
    beam = _Beam.of(_first(first), _check_state("state", state, None))
    hypotheses: list[list[Hypothesis]] = [[] for _ in beam.tokens]
    for length in range(1, max_length + 1):
        if not beam.owner.size:
            break
        logits, state = _run(step, beam)
        log_p = _log_softmax(logits)
        if log_p.ndim != 2 or log_p.shape[0] != len(beam.tokens):
            msg = f"step returned logits of shape {log_p.shape}, expected ({len(beam.tokens)}, V)"
            raise ShapeError(msg)
        _values.size("end", end, 0, log_p.shape[1] - 1)
        beam = beam.extend(log_p, state, width)
        over = (beam.tokens[:, -1] == end) | (length == max_length)
        for owner, tokens, total in beam.rows(over):
            ended = tokens[-1] == end
            score = total / length**length_penalty
            hypotheses[owner].append(Hypothesis(tokens[:-1] if ended else tokens, score, total, ended))
        # Upper bound of all later scores, because probabilities only fall, and this is the largest divisor.
        reachable = beam.total / max_length**length_penalty
        beam = beam.select(~over & (reachable > _least_of_the_best(hypotheses, width)[beam.owner]))
    return [sorted(row, key=lambda h: -h.score)[:width] for row in hypotheses]


def _run(step: Step, beam: _Beam) -> tuple[Array, States]:
    """Run one step of all sequences, and check its results."""
    results: object = step(beam.tokens[:, -1], beam.state)
    if not isinstance(results, tuple | list) or len(results) != 2:
        msg = f"step must return (logits, state), got {type(results).__name__}"
        raise DTypeError(msg)
    logits, state = results
    state = tuple(state) if isinstance(state, list) else state
    return logits, _check_state("the state that step returned", state, len(beam.tokens))


def _check_state(name: str, state: object, rows: int | None) -> States:
    """Return a state, checked to be a tuple of arrays, with `rows` entries on the second axis if given."""
    if not isinstance(state, tuple):
        msg = f"{name} must be a tuple of arrays, got {type(state).__name__}"
        raise DTypeError(msg)
    for k, a in enumerate(state):
        _array.namespace(a, f"{name}[{k}]")
        shape = tuple(a.shape)
        if len(shape) < 2 or rows not in (None, shape[1]):
            msg = f"{name}[{k}] has shape {shape}, expected (rows, {'B' if rows is None else rows}, ...)"
            raise ShapeError(msg)
    return state


def _first(first: Sequence[int] | np.ndarray) -> np.ndarray:
    """Check the start tokens, and return them as an array."""
    try:
        tokens = np.asarray(first)
    except ValueError as error:
        msg = f"first={first!r} must be integers of shape (B,)"
        raise DTypeError(msg) from error
    if tokens.ndim != 1:
        msg = f"first has shape {tokens.shape}, expected (B,)"
        raise ShapeError(msg)
    if tokens.size:
        _array.check_integers("first", tokens)
    return tokens.astype(np.int64)


def _penalty(length_penalty: float, max_length: int) -> float:
    """Check that every score is finite with this length penalty."""
    number = _values.finite("length_penalty", length_penalty)
    largest = 700 / max(math.log(max_length), 1)
    if not 0 <= number <= largest:
        msg = f"length_penalty={length_penalty} must be in [0, {largest:g}] with max_length={max_length}"
        raise ArgumentError(msg)
    return number


class _Beam(NamedTuple):
    """Incomplete sequences: batch entry, log-probability, tokens with the start token, and state."""

    owner: np.ndarray
    total: np.ndarray
    tokens: np.ndarray
    state: States

    @classmethod
    def of(cls, first: np.ndarray, state: States) -> _Beam:
        """Return a beam with one sequence for each start token."""
        return cls(np.arange(len(first)), np.zeros(len(first)), first[:, None], state)

    def extend(self, log_p: np.ndarray, state: States, width: int) -> _Beam:
        """Return the `width` most probable continuations of each batch entry, from log-probabilities."""
        total = self.total[:, None] + log_p
        chosen: list[tuple[int, int]] = []
        for owner in np.unique(self.owner):
            (rows,) = np.nonzero(self.owner == owner)
            candidates = total[rows].ravel()
            best = np.argsort(-candidates, kind="stable")[:width]
            best = best[candidates[best] > -math.inf]
            chosen += [(int(rows[place // log_p.shape[1]]), int(place % log_p.shape[1])) for place in best]
        rows, tokens = (np.asarray(numbers, dtype=np.int64) for numbers in zip(*chosen, strict=True))
        longer = np.concatenate([self.tokens[rows], tokens[:, None]], axis=1)
        return _Beam(self.owner[rows], total[rows, tokens], longer, _take(state, rows))

    def select(self, which: np.ndarray) -> _Beam:
        """Return the sequences for which `which` is True."""
        (rows,) = np.nonzero(which)
        if len(rows) == len(which):
            return self
        return _Beam(self.owner[rows], self.total[rows], self.tokens[rows], _take(self.state, rows))

    def rows(self, which: np.ndarray) -> list[tuple[int, tuple[int, ...], float]]:
        """Return owner, tokens without the start token, and log-probability where `which` is True."""
        return [
            (int(self.owner[row]), tuple(self.tokens[row, 1:].tolist()), float(self.total[row]))
            for row in np.nonzero(which)[0]
        ]


def _take(state: States, rows: np.ndarray) -> States:
    """Return the entries `rows` along the second axis of each array of a state."""
    return tuple(_state.take_entries("state", a, rows, axis=1) for a in state)


def _least_of_the_best(found: Sequence[Sequence[Hypothesis]], width: int) -> np.ndarray:
    """Return the `width`-th best score of each batch entry, which a new sequence must exceed."""
    scores = [sorted((h.score for h in row), reverse=True) for row in found]
    return np.asarray([row[width - 1] if len(row) >= width else -math.inf for row in scores])


def _on_host(logits: Array) -> np.ndarray:
    """Return logits in float64 on the host, shifted so that the largest of each row is 0."""
    host = _array.to_numpy(_array.float_array("logits", logits))
    z = _array.native(host).astype(np.float64)
    if z.ndim == 0 or z.shape[-1] == 0:
        msg = f"logits has shape {z.shape}; its last axis must have at least 1 element"
        raise ArgumentError(msg)
    largest = z.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        bad = largest[~np.isfinite(largest)][0]
        msg = f"the largest logit of a row is {bad}; it must be finite"
        raise ArgumentError(msg)
    with np.errstate(over="ignore"):
        return np.asarray(z - largest)


def _log_softmax(logits: Array) -> np.ndarray:
    """Return log-probabilities in float64 on the host."""
    z = _on_host(logits)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def _normalise(p: np.ndarray) -> np.ndarray:
    """Scale `p` so that the probabilities sum to 1."""
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Check the ranges of the sampling options; NaN is outside every range."""
    _values.at_least_zero("temperature", temperature)
    if top_k is not None:
        _values.size("top_k", top_k)
    if top_p is not None and not 0 < _values.finite("top_p", top_p) <= 1:
        msg = f"top_p={top_p} must be in (0, 1]"
        raise ArgumentError(msg)
