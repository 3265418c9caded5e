"""How the outputs of two directions become one layer's output; Schuster and Paliwal (1997) leave it open."""

from __future__ import annotations

from xplstm import _array
from xplstm._typing import Array


def width(merge: str, P: int, directions: int) -> int:
    """Features of a layer's output, inside the stack."""
    return P * directions if merge in ("concat", "none") else P


def forward(merge: str, y: Array) -> Array:
    """One output of the directions' side by side; "none" parts them where the user gets them."""
    if merge in ("concat", "none"):
        return y
    first, second = _halves(y)
    if merge == "product":
        merged = first * second
    else:
        merged = first + second if merge == "sum" else (first + second) * 0.5
    return _array.narrow(merged, _array.dtype_name(y.dtype))


def backward(merge: str, y: Array, dy: Array) -> tuple[Array, ...]:
    """Return the gradients with respect to the part of `y` of each direction, to be concatenated."""
    if merge in ("concat", "none"):
        return (dy,)
    if merge == "sum":
        return (dy, dy)
    first, second = _halves(y)
    wide = _array.widen(dy)
    parts = (wide * second, wide * first) if merge == "product" else (wide * 0.5, wide * 0.5)
    return tuple(_array.narrow(part, _array.dtype_name(dy.dtype)) for part in parts)


def _halves(y: Array) -> tuple[Array, Array]:
    """Each direction's part, half precision widened, so that a result is rounded once."""
    P, y = y.shape[-1] // 2, _array.widen(y)
    return y[..., :P], y[..., P:]
