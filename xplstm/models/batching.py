"""Create batches for a model: one-hot vectors, padded sequences, windows of a series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array, _checks, _values
from xplstm._checks import Home
from xplstm._errors import ArgumentError, DTypeError, ShapeError, XplstmError
from xplstm._summary import brief
from xplstm._typing import Array
from xplstm.kernels import _steps
from xplstm.models._forecast_roles import Roles
from xplstm.nn import _blocks


def one_hot(ids: Array, count: int, *, dtype: str = "float32") -> Array:
    """Encode ids as vectors with a 1 at the id and 0 elsewhere.

    The product of a matrix and such a vector is a column of the matrix. For a large vocabulary use
    `xplstm.Embedding`, which looks up that column instead.

    Parameters
    ----------
    ids : array of integers, shape (...)
        Ids in [0, count). On a device or under a trace they are not checked; an id outside this range gives
        zeros.
    count : int
        Length of a vector, at least 1.
    dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Dtype of the result.

    Returns
    -------
    array, shape (..., count)
        One-hot vectors, of the library and on the device of `ids`.

    Raises
    ------
    DTypeError, ArgumentError
        If an argument has the wrong type or a value outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import one_hot
    >>> one_hot(np.asarray([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    count, dtype = _values.size("count", count), _checks.dtype(dtype)
    xp, device = _array.namespace(ids, "ids"), _array.device(ids)
    ids = _checks.ids("ids", ids, Home(xp, device, dtype), count)
    places = xp.arange(count, dtype=ids.dtype, device=device)
    return xp.astype(ids[..., None] == places, _array.dtype_from_name(xp, dtype))


class Ragged(NamedTuple):
    """A batch of sequences with different lengths.

    `SequenceClassifier`, `Forecaster` and `Seq2Seq` accept such a batch in place of an array (T, B, ...) as
    inputs. `Seq2Seq` accepts it as targets too. The targets of the other models are arrays, whose values
    after the length of a batch entry are ignored.

    Attributes
    ----------
    x : array, shape (T, B, ...)
        Padded sequences. Values after the length of a batch entry have no effect.
    lengths : integers, shape (B,)
        Number of steps of each batch entry, in [0, T], in any order. Every backend accepts a list or NumPy
        array.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Ragged
    >>> batch = Ragged(np.ones((5, 3, 2)), [2, 5, 0])
    """

    x: Array
    lengths: Any

    def __repr__(self) -> str:
        return brief(self)


def pad(sequences: Sequence[Array]) -> Ragged:
    """Join sequences into one batch in the given order, with zeros after the end of each.

    Parameters
    ----------
    sequences : sequence of arrays, shape (T_b, ...) each
        At least 1 array. All arrays have the same library, device and dtype, and the same shape except for
        the first axis.

    Returns
    -------
    Ragged
        x of shape (max(T_b), B, ...), and lengths as a NumPy array of int32.

    Raises
    ------
    ArgumentError
        If there is no sequence.
    ShapeError
        If the shapes differ in an axis other than the first.
    DTypeError
        If an element is not an array, or the dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import pad
    >>> batch = pad([np.asarray([7, 8]), np.asarray([9]), np.asarray([1, 2, 3])])
    >>> batch.x
    array([[7, 9, 1],
           [8, 0, 2],
           [0, 0, 3]])
    >>> batch.lengths
    array([2, 1, 3], dtype=int32)
    """
    sequences = _values.items("sequences", sequences, 1)
    xp = _array.namespace(sequences[0], "sequences[0]")
    rest = tuple(sequences[0].shape[1:])
    for number, a in enumerate(sequences):
        _array.namespace(a, f"sequences[{number}]")
        if a.dtype != sequences[0].dtype:
            first = _array.dtype_name(sequences[0].dtype)
            msg = f"sequences[{number}] has dtype {_array.dtype_name(a.dtype)}, but sequences[0] has {first}"
            raise DTypeError(msg)
        if a.ndim == 0 or tuple(a.shape[1:]) != rest:
            msg = f"sequences[{number}] has shape {tuple(a.shape)}, expected {('T', *rest)}"
            raise ShapeError(msg)
    lengths = np.asarray([a.shape[0] for a in sequences], dtype=np.int32)
    steps = int(lengths.max())

    def filled(a: Array) -> Array:
        zeros = xp.zeros((steps - a.shape[0], *rest), dtype=a.dtype, device=_array.device(a))
        return xp.concat([a, zeros], axis=0)

    return Ragged(xp.stack([filled(_array.native(a)) for a in sequences], axis=1), lengths)


class WithFuture(NamedTuple):
    """A batch with covariates that are known in advance, for a `Forecaster` with ``known=``.

    Attributes
    ----------
    x : array, shape (T, B, F) or (T, F), or Ragged
        The observed series.
    future : array, shape (horizon, B, K) or (horizon, K)
        The columns ``known=`` at the steps after the last step of each batch entry.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import Forecaster, WithFuture
    >>> model = Forecaster(2, 8, known=[1], horizon=3, rng=0)
    >>> x, future = np.ones((6, 4, 2), dtype="float32"), np.ones((3, 4, 1), dtype="float32")
    >>> model.forecast(WithFuture(x, future)).shape
    (3, 4, 1)
    """

    x: Array | Ragged
    future: Array

    def __repr__(self) -> str:
        return brief(self)


def windows(
    series: Array,
    size: int,
    *,
    horizon: int | None = None,
    targets: Sequence[int] | None = None,
    known: Sequence[int] | None = None,
) -> tuple[Any, Array]:
    """Return all windows of a series, and the targets of each of their steps.

    For a NumPy array the results are read-only views, which take no memory. For other libraries they are
    copies.

    Parameters
    ----------
    series : array, shape (N, F)
        The series, of any dtype. N is at least ``size + 1``, or ``size + horizon``.
    size : int
        T, steps of a window, at least 1.
    horizon : int, optional
        n, target steps after each step, at least 1; for a `Forecaster` with the same ``horizon=``.
    targets, known : sequence of int, optional
        Column indices, as for `Forecaster`. They need `horizon`.

    Returns
    -------
    inputs : array, shape (T, W, F), or WithFuture
        ``inputs[t, k]`` is ``series[k + t]``. With `known`, a `WithFuture` that also has the future of each
        window.
    targets : array, shape (T, W, F), or (T, W, n, M) with `horizon`
        ``targets[t, k]`` is ``series[k + t + 1]``, one step later. With `horizon`, ``targets[t, k, j]`` is
        ``series[k + t + 1 + j]`` in the M columns `targets`.

    Raises
    ------
    ArgumentError, ShapeError
        If the series is too short for one window, does not have two axes, or does not have a column.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.models import windows
    >>> inputs, targets = windows(np.arange(6.0)[:, None], 3)
    >>> inputs[:, 0, 0], targets[:, 0, 0], inputs.shape
    (array([0., 1., 2.]), array([1., 2., 3.]), (3, 3, 1))
    >>> inputs, targets = windows(np.arange(6.0)[:, None], 3, horizon=2)
    >>> targets[:, 0, :, 0]
    array([[1., 2.],
           [2., 3.],
           [3., 4.]])
    """
    size = _values.size("size", size)
    _array.namespace(series, "series")
    if series.ndim != 2:
        msg = f"series has shape {tuple(series.shape)}, expected (N, F)"
        raise ShapeError(msg)
    roles = Roles.of(series.shape[1], targets, known, horizon, None)
    ahead = roles.horizon or 1
    count = series.shape[0] - size - ahead + 1
    if count < 1:
        steps = f"the {series.shape[0]} steps of the series"
        if horizon is None:
            msg = f"size={size} must be less than {steps}"
        else:
            msg = f"size={size} plus horizon={ahead} must be at most {steps}"
        raise ArgumentError(msg)
    series = _array.native(series)
    inputs = _stretches(series, size)[:, :count, ...]
    if roles.horizon is None:
        return inputs, _stretches(series[1:, ...], size)
    following = _stretches(roles.select(series, roles.targets), ahead)
    found = _stretches(_swap_axes(following[:, 1:, ...]), size)
    if not roles.known:
        return inputs, found
    future = _stretches(roles.select(series, roles.known)[size:, ...], ahead)
    return WithFuture(inputs, future), found


def _stretches(a: Array, size: int) -> Array:
    """Return all windows of `a` (N, ...): element [t, k] of (size, N - size + 1, ...) is ``a[k + t]``.

    The result is a view for a NumPy array.
    """
    xp, count = _array.namespace(a, "a"), a.shape[0] - size + 1
    if isinstance(a, np.ndarray):
        return np.moveaxis(np.lib.stride_tricks.sliding_window_view(a, size, axis=0), -1, 0)
    return xp.stack([a[t : t + count, ...] for t in range(size)])


def _swap_axes(a: Array) -> Array:
    """Return `a` with its first two axes exchanged."""
    xp = _array.namespace(a, "a")
    return xp.permute_dims(a, (1, 0, *range(2, a.ndim)))


def split_batch(inputs: Array | tuple[Array, Any]) -> Ragged:
    """Return the array and the lengths, which are None if all sequences have T steps."""
    if isinstance(inputs, tuple) and len(inputs) != 2:
        msg = f"the batch is a tuple of {len(inputs)}, expected an array or Ragged(x, lengths)"
        raise ArgumentError(msg)
    x, lengths = inputs if isinstance(inputs, tuple) else (inputs, None)
    return Ragged(_blocks.without_empty(x) if _blocks.is_dask(x) else x, lengths)


def existing(batch: Ragged, name: str = "x") -> Array | None:
    """Return booleans (T, B), True for a valid step; None if all steps are valid."""
    if batch.lengths is None:
        return None
    xp, device = _array.namespace(batch.x, name), _array.device(batch.x)
    if batch.x.ndim < 2:
        msg = f"{name} has shape {tuple(batch.x.shape)}, expected (T, B, ...) with lengths"
        raise ShapeError(msg)
    if _blocks.is_dask(batch.x):
        return _blocks.existing(batch.x, batch.lengths)
    steps, entries = batch.x.shape[:2]
    try:
        lengths = _checks.lengths(batch.lengths, Home(xp, device, "float32"), steps, entries)
    except XplstmError as error:
        msg = f"{name}: {error}"
        raise type(error)(msg) from error
    return _steps.existing(xp, "lengths", lengths, steps, device)


def count_existing(exists: Array | None, shape: tuple[int, ...]) -> int:
    """Return the number of valid steps; all steps of `shape` if `exists` is None."""
    if exists is None:
        return math.prod(shape)
    xp = _array.namespace(exists, "exists")
    return int(xp.sum(xp.astype(exists, xp.int64)))


def clear_padding(batch: Ragged, name: str) -> Array:
    """Return the ids of the argument `name`, with 0 after the length of each entry."""
    exists = existing(batch, name)
    if exists is None:
        return batch.x
    xp = _array.namespace(batch.x, name)
    _array.check_integers(name, batch.x)
    return xp.where(exists, batch.x, xp.zeros((), dtype=batch.x.dtype, device=_array.device(batch.x)))
