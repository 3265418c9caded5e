"""Batches: what `fit` trains on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from xplstm import _array, _values
from xplstm._errors import ArgumentError
from xplstm._typing import Array

Batch: TypeAlias = tuple[Any, Any]
Batches: TypeAlias = Sequence[Batch]


class Streams(Sequence[Batch]):
    """Cut one long sequence into batches that continue each other.

    The sequence is laid out as `batch_size` parallel streams, each walked `steps`
    steps a batch; targets are the inputs one step later. So the state after a
    batch is the state before the next: what truncated backpropagation carries.

    Parameters
    ----------
    ids : array, shape (N,)
        Of any library; N greater than `batch_size`. What does not fill a stream
        is left out at the end: fewer than `batch_size` elements.
    batch_size : int
        B, at least 1.
    steps : int
        T of each batch, at least 1; the last batch may be shorter.

    Raises
    ------
    ArgumentError
        If a size is less than 1 or the sequence is too short.

    Examples
    --------
    >>> import numpy as np
    >>> from xplstm.training import Streams
    >>> batches = Streams(np.arange(9), batch_size=2, steps=3)
    >>> inputs, targets = batches[0]
    >>> inputs
    array([[0, 4],
           [1, 5],
           [2, 6]])
    >>> targets[:, 1]
    array([5, 6, 7])
    >>> len(batches), batches[1][0].shape
    (2, (1, 2))
    """

    def __init__(self, ids: Array, batch_size: int, steps: int) -> None:
        _values.size("batch_size", batch_size)
        _values.size("steps", steps)
        length: int = (ids.shape[0] - 1) // batch_size
        if length < 1:
            msg = f"ids has {ids.shape[0]} elements; batch_size={batch_size} asks for {batch_size + 1}"
            raise ArgumentError(msg)
        xp = _array.namespace(ids, "ids")

        def side_by_side(first: int) -> Array:
            streams = xp.reshape(ids[first : first + batch_size * length], (batch_size, length))
            return xp.permute_dims(streams, (1, 0))

        self._inputs, self._targets = side_by_side(0), side_by_side(1)
        self._steps, self._length = steps, length

    def __len__(self) -> int:
        return math.ceil(self._length / self._steps)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            msg = f"index={index} must be in [0, {len(self)})"
            raise IndexError(msg)
        first = index * self._steps
        steps = slice(first, min(first + self._steps, self._length))
        return self._inputs[steps, ...], self._targets[steps, ...]
