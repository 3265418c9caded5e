"""Waits between blocks that were abandoned: a word of host memory for each device, which its kernels set.

A kernel whose blocks wait for each other gives up after `PATIENCE`. It then writes NaN for what it has not
computed and sets the word of its device. The next launch reads the word, which waits for nothing, and raises.
From then on the kernel runs nothing on that device in this process.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from xplstm._errors import KernelError

PATIENCE = 2.0
"""Seconds that one block waits for another, about a million times what a wait usually takes."""

_demoted: dict[int, str] = {}
"""Why a device runs no kernel that waits, by the number of the device."""


class Status(NamedTuple):
    """The word of one device."""

    memory: Any
    """Keeps the memory: graphs that were captured write to it as long as the process lives."""
    word: np.ndarray
    address: int


@cache
def status(device: int) -> Status:
    """Return the word of a device: page-locked memory, which the host and the device both reach."""
    import cupy as cp

    with cp.cuda.Device(device):
        memory = cp.cuda.alloc_pinned_memory(np.dtype(np.uint32).itemsize)
    word = np.frombuffer(memory, np.uint32, 1)
    word[0] = 0
    return Status(memory, word, memory.ptr)


def check(kernel: str, device: int) -> None:
    """Raise KernelError if a wait of an earlier launch on the device was abandoned, since the last check."""
    word = status(device).word
    if word[0]:
        word[0] = 0
        reason = f"a block of it waited longer than {PATIENCE:g} s for another one on device {device}"
        _demoted[device] = reason
        msg = (
            f"kernel {kernel!r}: {reason}, in an earlier call; what that call had not computed is NaN. "
            f"The kernel does not run on this device again in this process; call again for another one"
        )
        raise KernelError(msg)


def why_not(device: int) -> str | None:
    """Return why kernels that wait do not run on the device in this process, or None."""
    reason = _demoted.get(device)
    return reason and f"{reason}, earlier in this process"
