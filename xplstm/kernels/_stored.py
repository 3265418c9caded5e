"""Weights stored in fewer bits than the float32 that they are computed in."""

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

# The largest integer of int8 whose negative is one too.
LARGEST = 127


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A float32 matrix in fewer bits; `numpy.asarray` gives the float32 matrix that it represents."""

    values: np.ndarray
    """The upper halves of floats as uint16, or int8."""
    scales: np.ndarray | None
    """Of int8: what the integers of each row are multiplied by."""

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.scales is None:
            wide = (self.values.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = self.values * self.scales[:, None]
        return wide if dtype is None else wide.astype(dtype, copy=False)


def store(p: Params, storage: Storage, names: tuple[str, ...]) -> Params:
    """Return parameters whose matrices are `Stored`; `names` are those of the fields, for errors."""
    called = dict(zip(p._fields, names, strict=True))
    return p._replace(**{field: _store(called[field], a, storage) for field, a in _matrices(p)})


def restore(p: Params) -> Params:
    """Return parameters with float32 matrices in place of `Stored` ones."""
    return p._replace(**{field: np.asarray(a) for field, a in _matrices(p)})


def move_rows(change: Callable[[Params], FourBlocks], p: Params) -> FourBlocks:
    """Return ``change(p)`` of parameters whose matrices may be `Stored`.

    `change` moves, adds and leaves out whole rows: those of the values and those of their scales.
    """
    stored = [(field, a) for field, a in _matrices(p) if isinstance(a, Stored)]
    if not stored:
        return change(p)
    values = change(p._replace(**{field: a.values for field, a in stored}))
    scales: dict[str, np.ndarray | None] = dict.fromkeys(MATRICES)
    # In the shape of the values, from which a cell takes the number of its units.
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
    """Return the names and values of the fields that are matrices."""
    return [(field, a) for field in MATRICES if (a := getattr(p, field, None)) is not None]


def _store(name: str, w: Any, storage: Storage) -> Stored:
    """Round a float32 matrix: to nearest even, and each row of int8 with its own scale."""
    largest = np.max(np.abs(w), axis=1)
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        msg = f"{name} has {largest[bad[0]]} in row {bad[0]}, expected finite weights to store in {storage}"
        raise ArgumentError(msg)
    if storage == "int8":
        # The smallest normal number keeps a row of zeros and one of subnormal numbers from a scale of 0.
        scales = np.maximum(largest / np.float32(LARGEST), np.finfo(np.float32).tiny)
        return Stored(np.rint(w / scales[:, None]).astype(np.int8), scales)
    bits = np.ascontiguousarray(w).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    values = rounded.astype(np.uint16)
    bad = np.flatnonzero(np.any((values & 0x7F80) == 0x7F80, axis=1))
    if bad.size:
        msg = f"{name} has {largest[bad[0]]} in row {bad[0]}, above the largest bfloat16, 3.3895314e+38"
        raise ArgumentError(msg)
    return Stored(values, None)
