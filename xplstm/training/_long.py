"""Compute exact gradients of a sequence that does not fit into memory, chunk by chunk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._errors import ArgumentError, DTypeError, ShapeError
from xplstm._state import LSTMState
from xplstm._summary import brief
from xplstm._typing import Array
from xplstm.nn import Recurrent

Loss: TypeAlias = Callable[[Array, Any], tuple[Array, Callable[[], Any]]]


class Gradients(NamedTuple):
    """Loss, final state and gradients from `gradients_over`.

    Attributes
    ----------
    loss : float
        Sum of the chunks' losses.
    state : LSTMState or array
        Final state, of the same type as from a call of the network.
    dstate_0 : LSTMState or array
        Gradient with respect to the initial state.
    dparams : dict of str to array
        Gradients with respect to the parameters, with the keys of ``network.params``.
    dothers : dict of str to array
        Sums of the gradients with respect to the loss's own parameters; empty if there are none.
    """

    loss: float
    state: Any
    dstate_0: Any
    dparams: dict[str, Array]
    dothers: dict[str, Array]

    def __repr__(self) -> str:
        return brief(self)


class _Chunk(NamedTuple):
    """One chunk of the sequence, with its targets and options."""

    x: Array
    targets: Any
    options: Mapping[str, Any]


def gradients_over(
    network: Recurrent, chunks: Iterable[Any], loss: Loss, state: Any = None, *, dstate_n: Any = None
) -> Gradients:
    """Compute exact gradients of a sequence that does not fit into memory.

    The sequence is split into chunks along time. A forward pass over all chunks keeps the state before each
    chunk. Then each chunk runs again through ``vjp``, from the last to the first, with the gradient with
    respect to its final state. Nothing is truncated. The function keeps in memory one chunk, the residuals of
    its backward pass, and one state for each chunk.

    Parameters
    ----------
    network : LSTM, GRU, RNN or JordanRNN
        Network with one direction and any number of layers. Dropout is not applied.
    chunks : sequence of (x, targets) or (x, targets, options)
        At least 1 chunk, in the order of time. The function reads the chunks with ``iter``, and then again
        with ``reversed``. Pass a list, `Streams`, or an object with ``__len__`` and ``__getitem__`` that
        reads a memory map. `x` is as for a call of the network, with any number of steps. ``options`` is a
        dict with ``lengths``, ``mask``, ``reset`` or ``checkpoint`` for this chunk.
    loss : callable
        ``loss(y, targets) -> value, pullback``, as the functions of `xplstm.losses`. ``pullback()`` returns
        the gradient with respect to y. It may return a tuple of that gradient and a dict of gradients with
        respect to other parameters, such as those of a `Linear`. The first call is for the last chunk.
    state, dstate_n : LSTMState, tuple or array, optional
        Initial state, and gradient with respect to the final state, as for ``vjp``; zeros if omitted.

    Returns
    -------
    Gradients
        Gradients of the sum of the chunks' losses.

    Raises
    ------
    DTypeError
        If `network` is not a recurrent layer, or `chunks` cannot be read in reverse order.
    ArgumentError
        If the network has a reverse direction, `chunks` is empty, a chunk is not such a tuple, or the two
        readings differ in length or in the state after a chunk.
    ShapeError, DTypeError, BackendError
        As for a call of `network`.

    Notes
    -----
    The algorithm is backpropagation through time with checkpoints: Chen, Xu, Zhang and Guestrin, "Training
    deep nets with sublinear memory cost", 2016. On the kernel ``native``, outputs and final state have the
    same bits as one ``vjp`` over the whole sequence. Parameter gradients are sums over chunks; they equal
    those of one ``vjp`` within rounding. Half precision is widened to float32 until the end. A call rounds
    the output of each layer, so several layers in half precision equal one ``vjp`` only within rounding.

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
        msg = f"network must be a recurrent layer, such as an LSTM, got {type(network).__name__}"
        raise DTypeError(msg)
    if network.bidirectional or network.reverse:
        msg = "network has a reverse direction, which chunks do not allow; use vjp(..., checkpoint=k)"
        raise ArgumentError(msg)
    _values.function("loss", loss)
    widen = _Widen(_checks.home(network.params).dtype)
    wide: Any = widen.network(network)
    starts = _starts(wide, chunks, widen.state("state", state), widen)
    end, following, dstate = None, None, widen.state("dstate_n", dstate_n)
    values: list[float] = []
    totals: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for number, given in _backward(chunks, len(starts)):
        chunk = _chunk(number, given)
        start = starts.pop()
        y, after, pullback = wide.vjp(widen("x", chunk.x), start, dx=False, **chunk.options)
        if following is None:
            end = after
        else:
            _check_again(number, after, following)
        following = start
        value, dy, dothers = _judge(loss, widen.narrow(y), chunk.targets)
        del y
        _, dstate, dparams = pullback(widen("the gradient of loss", dy), dstate)
        del pullback  # free its residuals before the next chunk allocates its own
        values.append(value)
        for total, more in zip(totals, (dparams, dothers), strict=True):
            for name, a in more.items():
                # A loss may overwrite its gradients in the next chunk.
                total[name] = total[name] + a if name in total else _array.copy(a)
    dparams = {name: widen.narrow(a) for name, a in totals[0].items()}
    return Gradients(math.fsum(values), widen.back(end), widen.back(dstate), dparams, totals[1])


