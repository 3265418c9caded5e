"""Decide whether CUDA kernels run parts of training on CuPy's arrays; `xplstm._array.part` asks.

They run while one of the library's kernels for GPUs is pinned, and without a pin once a GPU has proven them.
Another pin, as of the reference, keeps to the generic code.
"""

from __future__ import annotations

import sys
from types import ModuleType

from xplstm import _choice
from xplstm.kernels._cuda import proof, training

KERNELS = ("cupy_persistent", "cupy_fused")


def room() -> ModuleType | None:
    """Return the module that launches the CUDA kernels, or None where the generic code has to run."""
    pinned = _choice.kernel.get()
    runs = proven() if pinned is None else pinned in KERNELS
    return training if runs else None


def proven() -> bool:
    """Whether the CUDA kernels have passed their trials on CuPy's current device."""
    return proof.decide("training", "all", sys.modules["cupy"].cuda.Device()).passed
