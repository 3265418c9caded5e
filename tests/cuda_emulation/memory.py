"""Memory of the emulated device, with marked bytes around every array."""

from __future__ import annotations

import weakref
from typing import ClassVar

import numpy as np

MARGIN = 1024
MARK = 0xA5


class Memory:
    """Bytes of one array, with marked bytes on both sides."""

    everything: ClassVar[weakref.WeakSet[Memory]] = weakref.WeakSet()
    made = 0

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size + 2 * MARGIN + 256, MARK, np.uint8)
        base = self.bytes.ctypes.data
        self.first = -(-(base + MARGIN) // 256) * 256 - base
        self.size = size
        self.start = base + self.first
        Memory.made += 1
        self.number = Memory.made
        Memory.everything.add(self)

    def inside(self) -> np.ndarray:
        return self.bytes[self.first : self.first + self.size]

    def unharmed(self) -> bool:
        before, after = self.bytes[: self.first], self.bytes[self.first + self.size :]
        return bool((before == MARK).all() and (after == MARK).all())


def check_margins() -> None:
    assert all(memory.unharmed() for memory in Memory.everything), "something wrote outside an array"
