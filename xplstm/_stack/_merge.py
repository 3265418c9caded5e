"""Merge the outputs of two directions; Schuster and Paliwal (1997) do not prescribe how."""

from __future__ import annotations

from xplstm import _array
from xplstm._typing import Array


def width(merge: str, P: int, directions: int) -> int:
    """Return the number of features of a layer's output inside the stack."""
    return P * directions if merge in ("concat", "none") else P


def forward(merge: str, y: Array) -> Array:
    """Merge the concatenated outputs of two directions; `leave_y` separates them for merge="none"."""
    if merge in ("concat", "none"):
        return y
    first, second = _halves(y)
    if merge == "product":
        merged = first * second
    else:
        merged = first + second if merge == "sum" else (first + second) * 0.5
    return _array.narrow(merged, _array.dtype_name(y.dtype))


def backward(merge: str, y: Array, dy: Array) -> tuple[Array, ...]:
    """Return the gradient with respect to the output of each direction, for concatenation."""
    if merge in ("concat", "none"):
        return (dy,)
    if merge == "sum":
        return (dy, dy)
    first, second = _halves(y)
    wide = _array.widen(dy)
    parts = (wide * second, wide * first) if merge == "product" else (wide * 0.5, wide * 0.5)
    return tuple(_array.narrow(part, _array.dtype_name(dy.dtype)) for part in parts)


def _halves(y: Array) -> tuple[Array, Array]:
    """Return the output of each direction; half precision is widened so that a result is rounded once."""
    P, y = y.shape[-1] // 2, _array.widen(y)
    return y[..., :P], y[..., P:]
