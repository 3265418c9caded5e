"""Large arrays in memory that is used again.

An operating system hands out memory in small pages and clears each: a training step that asks for its
residuals and gradients anew may spend a quarter of its time on that. Here a piece whose last array
is gone waits for the next that fits. Pieces that wait and those in use together are never more than
was in use at one time, and what is not wanted again for long is given back.
"""

from __future__ import annotations

import sys
import threading
from math import prod

import numpy as np

SMALLEST = 2**20
"""Bytes of an array from which on it is worth while."""

# A piece may be larger than what it is used for by one part in this many.
_SPARE = 4

# By how much of its excess the most that was used at one time is forgotten with every piece taken.
_FORGET = 64

# Arrays begin where a line of the cache does, so that no vector of numbers lies in two.
_LINE = 64


def _references(pieces: list[np.ndarray]) -> list[int]:
    """Of each piece; NumPy lets an array that is made of another refer to that one."""
    return [sys.getrefcount(piece) for piece in pieces]


_IDLE = _references([np.empty(1)])[0]


class _Pieces(threading.local):
    """Those of one thread; an array made of one may go anywhere."""

    def __init__(self) -> None:
        self.all: list[np.ndarray] = []
        self.most = 0

    def take(self, size: int) -> np.ndarray:
        """A piece of at least `size` bytes that no array uses."""
        idle = [self.all[n] for n, count in enumerate(_references(self.all)) if count == _IDLE]
        used = sum(piece.size for piece in self.all) - sum(piece.size for piece in idle)
        fitting = [piece for piece in idle if size <= piece.size <= size + size // _SPARE]
        best = min(fitting, key=lambda piece: piece.size, default=None)
        used += size if best is None else best.size
        self.most = max(used, self.most - (self.most - used) // _FORGET)
        waiting = [piece for piece in idle if piece is not best]
        excess = used + sum(piece.size for piece in waiting) - self.most
        while excess > 0 and waiting:
            piece = waiting.pop(0)
            excess -= piece.size
            self.all = [other for other in self.all if other is not piece]
        if best is None:
            best = np.empty(size, np.uint8)
            self.all.append(best)
        return best


_pieces = _Pieces()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array whose elements may be anything; a large one in memory that was used before."""
    size = prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    piece = _pieces.take(size + _LINE)
    first = -piece.ctypes.data % _LINE
    return piece[first : first + size].view(dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The same of zeros."""
    a = empty(shape, dtype)
    a.fill(0)
    return a
