"""`LSTMState`, and what can be done with the batch entries of a state, on any array library.

The functions work on one array at a time, which errors call `name`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._typing import Array

_HOST = (np.ndarray, list, tuple, range)


class LSTMState(NamedTuple):
    """State of an LSTM: always h first, then c.

    Its methods change the entries of a batch, for streams that start and end.
    A row is one batch entry. The rows are on axis 1 of three axes. A state of two axes could be
    (B, H), as `lstm` takes it, or (L*D, H), without a batch: there pass ``axis=0``, or use `stack`.
    Rows are integers: one, a list, or an array of NumPy or of the state's library. Values on a
    device are never read.

    Attributes
    ----------
    h : array, shape (L*D, B, H), or (L*D, B, P) with a projection
        Index ``layer * D + direction``.
    c : array, shape (L*D, B, H)

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> state = xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2)))
    >>> h, c = state.reset([1, 2])
    >>> h[0, :, 0]
    array([1., 0., 0., 1.])
    """

    h: Array
    c: Array

    def take(self, rows: Any, *, axis: int | None = None) -> LSTMState:
        """Return some rows, in the given order; a row may be repeated.

        Parameters
        ----------
        rows : int, or integers of shape (N,)
            In [0, B). A single int gives a state without rows.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            With N rows, or without the axis.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> h = np.arange(4.0).reshape(1, 4, 1)
        >>> xplstm.LSTMState(h, h).take([3, 0]).h[0, :, 0]
        array([3., 0.])
        """
        return LSTMState(*(take_entries(n, a, rows, axis_of(n, a, axis)) for n, a in self._named()))

    def reset(self, rows: Any, to: Any = None, *, axis: int | None = None) -> LSTMState:
        """Reset some rows; the others keep their bits.

        Parameters
        ----------
        rows : int, integers of shape (N,), or booleans of shape (B,)
            Rows to reset.
        to : (h, c), optional
            New values, in the shape of this state, or with one row or without the axis of rows for all
            rows. Default: zeros.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            New arrays of the same shapes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> h = np.arange(4.0).reshape(1, 4, 1)
        >>> xplstm.LSTMState(h, h).reset([True, False, False, True], to=(h + 10, h)).h[0, :, 0]
        array([10.,  1.,  2., 13.])
        """
        tos = (None, None) if to is None else pair("to", to)
        return LSTMState(
            *(
                reset_entries(n, a, rows, b, axis_of(n, a, axis))
                for (n, a), b in zip(self._named(), tos, strict=True)
            )
        )

    def zeros(self, count: int, *, axis: int | None = None) -> LSTMState:
        """Return new rows of zeros, the initial state of new batch entries.

        Parameters
        ----------
        count : int
            Number of rows, at least 0.
        axis : int, optional
            Of the rows; 1 if left out, for which the state must have three axes.

        Returns
        -------
        LSTMState
            Of the same library, device, dtype and sizes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Naming what is wrong and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2))).zeros(3).h.shape
        (1, 3, 2)
        """
        return LSTMState(*(zero_entries(n, a, count, axis_of(n, a, axis)) for n, a in self._named()))

    @staticmethod
    def concat(states: Sequence[LSTMState | tuple[Array, Array]], *, axis: int | None = None) -> LSTMState:
        """Join the rows of several states to one batch.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one; the same sizes but for the rows.
        axis : int, optional
            Of the rows; 1 if left out, for which the states must have three axes.

        Returns
        -------
        LSTMState
            The rows of the first, then those of the second, and so on.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming the state and what is wrong with it.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> state = xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2)))
        >>> xplstm.LSTMState.concat([state, state.zeros(1)]).h[0, :, 0]
        array([1., 1., 1., 1., 0.])
        """
        return LSTMState(*(join_entries(n, a, axis_of(n[0], a[0], axis)) for n, a in _columns(states)))

    @staticmethod
    def stack(states: Sequence[LSTMState | tuple[Array, Array]]) -> LSTMState:
        """Make a batch of states that have no rows, as from calls without a batch axis.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one; h and c of shape (L*D, ·) or (·,), the same for all.

        Returns
        -------
        LSTMState
            (L*D, B, ·) or (B, ·), one row a state; ``take`` with an int undoes it.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            Naming the state and what is wrong with it.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> one = xplstm.LSTMState(np.ones((3, 2)), np.ones((3, 2)))
        >>> xplstm.LSTMState.stack([one, one, one, one]).h.shape
        (3, 4, 2)
        """
        return LSTMState(*(stack_entries(names, arrays) for names, arrays in _columns(states)))

    def _named(self) -> tuple[tuple[str, Array], tuple[str, Array]]:
        return ("h", _entered_state("h", self.h)), ("c", _entered_state("c", self.c))


def _columns(states: Sequence[LSTMState | tuple[Array, Array]]) -> list[tuple[list[str], list[Array]]]:
    """Return the h of all states, then the c, each with its name."""
    states = _values.items("states", states)
    pairs = [LSTMState(*pair(f"states[{k}]", state)) for k, state in enumerate(states)]
    if not pairs:
        msg = "states is empty; at least 1 is needed"
        raise ArgumentError(msg)
    columns = []
    for letter in LSTMState._fields:
        names = [f"states[{k}].{letter}" for k in range(len(pairs))]
        columns.append(
            (names, [_entered_state(n, getattr(p, letter)) for n, p in zip(names, pairs, strict=True)])
        )
    return columns


def _entered_state(name: str, a: Array) -> Array:
    """Return an array of floats."""
    _array.namespace(a, name)
    dtype = _array.dtype_name(a.dtype)
    if dtype not in _array.FLOATS:
        msg = f"{name} has dtype {dtype}; it must be one of {', '.join(_array.FLOATS)}"
        raise DTypeError(msg)
    return _array.native(a)


def pair(name: str, value: object) -> tuple[Array, Array]:
    """`value` as (h, c)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        shown = f"{len(value)} items" if isinstance(value, tuple | list) else type(value).__name__
        msg = f"{name} must be a pair (h, c), got {shown}"
        raise DTypeError(msg)
    return value[0], value[1]


