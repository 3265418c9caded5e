"""Large arrays in memory that is used again.

An operating system hands out memory in small pages and clears each: a training step that asks for its
residuals and gradients in each step may spend much of its time on that. Here a piece whose last array is gone
waits for the next that fits. Pieces that wait and those in use together are never more than was in use at
one time, and what waited for long goes back when a kernel is called next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import numpy as np

SMALLEST = 2**17
"""Bytes of an array from which on an allocator gives its pages back at once."""

LONG = 10.0
"""Seconds after which an idle piece is freed."""

# A piece may be larger than what it is used for by one part in this many.
_SPARE = 4

# Arrays begin at a cache line, so that no vector of numbers crosses two.
_LINE = 64


class Pieces:
    """Memory of any thread: each step is one that a dictionary does by itself."""

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
        # Another thread may have been faster.
        taken = (self.waiting.pop(key, None) for _, key in sorted(fitting))
        piece, _ = next((found for found in taken if found is not None), (None, 0.0))
        self._make_room(size if piece is None else piece.size)
        return np.empty(size, np.uint8) if piece is None else piece

    def _make_room(self, size: int) -> None:
        """Free idle pieces, oldest first, until idle and used together are at most the peak of use."""
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
        """Give back all that waits, and keep no more than what is used now."""
        self.waiting.clear()
        self.most = sum(list(self.used.values()))

    def free_idle(self) -> None:
        """Free what has been idle for LONG."""
        if self.waiting:
            oldest = time.monotonic() - LONG
            for key, (_, since) in list(self.waiting.items()):
                if since < oldest:
                    self.waiting.pop(key, None)


class _Lease:
    """What an array refers to, and every view of it: when all are gone, their memory waits again."""

    def __init__(self, pieces: Pieces, piece: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        start = piece.ctypes.data
        at = start + -start % _LINE, False
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": at}
        self._pieces, self._piece = pieces, piece
        pieces.used[id(self)] = piece.size

    # A default, as the name of the module may be gone when an interpreter ends before its last array does.
    def __del__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._pieces.waiting[id(self._piece)] = self._piece, now()
        del self._pieces.used[id(self)]


pieces = Pieces()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of any values; a large one in memory that was used before."""
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(pieces, pieces.take(size + _LINE), shape, dtype))


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of zeros, from the same memory as `empty`."""
    a = empty(shape, dtype)
    a.fill(0)
    return a
