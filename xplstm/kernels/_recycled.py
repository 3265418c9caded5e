"""Allocate large arrays from recycled memory.

An operating system clears every page of new memory, which can take much of the time of a training step. This
allocator therefore keeps a piece of memory whose last array was deleted, for the next array that fits. Idle
and used pieces together never exceed the peak use. The next call of a kernel frees pieces that were idle for
LONG seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import numpy as np

SMALLEST = 2**17
"""The size in bytes from which a system allocator returns the pages of an array immediately."""

LONG = 10.0
"""Seconds after which an idle piece is freed."""

# A piece may be larger than the requested size by this fraction: 1 / _SPARE.
_SPARE = 4

# Arrays begin at a cache line, so that no vector crosses two lines.
_LINE = 64


class Pieces:
    """Pieces of memory, shared by all threads without a lock; every dictionary operation is atomic."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[np.ndarray, float]] = {}
        self.used: dict[int, int] = {}
        self.most = 0

    def take(self, size: int) -> np.ndarray:
        """Return a piece of at least `size` bytes that no array uses."""
        fitting = [
            (piece.size, key)
            for key, (piece, _) in list(self.waiting.items())
            if size <= piece.size <= size + size // _SPARE
        ]
        # Another thread may already have taken a piece.
        taken = (self.waiting.pop(key, None) for _, key in sorted(fitting))
        piece, _ = next((found for found in taken if found is not None), (None, 0.0))
        self._make_room(size if piece is None else piece.size)
        return np.empty(size, np.uint8) if piece is None else piece

    def _make_room(self, size: int) -> None:
        """Free idle pieces, oldest first, until idle and used together are at most the peak use."""
        used = size + sum(list(self.used.values()))
        self.most = max(self.most, used)
        waiting = list(self.waiting.items())
        excess = used + sum(piece.size for _, (piece, _) in waiting) - self.most
        for key, (piece, _) in waiting:
            if excess <= 0:
                return
            self.waiting.pop(key, None)
            excess -= piece.size

    def release(self) -> None:
        """Free all idle pieces, and reset the peak use."""
        self.waiting.clear()
        self.most = sum(list(self.used.values()))

    def free_idle(self) -> None:
        """Free pieces that were idle for LONG seconds."""
        if self.waiting:
            oldest = time.monotonic() - LONG
            for key, (_, since) in list(self.waiting.items()):
                if since < oldest:
                    self.waiting.pop(key, None)


class _Lease:
    """The base object of an array and its views; its deletion returns the memory to the idle pieces."""

    def __init__(self, pieces: Pieces, piece: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        start = piece.ctypes.data
        at = start + -start % _LINE, False
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": at}
        self._pieces, self._piece = pieces, piece
        pieces.used[id(self)] = piece.size

    # `now` is a default argument because the module's names may be gone when the interpreter exits.
    def __del__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._pieces.waiting[id(self._piece)] = self._piece, now()
        del self._pieces.used[id(self)]


pieces = Pieces()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array; a large array uses recycled memory."""
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(pieces, pieces.take(size + _LINE), shape, dtype))


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of zeros, allocated like `empty`."""
    a = empty(shape, dtype)
    a.fill(0)
    return a