def axis_of(name: str, a: Array, axis: int | None) -> int:
    """Return the axis of the batch: 1 of three axes, else the one that the caller gives."""
    if axis is None:
        if a.ndim == 3:
            return 1
        msg = (
            f"{name} has shape {tuple(a.shape)}, expected (L*D, B, size); say axis=0 if this is (B, size), "
            "and stack states that have no rows"
        )
        raise ShapeError(msg)
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < a.ndim - 1:
        msg = f"axis={axis!r} must be in [0, {a.ndim - 1}), an axis of {name} {tuple(a.shape)} but the last"
        raise ArgumentError(msg)
    return axis


def take_entries(name: str, a: Array, rows: Any, axis: int) -> Array:
    """Return the batch entries with these indices, in this order; a single integer drops the axis."""
    count = a.shape[axis]
    if _is_scalar(rows):
        row = _integer(rows)
        if not 0 <= row < count:
            msg = f"rows={row} must be in [0, {count}), the rows of {name}"
            raise ArgumentError(msg)
        return a[(*[slice(None)] * axis, row, ...)]
    numbers = _entered(rows, a)
    kind = _array.dtype_name(numbers.dtype)
    if kind == "bool":
        msg = "rows are booleans; their number must be known, so pass integers, as from numpy.flatnonzero"
        raise DTypeError(msg)
    _check_numbers(numbers, kind, count, name)
    # Adding 0 gives the index a new name: Dask takes one called [0] for a list of offsets.
    return _array.namespace(a, name).take(a, _array.narrow(numbers, "int32") + 0, axis=axis)


def reset_entries(name: str, a: Array, rows: Any, to: Array | None, axis: int) -> Array:
    """Return `a` with zeros, or the values of `to`, in these entries; selected, so that NaN vanishes too."""
    xp = _array.namespace(a, name)
    shape = [1] * a.ndim
    shape[axis] = a.shape[axis]
    mask = _array.reshape(_mask(name, a, rows, axis), tuple(shape))
    return xp.where(mask, xp.zeros_like(a) if to is None else _broadcastable(name, a, to, axis), a)


def join_entries(names: Sequence[str], arrays: Sequence[Array], axis: int) -> Array:
    """All rows, one array's after another's."""
    first = arrays[0]
    for name, a in zip(names, arrays, strict=True):
        wanted: list[int | str] = list(first.shape)
        wanted[axis] = "rows"
        _check_alike(name, a, names[0], first)
        if a.ndim != first.ndim or any(
            g != w for k, (g, w) in enumerate(zip(a.shape, wanted, strict=True)) if k != axis
        ):
            msg = f"{name} has shape {tuple(a.shape)}, expected ({', '.join(map(str, wanted))})"
            raise ShapeError(msg)
    return _array.namespace(first, names[0]).concat(list(arrays), axis=axis)


