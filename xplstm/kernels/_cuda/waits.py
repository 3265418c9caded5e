"""Detect abandoned waits between blocks, by a word of host memory for each device.

A block that waits for another block gives up after `PATIENCE` seconds. The kernel then writes NaN for all
results that it has not computed, and sets the word of its device. The next launch reads the word without
synchronisation and raises an error. Afterwards the kernel does not run on that device in this process.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from xplstm._errors import KernelError

PATIENCE = 2.0
"""Seconds that one block waits for another, about a million times the usual wait."""

_demoted: dict[int, str] = {}
"""By device number, why the device runs no kernel whose blocks wait."""


class Status(NamedTuple):
    """The word of one device, which its kernels set after an abandoned wait."""

    memory: Any
    """Owner of the memory, which is never freed: captured graphs may write to it at any time."""
    word: np.ndarray
    address: int


@cache
def status(device: int) -> Status:
    """Return the word of a device, in page-locked memory that host and device can access."""
    import cupy as cp

    with cp.cuda.Device(device):
        memory = cp.cuda.alloc_pinned_memory(np.dtype(np.uint32).itemsize)
    word = np.frombuffer(memory, np.uint32, 1)
    word[0] = 0
    return Status(memory, word, memory.ptr)


def check(kernel: str, device: int) -> None:
    """Raise KernelError if a launch on the device abandoned a wait since the last check."""
    word = status(device).word
    if word[0]:
        word[0] = 0
        reason = f"a block waited longer than {PATIENCE:g} s for another block on device {device}"
        _demoted[device] = reason
        msg = (
            f"kernel {kernel!r}: {reason} in an earlier call, whose missing results are NaN. "
            f"The kernel does not run on this device again in this process; call again to use another kernel"
        )
        raise KernelError(msg)


def why_not(device: int) -> str | None:
    """Return why kernels whose blocks wait do not run on the device in this process, or None."""
    reason = _demoted.get(device)
    return reason and f"{reason}, earlier in this process"
