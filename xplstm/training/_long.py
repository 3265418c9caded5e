"""Exact gradients of a sequence that is longer than memory, chunk by chunk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.nn import Recurrent

Loss: TypeAlias = Callable[[Array, Any], tuple[Array, Callable[[], Any]]]


class Gradients(NamedTuple):
    """What `gradients_over` returns.

    Attributes
    ----------
    loss : float
        Sum of the chunks' losses.
    state : LSTMState or array
        After the last step, as a call of the network returns it.
    dstate_0 : LSTMState or array
        Gradient with respect to the initial state.
    dparams : dict of str to array
        Gradients with respect to the parameters, with the keys of ``network.params``.
    dothers : dict of str to array
        Sums of the gradients that the loss returned for parameters of its own; empty without them.
    """

    loss: float
    state: Any
    dstate_0: Any
    dparams: dict[str, Array]
    dothers: dict[str, Array]


class _Chunk(NamedTuple):
    """A part of the sequence."""

    x: Array
    targets: Any
    options: Mapping[str, Any]


def gradients_over(
    network: Recurrent, chunks: Iterable[Any], loss: Loss, state: Any = None, *, dstate_n: Any = None
) -> Gradients:
    """Compute exact gradients of a sequence that is longer than memory.

    The sequence comes in chunks of time. The network reads them once forward and keeps the state before each.
    Then each chunk runs again through ``vjp``, from the last to the first, with the gradient with respect to
    its final state. Nothing is truncated. Memory holds one chunk, what its backward pass needs, and one state
    for each chunk.

    Parameters
    ----------
    network : LSTM, GRU, RNN or JordanRNN
        Of any number of layers and of one direction. Nothing is dropped.
    chunks : sequence of (x, targets) or (x, targets, options)
        In the order of time, at least 1. Read twice: forward by ``iter``, then from the last by ``reversed``.
        A list, `Streams`, or an object with ``__len__`` and ``__getitem__`` that reads a memory map.
        Each `x` is as for a call of the network, of any number of steps. ``options`` is a dict of
        ``lengths``, ``mask``, ``reset`` or ``checkpoint`` for this chunk.
    loss : callable
        ``loss(y, targets) -> value, pullback``, as the functions of `xplstm.losses`. ``pullback()`` returns
        the gradient with respect to y, or a tuple of it and a dict of gradients with respect to other
        parameters, such as those of a `Linear`. Called for the last chunk first.
    state, dstate_n : LSTMState, tuple or array, optional
        Initial state, and gradient with respect to the final one, as for ``vjp``; zeros if left out.

    Returns
    -------
    Gradients
        Of the sum of the chunks' losses.

    Raises
    ------
    DTypeError
        If `network` is no recurrent layer, or `chunks` cannot be read from its end.
    ArgumentError
        For a network with a direction that begins at the end; if there is no chunk, a chunk is no such tuple,
        or the two readings differ in length.
    ShapeError, DTypeError, BackendError
        As for a call.

    Notes
    -----
    Backpropagation through time with the states as checkpoints: Chen, Xu, Zhang and Guestrin, "Training deep
    nets with sublinear memory cost", 2016. On the kernel ``native`` the outputs and the final state have the
    bits of one ``vjp`` over the whole sequence. Gradients of parameters are sums over chunks and equal those
    of one ``vjp`` within rounding. Half precision is widened to float32 until the end, as inside a call.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm import losses
    >>> from xplstm.training import gradients_over
    >>> lstm = xplstm.LSTM(1, 4, rng=0)
    >>> x = np.ones((1000, 1, 1), dtype="float32")
    >>> chunks = [(x[k : k + 100], np.zeros((100, 1, 4), dtype="float32")) for k in range(0, 1000, 100)]
    >>> found = gradients_over(lstm, chunks, losses.mse)
    >>> found.dparams.keys() == lstm.params.keys()
    True
    """
    if not isinstance(network, Recurrent):
        msg = f"network must be a recurrent layer, such as an LSTM; got {type(network).__name__}"
        raise DTypeError(msg)
    if network.bidirectional or network.reverse:
        msg = "network has a direction that begins at the end; use vjp(..., checkpoint=k)"
        raise ArgumentError(msg)
    _values.function("loss", loss)
    widen = _Widen(_checks.home(network.params).dtype)
    wide: Any = widen.network(network)
    starts = _starts(wide, chunks, widen.state("state", state), widen)
    end, dstate = None, widen.state("dstate_n", dstate_n)
    values: list[float] = []
    totals: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for number, given in _backward(chunks, len(starts)):
        chunk = _chunk(number, given)
        y, after, pullback = wide.vjp(widen("x", chunk.x), starts.pop(), dx=False, **chunk.options)
        end = after if end is None else end
        value, dy, dothers = _judge(loss, widen.narrow(y), chunk.targets)
        del y
        _, dstate, dparams = pullback(widen("the gradient of loss", dy), dstate)
        del pullback  # before the next chunk makes its own
        values.append(value)
        for total, more in zip(totals, (dparams, dothers), strict=True):
            total.update({name: total[name] + a if name in total else a for name, a in more.items()})
    dparams = {name: widen.narrow(a) for name, a in totals[0].items()}
    return Gradients(math.fsum(values), widen.back(end), widen.back(dstate), dparams, totals[1])


class _Widen:
    """Half precision in float32 between the chunks, as inside a call; other dtypes as they are."""

    def __init__(self, dtype: str) -> None:
        self._dtype, self._half = dtype, dtype in ("float16", "bfloat16")

    def network(self, network: Any) -> Any:
        """Return the network, or a float32 copy of it."""
        return copy.copy(network).to(dtype="float32") if self._half else network

    def __call__(self, name: str, a: Any) -> Any:
        """Return an array of the network's dtype in the dtype of the chunks."""
        if not self._half or a is None:
            return a
        _array.namespace(a, name)
        if (given := _array.dtype_name(a.dtype)) != self._dtype:
            msg = f"{name} has dtype {given}, expected {self._dtype}, the dtype of the parameters"
            raise DTypeError(msg)
        return _array.widen(a)

    def state(self, name: str, state: Any) -> Any:
        """Return a state, or the gradient with respect to one, in the dtype of the chunks."""
        if self._half and isinstance(state, tuple):
            return LSTMState(*(self(name, a) for a in _checks.state(name, state)))
        return self(name, state)

    def narrow(self, a: Any) -> Any:
        """Return an array in the network's dtype."""
        return _array.narrow(a, self._dtype) if self._half else a

    def back(self, state: Any) -> Any:
        """Return a state in the network's dtype."""
        return LSTMState(*map(self.narrow, state)) if isinstance(state, tuple) else self.narrow(state)


