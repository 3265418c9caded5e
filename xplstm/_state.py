"""Define `LSTMState`, and select, reset and join the batch entries of a state.

The functions work with any array library, on one array at a time. Errors call this array `name`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array, _values
from xplstm._errors import ArgumentError, BackendError, DTypeError, ShapeError
from xplstm._summary import brief
from xplstm._typing import Array

_HOST = (np.ndarray, list, tuple, range)


class LSTMState(NamedTuple):
    """State of an LSTM: h first, then c.

    The methods select, reset and join batch entries, for streams that start and end. In these methods, a
    batch entry is called a row. The rows are on axis 1 of an array with three axes. An array with two axes
    may have the shape (B, H), as in `lstm`; pass ``axis=0`` for it. It may also have the shape (L*D, H),
    without a batch; call `stack` first. The argument `rows` is an integer, a list of integers, or an array of
    NumPy or of the state's library. Values on a device are never read.

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

    def __repr__(self) -> str:
        return brief(self)

    def take(self, rows: Any, *, axis: int | None = None) -> LSTMState:
        """Return the selected rows in the order of `rows`; a row may be repeated.

        Parameters
        ----------
        rows : int, or integers of shape (N,)
            In [0, B). A single int gives a state without the axis of rows.
        axis : int, optional
            Axis of the rows. Without it, the axis is 1 and the arrays must have three axes.

        Returns
        -------
        LSTMState
            State with N rows, or without the axis.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            If an argument is invalid. The message names the argument, its value and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> h = np.arange(4.0).reshape(1, 4, 1)
        >>> xplstm.LSTMState(h, h).take([3, 0]).h[0, :, 0]
        array([3., 0.])
        """
        return LSTMState(*(take_entries(n, a, rows, axis_of(n, a, axis)) for n, a in self._name_arrays()))

    def reset(self, rows: Any, to: Any = None, *, axis: int | None = None) -> LSTMState:
        """Reset the given rows, and keep the bits of all other rows.

        Parameters
        ----------
        rows : int, integers of shape (N,), or booleans of shape (B,)
            Rows to reset.
        to : (h, c), optional
            New values in the shape of this state. Values with one row, or without the axis of rows, apply
            to all given rows. Zeros if omitted.
        axis : int, optional
            Axis of the rows. Without it, the axis is 1 and the arrays must have three axes.

        Returns
        -------
        LSTMState
            New arrays of the same shapes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            If an argument is invalid. The message names the argument, its value and the bound.

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
                for (n, a), b in zip(self._name_arrays(), tos, strict=True)
            )
        )

    def zeros(self, count: int, *, axis: int | None = None) -> LSTMState:
        """Return new rows of zeros, the initial state of new batch entries.

        Parameters
        ----------
        count : int
            Number of rows, at least 0.
        axis : int, optional
            Axis of the rows. Without it, the axis is 1 and the arrays must have three axes.

        Returns
        -------
        LSTMState
            Zeros with the same library, device, dtype and sizes.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            If an argument is invalid. The message names the argument, its value and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> xplstm.LSTMState(np.ones((1, 4, 2)), np.ones((1, 4, 2))).zeros(3).h.shape
        (1, 3, 2)
        """
        return LSTMState(*(zero_entries(n, a, count, axis_of(n, a, axis)) for n, a in self._name_arrays()))

    @staticmethod
    def concat(states: Sequence[LSTMState | tuple[Array, Array]], *, axis: int | None = None) -> LSTMState:
        """Join the rows of several states into one batch.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one. All shapes must agree except for the number of rows.
        axis : int, optional
            Axis of the rows. Without it, the axis is 1 and the arrays must have three axes.

        Returns
        -------
        LSTMState
            The rows of all states, in the order of the states.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            If a state is invalid. The message names the state and the bound.

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
        """Stack states without rows, as from calls without a batch axis, into one batch.

        Parameters
        ----------
        states : sequence of (h, c)
            At least one. All states must have the same shapes, (L*D, ·) or (·,).

        Returns
        -------
        LSTMState
            Shapes (L*D, B, ·) or (B, ·), with one row per state. ``take`` with an int is the inverse.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, BackendError
            If a state is invalid. The message names the state and the bound.

        Examples
        --------
        >>> import numpy as np
        >>> import xplstm
        >>> one = xplstm.LSTMState(np.ones((3, 2)), np.ones((3, 2)))
        >>> xplstm.LSTMState.stack([one, one, one, one]).h.shape
        (3, 4, 2)
        """
        return LSTMState(*(stack_entries(names, arrays) for names, arrays in _columns(states)))

    def _name_arrays(self) -> tuple[tuple[str, Array], tuple[str, Array]]:
        return ("h", _array.float_array("h", self.h)), ("c", _array.float_array("c", self.c))