def stack_entries(names: Sequence[str], arrays: Sequence[Array]) -> Array:
    """Return one array whose entries are the given arrays, along a new axis."""
    first = arrays[0]
    for name, a in zip(names, arrays, strict=True):
        _check_alike(name, a, names[0], first)
        if a.shape != first.shape or a.ndim not in (1, 2):
            wanted = tuple(first.shape) if first.ndim in (1, 2) else "(L*D, size) or (size,)"
            msg = f"{name} has shape {tuple(a.shape)}, expected {wanted}: one member, without an axis of rows"
            raise ShapeError(msg)
    return _array.namespace(first, names[0]).stack(list(arrays), axis=first.ndim - 1)


def zero_entries(name: str, a: Array, count: int, axis: int) -> Array:
    """Return `count` entries of zeros with the shape and dtype of those of `a`."""
    number = _values.size("count", count, 0)
    shape = (*a.shape[:axis], number, *a.shape[axis + 1 :])
    return _array.namespace(a, name).zeros(shape, dtype=a.dtype, device=_array.device(a))


def _is_scalar(rows: Any) -> bool:
    return isinstance(rows, np.generic) or not (isinstance(rows, _HOST) or hasattr(rows, "shape"))


def _integer(value: Any, name: str = "rows") -> int:
    """`value`, which is one integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        msg = f"{name}={value!r} must be an integer" + (" or an array of integers" if name == "rows" else "")
        raise DTypeError(msg)
    return number


def _entered(rows: Any, like: Array) -> Array:
    """Return `rows`, which may be a list or NumPy array, as an array on the device of `like`."""
    xp = _array.namespace(like, "h")
    if isinstance(rows, _HOST):
        rows = np.asarray(
            rows if getattr(rows, "shape", None) == () or len(rows) else np.zeros(0, dtype=np.int32)
        )
        rows = _array.asarray(_array.native(rows), xp, _array.device(like))
    if _array.namespace(rows, "rows") is not xp:
        ours = _array.backend_name(_array.namespace(rows, "rows"))
        msg = f"rows is an array of {ours}, but the state is of {_array.backend_name(xp)}"
        raise BackendError(msg)
    if rows.ndim != 1:
        msg = f"rows has shape {tuple(rows.shape)}, expected one axis"
        raise ShapeError(msg)
    return rows


def _check_numbers(numbers: Array, kind: str, count: int, name: str) -> None:
    """Refuse what is no row, where looking at it does not wait for a device."""
    if not kind.startswith(("int", "uint")):
        msg = f"rows has dtype {kind}, expected integers"
        raise DTypeError(msg)
    if _array.is_lazy(numbers):
        return
    for place, row in enumerate(_array.to_numpy(numbers).tolist()):
        if not 0 <= row < count:
            msg = f"rows[{place}]={row} must be in [0, {count}), the rows of {name}"
            raise ArgumentError(msg)


def _mask(name: str, a: Array, rows: Any, axis: int) -> Array:
    """(B,) booleans, from these or from row numbers."""
    xp, count = _array.namespace(a, name), a.shape[axis]
    rows = _entered([_integer(rows)] if _is_scalar(rows) else rows, a)
    kind = _array.dtype_name(rows.dtype)
    if kind == "bool":
        if rows.shape[0] != count:
            msg = f"rows has shape {tuple(rows.shape)}, expected ({count},): one boolean a row of {name}"
            raise ShapeError(msg)
        return rows
    _check_numbers(rows, kind, count, name)
    numbers = xp.arange(count, dtype=rows.dtype, device=_array.device(rows))
    return xp.any(numbers[:, None] == rows[None, :], axis=1)


def _broadcastable(name: str, a: Array, to: Array, axis: int) -> Array:
    """`to` with as many rows as `a`, or one for all."""
    _check_alike(f"to.{name}", to, name, a)
    given = tuple(to.shape)
    if to.ndim == a.ndim - 1:
        to = _array.namespace(a, name).expand_dims(to, axis=axis)
    one = (*a.shape[:axis], 1, *a.shape[axis + 1 :])
    if tuple(to.shape) not in (tuple(a.shape), one):
        msg = f"to.{name} has shape {given}, expected {tuple(a.shape)}, or {one} for all rows alike"
        raise ShapeError(msg)
    return to


def _check_alike(name: str, a: Array, first_name: str, first: Array) -> None:
    """Refuse an array of another library, device or dtype."""
    given, wanted = (
        (_array.backend_name(_array.namespace(b, n)), _array.device(b), _array.dtype_name(b.dtype))
        for n, b in ((name, a), (first_name, first))
    )
    if given[:2] != wanted[:2]:
        msg = f"{name} is of {given[0]} on {given[1]}, but {first_name} is of {wanted[0]} on {wanted[1]}"
        raise BackendError(msg)
    if given[2] != wanted[2]:
        msg = f"{name} has dtype {given[2]}, but {first_name} is {wanted[2]}"
        raise DTypeError(msg)
