"""Input of the estimators: sequences of equal or different lengths, or rows of a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from xplstm._errors import DTypeError
from xplstm._typing import Array
from xplstm.models import Ragged, pad


@dataclass(frozen=True)
class Sequences:
    """Sequences of equal length as one array (n, T, F) or (n, T), or of different lengths as a list."""

    items: np.ndarray | list[np.ndarray]
    of_table: bool

    def __len__(self) -> int:
        return len(self.items)

    @property
    def features(self) -> int:
        """Number of features of a step, or of columns of a table."""
        return int(self.items[0].shape[0 if self.of_table else -1])

    def take(self, part: np.ndarray) -> Array | Ragged:
        """Return the selected sequences as a time-major batch."""
        if isinstance(self.items, np.ndarray):
            return np.ascontiguousarray(self.items[part].swapaxes(0, 1))
        return pad([self.items[k] for k in part])

    def part(self, numbers: np.ndarray) -> Self:
        """Return the selected sequences."""
        if isinstance(self.items, np.ndarray):
            return replace(self, items=self.items[numbers])
        return replace(self, items=[self.items[k] for k in numbers])

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Apply a function to the arrays."""
        if isinstance(self.items, np.ndarray):
            return replace(self, items=function(self.items))
        return replace(self, items=[function(a) for a in self.items])

    def each_step(self, numbers: np.ndarray) -> np.ndarray:
        """Repeat the number of each sequence for each of its steps."""
        return np.repeat(numbers, [len(a) for a in self.items])

    def steps(self) -> np.ndarray:
        """Return every step of every sequence, (N, F)."""
        if isinstance(self.items, np.ndarray):
            return self.items.reshape(-1, self.items.shape[-1])
        return np.concatenate(self.items)


def without_names(X: Any) -> Any:
    """Return an xarray.DataArray as an array with time as second axis; reject ambiguous data."""
    xarray, pandas = sys.modules.get("xarray"), sys.modules.get("pandas")
    if xarray is not None and isinstance(X, xarray.Dataset):
        msg = "X is an xarray.Dataset; pass X.to_dataarray('feature').transpose(sample, 'time', 'feature')"
        raise DTypeError(msg)
    if xarray is not None and isinstance(X, xarray.DataArray):
        if "time" in X.dims:
            others = [dim for dim in X.dims if dim != "time"]
            X = X.transpose(*others[:1], "time", *others[1:])
        return X.to_numpy()
    if pandas is not None and isinstance(X, pandas.DataFrame) and isinstance(X.index, pandas.MultiIndex):
        msg = (
            "X is a DataFrame whose index has several levels; pass a list of sequences, "
            "[part.to_numpy() for _, part in X.groupby(level=0, sort=False)]"
        )
        raise DTypeError(msg)
    return X


def time_first(sequence: Any) -> Any:
    """Return an xarray.DataArray with the dimension ``time`` first, and other sequences unchanged."""
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(sequence, xarray.DataArray) and "time" in sequence.dims:
        return sequence.transpose("time", ...)
    return sequence


def sequences_of(X: Any) -> Sequence[Any] | None:
    """Return the items of a list, tuple, or array or series of objects, if they are sequences; else None."""
    objects = getattr(X, "ndim", 0) == 1 and getattr(X, "dtype", None) == np.dtype(object)
    if not (isinstance(X, list | tuple) or objects) or not len(X):
        return None
    items = list(X) if objects else X
    return items if all(np.ndim(a) >= 1 for a in items if not isinstance(a, str | bytes | dict)) else None


def is_table(sequences: Sequence[Any]) -> bool:
    """Return whether the sequences are lists of numbers of equal length, a table for scikit-learn."""
    lists = all(isinstance(row, list | tuple) for row in sequences)
    return lists and len({len(row) for row in sequences}) == 1 and np.ndim(sequences[0][0]) == 0