class _Widen:
    """Convert half precision to float32 between chunks, as inside a call; leave other dtypes unchanged."""

    def __init__(self, dtype: str) -> None:
        self._dtype, self._half = dtype, dtype in ("float16", "bfloat16")

    def network(self, network: Any) -> Any:
        """Return the network, or a float32 copy of a half-precision network."""
        return copy.copy(network).to(dtype="float32") if self._half else network

    def __call__(self, name: str, a: Any) -> Any:
        """Convert an array from the network's dtype to the dtype of the chunks."""
        if not self._half or a is None:
            return a
        _array.namespace(a, name)
        if (given := _array.dtype_name(a.dtype)) != self._dtype:
            msg = f"{name} has dtype {given}, expected {self._dtype}, the dtype of the parameters"
            raise DTypeError(msg)
        return _array.widen(a)

    def state(self, name: str, state: Any) -> Any:
        """Convert a state, or the gradient with respect to a state, to the dtype of the chunks."""
        if self._half and isinstance(state, tuple):
            return LSTMState(*(self(name, a) for a in _checks.state(name, state)))
        return self(name, state)

    def narrow(self, a: Any) -> Any:
        """Convert an array to the network's dtype."""
        return _array.narrow(a, self._dtype) if self._half else a

    def back(self, state: Any) -> Any:
        """Convert a state to the network's dtype."""
        return LSTMState(*map(self.narrow, state)) if isinstance(state, tuple) else self.narrow(state)


def _starts(network: Any, chunks: Iterable[Any], state: Any, widen: _Widen) -> list[Any]:
    """Return the state before each chunk; the last chunk runs only in the backward pass."""
    indexed = hasattr(chunks, "__len__") and hasattr(chunks, "__getitem__")
    readable = indexed or hasattr(chunks, "__reversed__")
    if isinstance(chunks, Mapping | str | bytes) or not readable or getattr(chunks, "shape", None) == ():
        msg = (
            "chunks must be a sequence of tuples (x, targets), or an object with __iter__ and __reversed__, "
            f"got {type(chunks).__name__}"
        )
        raise DTypeError(msg)
    fast = network.freeze()
    starts: list[Any] = []
    for number, given in enumerate(chunks):
        chunk = _chunk(number, given)
        starts.append(state)
        # Run each chunk before reading the next, which may overwrite its memory.
        if indexed and number == len(cast("Any", chunks)) - 1:
            break
        options = {name: value for name, value in chunk.options.items() if name != "checkpoint"}
        _, state = fast(widen("x", chunk.x), state, **options)
        _check_resets(number, chunk, network.batch_first)
    if not starts:
        msg = "chunks is empty; at least 1 is needed"
        raise ArgumentError(msg)
    return starts


