"""The seam between what is asked and the engine that runs it.

A kernel runs one layer, all its directions, one whole sequence. The table is
ordered from the fastest to the reference, which runs everything; the first
kernel that supports a problem runs it. Forward and backward are registered
together. A new kernel is a module in ``kernels/`` and a row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from xplstm._choice import Choice, Chosen
from xplstm._errors import ArgumentError, KernelError
from xplstm._params import LSTMState, Params, Problem
from xplstm._typing import Array

Directions = tuple[Params, ...]
Stepper = Callable[[Any, Any], tuple[Array, LSTMState] | None]


class Kernel(NamedTuple):
    """An engine. What `prepare` and `forward` hand on is the kernel's own business."""

    name: str
    supports: Callable[[Problem], str | None]
    """None, or the reason why not."""
    prepare: Callable[[Problem, Directions], Any]
    """Pack the weights, one `Params` a direction, for `forward` at any T, B, lengths or mask."""
    forward: Callable[[Problem, Any, Array, LSTMState, Array | None], tuple[Array, LSTMState, Any]]
    """problem, packed weights, x, state_0, lengths or mask -> y, state_n, residuals."""
    backward: Callable[[Any, Array, LSTMState], tuple[Array, LSTMState, Directions]]
    """residuals, dy, dstate_n -> dx, dstate_0, dparams."""
    canonical_sums: bool
    """Whether sums are added in the published order, the same bits for a row in every batch."""
    stepper: Callable[[Problem, tuple[Any, ...]], Stepper] | None = None
    """For streams: the first layer's problem and the packed weights of all layers, of one direction each -> a
    function of x_t and state as users pass them, which gives y_t and the next state as `forward` does for one
    step; or None, before any work, for arguments that it does not know to be right. Who has this supports
    such steps of every B."""


# Fastest first. Loaded when first asked.
TABLE = {
    "native": "xplstm.kernels.native",
    "numpy_inplace": "xplstm.kernels.numpy_inplace",
    "cupy_fused": "xplstm.kernels.cupy_fused",
    "reference": "xplstm._sequence",
}

_pinned: Choice[str | None] = Choice("xplstm_kernel", None)


def use_kernel(name: str | None) -> Chosen[str | None]:
    """Pin the kernel that runs from here on; None chooses automatically again.

    Takes effect at once for the whole process, or, as a context manager,
    inside the block for the present thread or task alone; a call inside a block
    holds to the end of that block. A pinned kernel that cannot run a problem
    raises instead of handing it on.

    Parameters
    ----------
    name : {"native", "numpy_inplace", "cupy_fused", "reference"} or None

    Returns
    -------
    context manager
        Need not be entered; leaving its block restores what held before.

    Raises
    ------
    ArgumentError
        For another name.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> lstm = xplstm.LSTM(3, 2, rng=0)
    >>> x = np.ones((5, 4, 3), dtype="float32")
    >>> with xplstm.use_kernel("reference"):
    ...     y, state = lstm(x)
    """
    if name is not None and not (isinstance(name, str) and name in TABLE):
        msg = f"kernel {name!r} is unknown; known are {', '.join(TABLE)}"
        raise ArgumentError(msg)
    return Chosen(_pinned, name)


@cache
def load(name: str) -> Kernel:
    """The kernel called `name`, its module imported at the first call."""
    module = importlib.import_module(TABLE[name])
    parts = module.supports, module.prepare, module.forward, module.backward, module.CANONICAL_SUMS
    return Kernel(name, *parts, getattr(module, "stepper", None))


def pinned() -> str | None:
    """The name of the pinned kernel."""
    return _pinned.get()


def why_not(name: str, problem: Problem) -> str:
    """Why the kernel called `name` does not run `problem`: its own reason, else that another is pinned."""
    return load(name).supports(problem) or f"kernel {_pinned.get()!r} is pinned"


def why_missing(name: str) -> str:
    """Why the kernel called `name` runs nothing here, or nothing; it may need more than the package."""
    reason: str = getattr(importlib.import_module(TABLE[name]), "WHY_NOT", "")
    return reason


def select(problem: Problem) -> Kernel:
    """The pinned kernel, or the first of the table that supports `problem`."""
    pinned = _pinned.get()
    if pinned is not None:
        kernel = load(pinned)
        reason = kernel.supports(problem)
        if reason is not None:
            msg = f"kernel {pinned!r} is pinned and cannot run this problem: {reason}"
            raise KernelError(msg)
        return kernel
    return next(kernel for kernel in map(load, TABLE) if kernel.supports(problem) is None)
