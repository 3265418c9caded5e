"""Check that arrays are finite, with a flag that avoids synchronisation for arrays on a device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._typing import Array
from xplstm.training import _trees


def are_finite(arrays: Iterable[Array]) -> bool:
    """Return whether all elements of all arrays are finite; waits for a device."""
    flag: Any = True
    with np.errstate(over="ignore", invalid="ignore"):
        for a in arrays:
            if not isinstance(a, np.ndarray):
                flag = _finite(a) & flag
            # A finite sum implies finite elements, and is faster to compute than a test of each element.
            elif not (math.isfinite(np.add.reduce(a, axis=None)) or np.isfinite(a).all()):
                return False
    return bool(flag)


def first_not_finite(arrays: Mapping[str, Array]) -> str | None:
    """Return the name of the first array that contains infinity or NaN."""
    return next((name for name, a in arrays.items() if not are_finite([a])), None)


def gaps(batch: Mapping[str, Any]) -> str:
    """Name the first array of a batch with values that are not finite; "" if all values are finite."""
    for name, a in _trees.leaves(batch):
        kind = _array.dtype_name(a.dtype) if hasattr(a, "dtype") else ""
        if kind.startswith(("float", "bfloat")) and not are_finite([a]):
            return f"{name} of the batch have values that are not finite: fill or drop gaps"
    return ""


def still_finite(alive: Array, arrays: Iterable[Array]) -> Array:
    """Return `alive` and "all elements are finite" as an array of shape (), without synchronisation."""
    for a in arrays:
        alive = alive & _finite(a)
    return alive


def select_finite(alive: Array, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return `new` if `alive`, else `old`, or 0 for arrays not in `old`; shared arrays stay shared."""
    chosen: dict[tuple[int, int], Any] = {}
    result: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if value is before or isinstance(value, int):
            result[name] = value
            continue
        key = id(value), id(before)
        if key not in chosen:
            xp = _array.namespace(value, name)
            other = xp.zeros_like(value) if before is None else _array.detach(before)
            selected = xp.where(alive, _array.detach(value), other)
            chosen[key] = _array.requiring(selected, value)
        result[name] = chosen[key]
    return result


def _finite(a: Array) -> Array:
    """Return whether all elements are finite, as an array of shape ()."""
    xp = _array.namespace(a, "a")
    return xp.all(xp.isfinite(a))
