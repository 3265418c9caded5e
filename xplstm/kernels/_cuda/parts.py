"""Decide whether CUDA kernels run losses, optimisers, dropout and embeddings of CuPy arrays.

`xplstm._array.faster` calls this module. The CUDA kernels run if one of `proof.KERNELS` is pinned. Without
a pin, they run if the device has a proof. With another pin, the generic code runs.
"""

from __future__ import annotations

import sys
from types import ModuleType

from xplstm import _choice
from xplstm.kernels._cuda import proof, training


def room() -> ModuleType | None:
    """Return the module that launches the CUDA kernels, or None if the generic code must run."""
    pinned = _choice.kernel.get()
    runs = is_proven() if pinned is None else pinned in proof.KERNELS
    return training if runs else None


def is_proven() -> bool:
    """Return whether the CUDA kernels have passed their trials on CuPy's current device."""
    return proof.decide("training", "all", sys.modules["cupy"].cuda.Device()).passed