def _starts(network: Any, chunks: Iterable[Any], state: Any, widen: _Widen) -> list[Any]:
    """Return the state before each chunk; the last chunk is not run here, since its backward pass runs it."""
    indexed = hasattr(chunks, "__len__") and hasattr(chunks, "__getitem__")
    readable = indexed or hasattr(chunks, "__reversed__")
    if isinstance(chunks, Mapping | str | bytes) or not readable or getattr(chunks, "shape", None) == ():
        msg = (
            "chunks must be a sequence of tuples (x, targets), or an object with __iter__ and __reversed__, "
            f"since it is read again from its end; got {type(chunks).__name__}"
        )
        raise DTypeError(msg)
    fast = network.freeze()
    starts: list[Any] = []
    for number, given in enumerate(chunks):
        chunk = _chunk(number, given)
        starts.append(state)
        # A chunk is run before the next is read, which may be read into the same memory.
        if indexed and number == len(cast("Any", chunks)) - 1:
            break
        options = {name: value for name, value in chunk.options.items() if name != "checkpoint"}
        _, state = fast(widen("x", chunk.x), state, **options)
        _check_resets(number, chunk, network.batch_first)
    if not starts:
        msg = "chunks is empty; at least 1 is needed"
        raise ArgumentError(msg)
    return starts


def _check_resets(number: int, chunk: _Chunk, batch_first: bool) -> None:
    """Refuse a reset after the last step of a batch entry, which would begin a segment in the next chunk."""
    given = [chunk.options.get(name) for name in ("reset", "mask", "lengths")]
    if given[0] is None or (given[1] is None and given[2] is None):
        return
    reset, mask, lengths = (None if a is None else _as_numpy(a) for a in given)
    assert reset is not None
    if batch_first and reset.ndim == 2:
        reset, mask = reset.T, None if mask is None else mask.T
    times = np.arange(len(reset)).reshape(-1, *[1] * (reset.ndim - 1))
    exists = mask if mask is not None else times < np.asarray(lengths)
    left = np.flip(np.cumsum(np.flip(exists, 0), 0), 0)
    lost = np.argwhere(reset & (left == 0))
    if len(lost):
        t, *entry = lost[0].tolist()
        of = f" of batch entry {entry[0]}" if entry else ""
        msg = f"the reset of chunks[{number}] at step {t}{of} comes after its last step there; "
        msg += "pass it with the first step of the next chunk"
        raise ArgumentError(msg)


def _as_numpy(a: Any) -> np.ndarray:
    """Return flags or lengths, which the call before has checked, as a NumPy array."""
    return _array.to_numpy(a) if hasattr(a, "shape") else np.asarray(a)


def _backward(chunks: Any, count: int) -> Iterator[tuple[int, Any]]:
    """Yield the number of each chunk and the chunk, from the last to the first."""
    left = count
    for chunk in reversed(chunks):
        left -= 1
        if left >= 0:
            yield left, chunk
    if left:
        msg = f"chunks gave {count} chunks forward and {count - left} backward"
        raise ArgumentError(msg)


def _chunk(number: int, given: Any) -> _Chunk:
    """Return a chunk, whose options are none if it has two items."""
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        count = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        got = type(given).__name__
        msg = f"chunks[{number}] must be (x, targets) or (x, targets, options), got {got}{count}"
        raise ArgumentError(msg)
    options = given[2] if len(given) == 3 else {}
    known = {"lengths", "mask", "reset", "checkpoint"}
    if not isinstance(options, Mapping) or not options.keys() <= known:
        shown = sorted(map(repr, options)) if isinstance(options, Mapping) else type(options).__name__
        msg = f"the options of chunks[{number}] must be a dict with names of {sorted(known)}, got {shown}"
        raise ArgumentError(msg)
    return _Chunk(given[0], given[1], options)


def _judge(loss: Loss, y: Array, targets: Any) -> tuple[float, Any, Mapping[str, Array]]:
    """Return the loss of a chunk, its gradient with respect to y, and those of its own parameters."""
    judged: Any = loss(y, targets)
    if not (isinstance(judged, tuple) and len(judged) == 2 and callable(judged[1])):
        msg = f"loss must return (value, pullback), as those of xplstm.losses do; got {type(judged).__name__}"
        raise DTypeError(msg)
    value, pullback = judged
    made = pullback()
    dy, dothers = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if getattr(value, "shape", None) != () and not isinstance(value, float):
        msg = f"loss must return a number of shape (), got shape {getattr(value, 'shape', None)}"
        raise ShapeError(msg)
    _array.namespace(dy, "the gradient of loss")
    return float(value), dy, _values.mapping("the second result of the pullback of loss", dothers)
