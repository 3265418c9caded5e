"""Dropout masks from a counter-based generator, the same on every backend.

Philox 4x64-10 of Salmon, Moraes, Dror and Shaw (2011). Element n of a mask
(row-major) is word n % 4 of the block whose counter is (n // 4 + 1, 0, stream,
0); it is kept where the word's upper 53 bits, as a fraction of 2**53, are at
least p. A GPU can therefore make any element by itself.
"""

from __future__ import annotations

import numpy as np

from xplstm import _array
from xplstm._typing import Array, Device, Namespace


def draw_key(rng: int | np.random.Generator) -> np.ndarray:
    """The two words that a call's masks come from: the next of a generator, or those of a seed."""
    return np.random.default_rng(rng).integers(0, 2**64, size=2, dtype=np.uint64)


def scaled_mask(
    xp: Namespace, shape: tuple[int, ...], p: float, key: np.ndarray, stream: int, dtype: str, device: Device
) -> Array:
    """Array of `shape`: 0 with probability p, else 1 / (1 - p)."""
    philox = np.random.Philox(key=key, counter=np.asarray([0, 0, stream, 0], dtype=np.uint64))
    keep = np.random.Generator(philox).random(shape) >= p
    return _array.asarray(np.where(keep, 1 / (1 - p), 0.0), xp, device, dtype)
