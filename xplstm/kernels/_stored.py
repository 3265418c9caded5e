"""Store float32 weights in bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from xplstm._errors import ArgumentError
from xplstm.cells import FourBlocks, Params

Storage: TypeAlias = Literal["bfloat16", "int8"]
STORAGES: tuple[Storage, ...] = ("bfloat16", "int8")
MATRICES = ("weight_ih", "weight_hh", "weight_hr")

# The largest magnitude of a symmetric int8 range.
LARGEST = 127


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A float32 matrix stored in fewer bits; `numpy.asarray` returns the represented float32 matrix."""

    values: np.ndarray
    """The upper 16 bits of each float32 as uint16, or int8."""
    scales: np.ndarray | None
    """The factor of each row of int8 values, or None for bfloat16."""

    @property
    def nbytes(self) -> int:
        """Size of values and scales in bytes."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.scales is None:
            wide = (self.values.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = self.values * self.scales[:, None]
        return wide if dtype is None else wide.astype(dtype, copy=False)


def store(p: Params, storage: Storage, names: tuple[str, ...]) -> Params:
    """Return parameters with `Stored` matrices; errors use `names` for the fields."""
    named = dict(zip(p._fields, names, strict=True))
    return p._replace(**{field: _store(named[field], a, storage) for field, a in _matrices(p)})


def restore(p: Params) -> Params:
    """Return parameters with float32 matrices instead of `Stored` matrices."""
    return p._replace(**{field: np.asarray(a) for field, a in _matrices(p)})


def move_rows(change: Callable[[Params], FourBlocks], p: Params) -> FourBlocks:
    """Return ``change(p)`` for parameters whose matrices may be `Stored`.

    `change` must move, add and remove only whole rows. It is applied to the values and to the scales.
    """
    stored = [(field, a) for field, a in _matrices(p) if isinstance(a, Stored)]
    if not stored:
        return change(p)
    values = change(p._replace(**{field: a.values for field, a in stored}))
    scales: dict[str, np.ndarray | None] = dict.fromkeys(MATRICES)
    # Broadcast to the shape of the values, because a cell computes its number of units from the shape.
    wide = {
        field: np.broadcast_to(a.scales[:, None], a.values.shape)
        for field, a in stored
        if a.scales is not None
    }
    if wide:
        scales |= {field: a[:, 0].copy() for field, a in _matrices(change(p._replace(**wide)).lstm)}
    both: dict[str, Any] = {field: Stored(a, scales[field]) for field, a in _matrices(values.lstm)}
    return values._replace(lstm=values.lstm._replace(**both))


def _matrices(p: Any) -> list[tuple[str, Any]]:
    """Return the names and values of the matrix fields."""
    return [(field, a) for field in MATRICES if (a := getattr(p, field, None)) is not None]


def _store(name: str, w: Any, storage: Storage) -> Stored:
    """Round a float32 matrix to nearest even; int8 has one scale per row."""
    largest = np.max(np.abs(w), axis=1)
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        msg = f"{name} has {largest[bad[0]]} in row {bad[0]}; weights={storage!r} needs finite numbers"
        raise ArgumentError(msg)
    if storage == "int8":
        # The lower bound avoids a scale of 0 for a row of zeros or of subnormal numbers.
        scales = np.maximum(largest / np.float32(LARGEST), np.finfo(np.float32).tiny)
        return Stored(np.rint(w / scales[:, None]).astype(np.int8), scales)
    bits = np.ascontiguousarray(w).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    values = rounded.astype(np.uint16)
    bad = np.flatnonzero(np.any((values & 0x7F80) == 0x7F80, axis=1))
    if bad.size:
        msg = f"{name} has {largest[bad[0]]} in row {bad[0]}; the largest bfloat16 number is 3.3895314e+38"
        raise ArgumentError(msg)
    return Stored(values, None)
