"""How the outputs of two directions become one layer's output; Schuster and Paliwal (1997) leave it open."""

from __future__ import annotations

from xplstm._typing import Array

MERGES = ("concat", "sum", "mean", "product", "none")


def width(merge: str, P: int, directions: int) -> int:
    """Features of a layer's output, inside the stack."""
    return P * directions if merge in ("concat", "none") else P


def forward(merge: str, y: Array) -> Array:
    """One output of the directions' side by side; "none" parts them where the user gets them."""
    if merge in ("concat", "none"):
        return y
    first, second = _halves(y)
    if merge == "product":
        return first * second
    return first + second if merge == "sum" else (first + second) * 0.5


def backward(merge: str, y: Array, dy: Array) -> tuple[Array, ...]:
    """Gradients by each direction's part of `y`, side by side along the last axis."""
    if merge in ("concat", "none"):
        return (dy,)
    if merge == "product":
        first, second = _halves(y)
        return dy * second, dy * first
    return (dy, dy) if merge == "sum" else (dy * 0.5, dy * 0.5)


def _halves(y: Array) -> tuple[Array, Array]:
    P = y.shape[-1] // 2
    return y[..., :P], y[..., P:]
