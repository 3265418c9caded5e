"""Select between CUDA kernels and generic code for parts of training.

The generic code is the definition and runs everywhere. On CuPy's arrays the
function of the same name in `kernels._cuda.training` runs instead while one of the
library's kernels for GPUs is pinned, and without a pin once a GPU has proven
it. Another pin, as of the reference, keeps to the generic code.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Concatenate, ParamSpec, TypeVar

from xplstm import _array, _choice
from xplstm._typing import Namespace

P = ParamSpec("P")
R = TypeVar("R")

KERNELS = ("cupy_persistent", "cupy_fused")


def part(
    generic: Callable[Concatenate[Namespace, P], R],
) -> Callable[Concatenate[Namespace, P], R]:
    """Make ``generic(xp, ...)`` give way to a CUDA room's function of its name, but for the underscore.

    That function takes all but the namespace, and answers None for what it leaves to `generic`.
    """
    name = generic.__name__.removeprefix("_")

    def chosen(xp: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        room = cuda_room(xp)
        made: R | None = None if room is None else getattr(room, name)(*args, **kwargs)
        return generic(xp, *args, **kwargs) if made is None else made

    functools.update_wrapper(chosen, generic)
    return chosen


def cuda_room(xp: Namespace) -> ModuleType | None:
    """Where the CUDA kernels for arrays of `xp` are launched, or None where the generic code has to run."""
    if _array.backend_name(xp) != "cupy":
        return None
    pinned = _choice.kernel.get()
    runs = proven() if pinned is None else pinned in KERNELS
    return importlib.import_module("xplstm.kernels._cuda.training") if runs else None


def proven() -> bool:
    """Whether the CUDA kernels have passed their trials on CuPy's current device."""
    # Here, because hashes and the like would double the time of `import xplstm` for those without a GPU.
    from xplstm.kernels._cuda import proof

    return proof.decide("training", "all", sys.modules["cupy"].cuda.Device()).passed
