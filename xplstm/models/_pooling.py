"""Pool the outputs of all steps into one vector, by mean or maximum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from xplstm import _array
from xplstm._typing import Array
from xplstm.nn import _blocks

Pullback = Callable[[Array], Array]


def mean(y: Array, exists: Array | None) -> tuple[Array, Pullback]:
    """Return the mean of `y` (T, ..., H) over the valid steps, and its pullback.

    `exists` has shape (T, ...); None means all steps. The mean over no steps is 0.
    """
    xp, dtype = _array.namespace(y, "y"), _array.dtype_name(y.dtype)
    wide = _array.widen(y)
    if exists is None:
        part = xp.full_like(wide[..., :1], 1.0 / max(y.shape[0], 1))
    else:
        counts = xp.astype(exists, wide.dtype)
        number = xp.sum(counts, axis=0, keepdims=True)
        part = (counts / xp.where(number > 0, number, xp.ones_like(number)))[..., None]

    def pullback(dpooled: Array) -> Array:
        return _array.narrow(part * _array.widen(dpooled)[None, ...], dtype)

    return _array.narrow(xp.sum(wide * part, axis=0), dtype), pullback


def largest(y: Array, exists: Array | None) -> tuple[Array, Pullback]:
    """Return the maximum of each unit over the valid steps, and its pullback.

    The arguments are those of `mean`. The maximum over no steps is 0. The earliest of equal values gets the
    gradient.
    """
    xp = _array.namespace(y, "y")
    if y.shape[0] == 0:
        return xp.zeros(y.shape[1:], dtype=y.dtype, device=_array.device(y)), lambda _: xp.zeros_like(y)
    present = xp.ones_like(y[..., :1], dtype=xp.bool) if exists is None else exists[..., None]
    shown = xp.where(present, y, xp.full_like(y, -float("inf")))
    places = xp.argmax(shown, axis=0, keepdims=True)
    steps = xp.arange(y.shape[0], dtype=places.dtype, device=_array.device(y))
    chosen = (xp.reshape(steps, (-1, *(1,) * (y.ndim - 1))) == places) & present
    pooled = xp.where(xp.any(present, axis=0), xp.max(shown, axis=0), xp.zeros_like(y[0, ...]))

    def pullback(dpooled: Array) -> Array:
        return xp.where(chosen, dpooled[None, ...], xp.zeros_like(y))

    return pooled, pullback


def in_blocks(name: str, y: Any, exists: Any) -> Any:
    """Pool Dask arrays, with one task for each chunk of the batch over all steps."""
    batch = "b" * (y.ndim - 2)
    given = [(y, f"t{batch}f")] if exists is None else [(y, f"t{batch}f"), (exists, f"t{batch}")]
    return _blocks.apply(partial(_pool, name), f"{batch}f", {}, y.dtype, *given)


def _pool(name: str, y: Array, exists: Array | None = None) -> Array:
    """Return the pooled outputs of a block."""
    return POOLS[name](y, exists)[0]


POOLS = {"mean": mean, "max": largest}