def _columns(states: Sequence[LSTMState | tuple[Array, Array]]) -> list[tuple[list[str], list[Array]]]:
    """Return the names and arrays: h of all states, then c of all states."""
    states = _values.items("states", states, 1)
    pairs = [LSTMState(*pair(f"states[{k}]", state)) for k, state in enumerate(states)]
    columns = []
    for letter in LSTMState._fields:
        names = [f"states[{k}].{letter}" for k in range(len(pairs))]
        columns.append(
            (names, [_array.float_array(n, getattr(p, letter)) for n, p in zip(names, pairs, strict=True)])
        )
    return columns


def pair(name: str, value: object) -> tuple[Array, Array]:
    """Return `value`, checked to be a pair (h, c)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        shown = f"{len(value)} items" if isinstance(value, tuple | list) else type(value).__name__
        msg = f"{name} must be a pair (h, c), got {shown}"
        raise DTypeError(msg)
    return value[0], value[1]


def axis_of(name: str, a: Array, axis: int | None) -> int:
    """Return the batch axis: the given one, or 1 for an array with three axes."""
    if axis is None:
        if a.ndim == 3:
            return 1
        msg = (
            f"{name} has shape {tuple(a.shape)}, expected (L*D, B, size); pass axis=0 for the shape "
            "(B, size), and call LSTMState.stack for states without a batch axis"
        )
        raise ShapeError(msg)
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < a.ndim - 1:
        msg = f"axis={axis!r} must be in [0, {a.ndim - 1}), for {name} of shape {tuple(a.shape)}"
        raise ArgumentError(msg)
    return axis


def take_entries(name: str, a: Array, rows: Any, axis: int) -> Array:
    """Return the batch entries at the indices `rows`, in that order; a single integer drops the axis."""
    count = a.shape[axis]
    if _is_scalar(rows):
        row = _integer(rows)
        if not 0 <= row < count:
            msg = f"rows={row} must be in [0, {count}), the batch entries of {name}"
            raise ArgumentError(msg)
        return a[(*[slice(None)] * axis, row, ...)]
    numbers = _convert_rows(rows, a)
    if _array.dtype_name(numbers.dtype) == "bool":
        msg = "rows has dtype bool, expected integers; convert a NumPy mask with numpy.flatnonzero"
        raise DTypeError(msg)
    _check_numbers(numbers, count, name)
    # Dask mistakes an index [0] for its own list of offsets. Adding 0 makes a new array with another name.
    return _array.namespace(a, name).take(a, _array.narrow(numbers, "int32") + 0, axis=axis)


def reset_entries(name: str, a: Array, rows: Any, to: Array | None, axis: int) -> Array:
    """Return `a` with zeros, or the values of `to`, in the batch entries `rows`; this removes NaN too."""
    xp = _array.namespace(a, name)
    shape = [1] * a.ndim
    shape[axis] = a.shape[axis]
    mask = _array.reshape(_mask(name, a, rows, axis), tuple(shape))
    return xp.where(mask, xp.zeros_like(a) if to is None else _broadcastable(name, a, to, axis), a)


def join_entries(names: Sequence[str], arrays: Sequence[Array], axis: int) -> Array:
    """Concatenate the batch entries of all arrays."""
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
    """Stack the arrays along a new batch axis."""
    first = arrays[0]
    for name, a in zip(names, arrays, strict=True):
        _check_alike(name, a, names[0], first)
        if a.shape != first.shape or a.ndim not in (1, 2):
            wanted = tuple(first.shape) if first.ndim in (1, 2) else "(L*D, size) or (size,)"
            msg = f"{name} has shape {tuple(a.shape)}, expected {wanted}, without a batch axis"
            raise ShapeError(msg)
    return _array.namespace(first, names[0]).stack(list(arrays), axis=first.ndim - 1)


def zero_entries(name: str, a: Array, count: int, axis: int) -> Array:
    """Return `count` batch entries of zeros, with the sizes and dtype of `a`."""
    number = _values.size("count", count, 0)
    shape = (*a.shape[:axis], number, *a.shape[axis + 1 :])
    return _array.namespace(a, name).zeros(shape, dtype=a.dtype, device=_array.device(a))


def _is_scalar(rows: Any) -> bool:
    return isinstance(rows, np.generic) or not (isinstance(rows, _HOST) or hasattr(rows, "shape"))


def _integer(value: Any, name: str = "rows") -> int:
    """Return `value`, checked to be one integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        msg = f"{name}={value!r} must be an integer" + (" or an array of integers" if name == "rows" else "")
        raise DTypeError(msg)
    return number


