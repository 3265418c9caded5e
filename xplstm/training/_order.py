"""Keyed permutations of the integers in a range: random orders of samples without a table."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 8
SMALLEST = 6  # bits; with fewer, eight rounds do not mix well

_U64 = np.uint64
# The finaliser of MurmurHash3 (Appleby, 2011).
_SHIFT, _FIRST, _SECOND = _U64(33), _U64(0xFF51AFD7ED558CCD), _U64(0xC4CEB9FE1A85EC53)


class Permutation:
    """A bijection of ``[0, size)``, seeded by a few integers.

    A Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom
    functions", 1988) with two halves of equal or nearly equal length permutes the integers of `bits` bits.
    Results of `size` or more are permuted again (cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002). They are less than half of all integers, except for sizes below 32.

    The round keys come from `numpy.random.SeedSequence`, whose output NumPy guarantees. All arithmetic uses
    unsigned 64-bit integers, so that an order is the same on every machine.
    """

    def __init__(self, size: int, *entropy: int) -> None:
        self.size = size
        bits = max((size - 1).bit_length(), SMALLEST)
        self._shift = _U64(bits // 2)
        self._masks = _U64((1 << bits // 2) - 1), _U64((1 << (bits - bits // 2)) - 1)
        self._keys = np.random.SeedSequence(entropy).generate_state(ROUNDS, _U64)

    def __call__(self, places: Any, tweaks: Any = 0) -> np.ndarray:
        """Return the images of integers in ``[0, size)``; each tweak selects another bijection."""
        return self._walk(places, tweaks, range(ROUNDS))

    def inverse(self, images: Any, tweaks: Any = 0) -> np.ndarray:
        """Return the integers whose images are `images`."""
        return self._walk(images, tweaks, range(ROUNDS)[::-1])

    def _walk(self, places: Any, tweaks: Any, rounds: range) -> np.ndarray:
        """Permute repeatedly until all integers are below `size`."""
        given, tweaks = np.broadcast_arrays(np.asarray(places, _U64), np.asarray(tweaks, _U64))
        values = self._network(given, tweaks, rounds)
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside], tweaks[outside], rounds)
        return values.astype(np.int64)

    def _network(self, values: np.ndarray, tweaks: np.ndarray, rounds: range) -> np.ndarray:
        """Permute once; each round changes one half by a function of the other and is its own inverse."""
        low, high = values & self._masks[0], values >> self._shift
        with np.errstate(over="ignore"):
            for k in rounds:
                if k % 2:
                    low = low ^ (_mix((high + self._keys[k]) ^ tweaks) & self._masks[0])
                else:
                    high = high ^ (_mix((low + self._keys[k]) ^ tweaks) & self._masks[1])
        return np.asarray(low | (high << self._shift))


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix integers so that every bit depends on every bit of `x`."""
    x = (x ^ (x >> _SHIFT)) * _FIRST
    x = (x ^ (x >> _SHIFT)) * _SECOND
    return x ^ (x >> _SHIFT)
