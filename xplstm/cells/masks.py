"""Draw random masks from a counter-based generator, the same on every backend.

The generator is Philox 4x64-10 of Salmon, Moraes, Dror and Shaw (2011). Element
n of a mask (row-major) is word n % 4 of the block with the counter
(n // 4 + 1, t, stream, purpose). The upper 53 bits of the word, divided by
2**53, are a number in [0, 1). A GPU thread can therefore draw any element
independently.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array, _values
from xplstm._array import part
from xplstm._typing import Array, Device, Namespace

Key = tuple[int, int]


class Purpose(IntEnum):
    """The purpose of a mask; masks of different purposes never share a counter."""

    BETWEEN_LAYERS = 0
    RECURRENT = 1
    ZONEOUT_H = 2
    ZONEOUT_C = 3
    INPUT = 4
    WEIGHT = 5


class Draw(NamedTuple):
    """The key, the counters and the probability of a call's masks of one purpose."""

    key: Key
    purpose: Purpose
    stream: int
    start: int
    """Time of the first step."""
    p: float


def draw_key(rng: Any) -> Key:
    """Return the key of a call's masks: two words drawn from a generator, or from a seed."""
    generator = _values.generator("rng", rng)
    # Two single draws are faster than an array of two, and give the same words.
    return int(generator.integers(0, 2**64, dtype=np.uint64)), int(
        generator.integers(0, 2**64, dtype=np.uint64)
    )


def uniform(shape: tuple[int, ...], key: Key, purpose: Purpose, stream: int, t: int = 0) -> np.ndarray:
    """Draw numbers in [0, 1) for one purpose; `stream` is a layer, or ``layer * D + direction``."""
    counter = np.asarray([0, t, stream, purpose], dtype=np.uint64)
    philox = np.random.Philox(key=np.asarray(key, dtype=np.uint64), counter=counter)
    return np.random.Generator(philox).random(shape)


@part
def scaled_mask(
    xp: Namespace,
    shape: tuple[int, ...],
    p: float,
    key: Key,
    stream: int,
    dtype: str,
    device: Device,
    purpose: Purpose,
) -> Array:
    """Draw an array of `shape` whose elements are 0 with probability p, else 1 / (1 - p)."""
    keep = uniform(shape, key, purpose, stream) >= p
    return _array.asarray(np.where(keep, 1 / (1 - p), 0.0), xp, device, dtype)


@part
def hold_mask(
    xp: Namespace,
    shape: tuple[int, ...],
    p: float,
    key: Key,
    purpose: Purpose,
    stream: int,
    t: int,
    device: Device,
) -> Array:
    """Draw booleans of `shape`, True with probability p where a unit keeps its previous value at `t`."""
    return _array.asarray(uniform(shape, key, purpose, stream, t) < p, xp, device)