def _convert_rows(rows: Any, like: Array) -> Array:
    """Return `rows`, such as a list or a NumPy array, as an array on the device of `like`."""
    xp = _array.namespace(like, "h")
    if isinstance(rows, _HOST):
        empty = getattr(rows, "shape", None) != () and not len(rows)
        try:
            rows = np.zeros(0, dtype=np.int32) if empty else np.asarray(rows)
        except ValueError as error:
            msg = f"rows={rows!r} must be an integer or an array of integers"
            raise DTypeError(msg) from error
        rows = _array.asarray(_array.native(rows), xp, _array.device(like))
    if _array.namespace(rows, "rows") is not xp:
        ours = _array.backend_name(_array.namespace(rows, "rows"))
        msg = f"rows is an array from {ours}, but the state is from {_array.backend_name(xp)}"
        raise BackendError(msg)
    if rows.ndim != 1:
        msg = f"rows has shape {tuple(rows.shape)}, expected one axis"
        raise ShapeError(msg)
    return rows


def _check_numbers(numbers: Array, count: int, name: str) -> None:
    """Raise an error for indices that are out of bounds; indices on a device are not read."""
    _array.check_integers("rows", numbers)
    if _array.is_lazy(numbers):
        return
    for place, row in enumerate(_array.to_numpy(numbers).tolist()):
        if not 0 <= row < count:
            msg = f"rows[{place}]={row} must be in [0, {count}), the batch entries of {name}"
            raise ArgumentError(msg)


def _mask(name: str, a: Array, rows: Any, axis: int) -> Array:
    """Return (B,) booleans, from booleans or from the indices of batch entries."""
    xp, count = _array.namespace(a, name), a.shape[axis]
    rows = _convert_rows([_integer(rows)] if _is_scalar(rows) else rows, a)
    if _array.dtype_name(rows.dtype) == "bool":
        if rows.shape[0] != count:
            msg = f"rows has shape {tuple(rows.shape)}, expected ({count},): one boolean per entry of {name}"
            raise ShapeError(msg)
        return rows
    _check_numbers(rows, count, name)
    numbers = xp.arange(count, dtype=rows.dtype, device=_array.device(rows))
    return xp.any(numbers[:, None] == rows[None, :], axis=1)


def _broadcastable(name: str, a: Array, to: Array, axis: int) -> Array:
    """Return `to` with the shape of `a`, or with one batch entry for all."""
    _check_alike(f"to.{name}", to, name, a)
    given = tuple(to.shape)
    if to.ndim == a.ndim - 1:
        to = _array.namespace(a, name).expand_dims(to, axis=axis)
    one = (*a.shape[:axis], 1, *a.shape[axis + 1 :])
    if tuple(to.shape) not in (tuple(a.shape), one):
        msg = f"to.{name} has shape {given}, expected {tuple(a.shape)}, or {one} for all batch entries"
        raise ShapeError(msg)
    return to


def _check_alike(name: str, a: Array, first_name: str, first: Array) -> None:
    """Raise an error if an array has another library, device or dtype than `first`."""
    given, wanted = (
        (_array.backend_name(_array.namespace(b, n)), _array.device(b), _array.dtype_name(b.dtype))
        for n, b in ((name, a), (first_name, first))
    )
    if given[:2] != wanted[:2]:
        msg = f"{name} is from {given[0]} on {given[1]}, but {first_name} is from {wanted[0]} on {wanted[1]}"
        raise BackendError(msg)
    if given[2] != wanted[2]:
        msg = f"{name} has dtype {given[2]}, but {first_name} is {wanted[2]}"
        raise DTypeError(msg)