def _check_again(number: int, after: Any, first: Any) -> None:
    """Check that a chunk gives the state of its first reading again; skip arrays on a device."""
    pairs = zip(after, first, strict=True) if isinstance(after, tuple) else [(after, first)]
    for again, known in pairs:
        if _array.is_lazy(again):
            return
        a, b = _array.to_numpy(again), _array.to_numpy(known)
        with np.errstate(invalid="ignore"):
            rounding = float(np.finfo(b.dtype).eps) ** 0.5 * np.maximum(1, np.abs(b))
            same = (np.abs(a - b) <= rounding) | (a == b) | (np.isnan(a) & np.isnan(b))
        if not same.all():
            msg = f"chunks[{number}] gives another final state at the second reading; every reading must "
            raise ArgumentError(msg + "return the same arrays, without random changes")


def _check_resets(number: int, chunk: _Chunk, batch_first: bool) -> None:
    """Check that no reset comes after the last step of a batch entry; it would apply to the next chunk."""
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
        msg = f"reset of chunks[{number}] is True at step {t}{of}, after the last step; "
        msg += "set it at the first step of the next chunk"
        raise ArgumentError(msg)


def _as_numpy(a: Any) -> np.ndarray:
    """Return flags or lengths as a NumPy array; a call of the network has already checked them."""
    return _array.to_numpy(a) if hasattr(a, "shape") else np.asarray(a)


def _backward(chunks: Any, count: int) -> Iterator[tuple[int, Any]]:
    """Yield the number of each chunk and the chunk, from the last to the first."""
    left = count
    for chunk in reversed(chunks):
        left -= 1
        if left >= 0:
            yield left, chunk
    if left:
        msg = f"chunks returned {count} chunks with iter and {count - left} with reversed"
        raise ArgumentError(msg)


def _chunk(number: int, given: Any) -> _Chunk:
    """Return a chunk from a tuple of two or three items."""
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        count = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        got = type(given).__name__
        msg = f"chunks[{number}] must be (x, targets) or (x, targets, options), got {got}{count}"
        raise ArgumentError(msg)
    options = given[2] if len(given) == 3 else {}
    known = {"lengths", "mask", "reset", "checkpoint"}
    if not isinstance(options, Mapping) or not options.keys() <= known:
        shown = sorted(map(repr, options)) if isinstance(options, Mapping) else type(options).__name__
        msg = f"the options of chunks[{number}] must be a dict with keys from {sorted(known)}, got {shown}"
        raise ArgumentError(msg)
    return _Chunk(given[0], given[1], options)


def _judge(loss: Loss, y: Array, targets: Any) -> tuple[float, Any, Mapping[str, Array]]:
    """Return the loss of a chunk, and its gradients with respect to y and to the loss's own parameters."""
    judged: Any = loss(y, targets)
    if not (isinstance(judged, tuple) and len(judged) == 2 and callable(judged[1])):
        msg = f"loss must return (value, pullback), as in xplstm.losses, got {type(judged).__name__}"
        raise DTypeError(msg)
    value, pullback = judged
    results = pullback()
    dy, dothers = results if isinstance(results, tuple) and len(results) == 2 else (results, {})
    if getattr(value, "shape", None) != () and not isinstance(value, float):
        msg = f"loss must return a number of shape (), got shape {getattr(value, 'shape', None)}"
        raise ShapeError(msg)
    _array.namespace(dy, "the gradient of loss")
    return float(value), dy, _values.mapping("the second result of the pullback of loss", dothers)
