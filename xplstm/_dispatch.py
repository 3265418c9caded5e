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

from xplstm import _choice
from xplstm._choice import Chosen
from xplstm._errors import ArgumentError, KernelError
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Array, Proof
from xplstm.cells import Params

Directions = tuple[Params, ...]
Stepper = Callable[[Any, Any], tuple[Array, LSTMState] | None]


class Kernel(NamedTuple):
    """An engine. What `prepare` and `forward` hand on is the kernel's own business."""

    name: str
    supports: Callable[[Problem], str | None]
    """None, or the reason why not."""
    prepare: Callable[[Problem, Directions], Any]
    """Pack the weights, one `Params` a direction, for `forward` at any T, B, lengths or mask."""
    forward: Callable[..., tuple[Array, LSTMState, Any]]
    """problem, packed weights, x, state_0, lengths or mask -> y, state_n, residuals. Where the problem has
    resets, a last argument (D, T, B) is true where a direction starts a step that exists from zeros."""
    backward: Callable[[Any, Array, LSTMState], tuple[Array | None, LSTMState, Directions]]
    """residuals, dy, dstate_n -> dx, dstate_0, dparams; dx may be None where the problem does not ask."""
    canonical_sums: Callable[[Problem], bool] = lambda _: False
    """Whether a supported problem has the reproducible summation order: the same bits for a batch entry in
    every batch."""
    slower: Callable[[Problem], str | None] = lambda _: None
    """None, or why it is expected to be slower than the next in the table; asked for what it supports."""
    proof: Callable[[Problem, Kernel], Proof] | None = None
    """Whether it has a proof on the problem's device, without which it runs only when it is pinned.

    None where it needs none. It may check its numbers against the reference, which is given, when a process
    first asks."""
    stepper: Callable[[Problem, tuple[Any, ...]], Stepper] | None = None
    """For streams: the first layer's problem and the packed weights of all layers, of one direction each -> a
    function of x_t and state as users pass them, h alone of a cell without c, which gives y_t and the next
    state of one step, whose c means nothing for such a cell; or None, before any work, for arguments that it
    does not know to be right. Who has this supports such steps of every B."""
    caller: Callable[[Problem, tuple[Any, ...], bool], Stepper] | None = None
    """For small calls: as `stepper`, and whether the batch is the first axis -> a function of x and state,
    which gives y and the final state; or None for what it does not know to be right, or to be small."""
    storages: tuple[str, ...] = ()
    """What it reads weights as, besides the dtype of the problem."""


# Fastest first. Loaded when first asked.
TABLE = {
    "native": "xplstm.kernels.native",
    "numpy_inplace": "xplstm.kernels.numpy_inplace",
    "cupy_persistent": "xplstm.kernels.cupy_persistent",
    "cupy_fused": "xplstm.kernels.cupy_fused",
    "cupy_elementwise": "xplstm.kernels.cupy_elementwise",
    "jax_scan": "xplstm.kernels.jax_scan",
    "reference": "xplstm.kernels.reference",
}

# Optional attributes of a kernel.
OPTIONAL = ("canonical_sums", "slower", "proof", "stepper", "caller", "storages")

_pinned = _choice.kernel


def use_kernel(name: str | None) -> Chosen[str | None]:
    """Pin the kernel that runs from here on; None chooses automatically again.

    Takes effect at once for the whole process, or, as a context manager,
    inside the block for the present thread or task alone; a call inside a block
    holds to the end of that block. A pinned kernel that cannot run a problem
    raises instead of handing it on. A kernel that needs a proof on the device runs
    without one only when it is pinned.

    With one of CuPy's kernels pinned, losses, updates, dropout and embeddings of CuPy's arrays go through
    CUDA kernels too, where there is one for them; with "reference", through none.

    Parameters
    ----------
    name : str or None
        "native", "numpy_inplace", "cupy_persistent", "cupy_fused", "cupy_elementwise", "jax_scan" or
        "reference".

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
    """Return the kernel of this name; the first call imports its module."""
    module = importlib.import_module(TABLE[name])
    optional = {part: getattr(module, part) for part in OPTIONAL if hasattr(module, part)}
    parts = module.supports, module.prepare, module.forward, module.backward
    return Kernel(name, *parts, **optional)


pinned = _pinned.get
"""The name of the pinned kernel; no function around it, since a small step feels every call."""


def why_not(name: str, problem: Problem) -> str | None:
    """Why the kernel called `name` does not run `problem`, or None: its own reason before that of a pin."""
    kernel, pinned = load(name), _pinned.get()
    if problem.activations and problem.weights not in kernel.storages:
        return f"it does not round activations to {problem.activations}"
    reason = kernel.supports(problem)
    if reason is not None:
        return reason
    if problem.reproducible and not canonical_sums(kernel, problem):
        return "it does not use the reproducible summation order, which reproducible=True requires"
    if pinned is not None:
        return None if pinned == name else f"kernel {pinned!r} is pinned"
    # reproducible=True leaves no choice of a faster kernel.
    found = None if kernel.proof is None else kernel.proof(problem, load("reference"))
    if found is not None and not found.passed:
        reason = found.text
    elif not problem.reproducible:
        reason = kernel.slower(problem)
    return f"{reason}; use_kernel({name!r}) runs it" if reason else None


def proof(kernel: Kernel, problem: Problem) -> str:
    """Return what proved `kernel` on the device, or nothing where it needs no proof, or is pinned."""
    if kernel.proof is None or _pinned.get() is not None:
        return ""
    return kernel.proof(problem, load("reference")).text


def canonical_sums(kernel: Kernel, problem: Problem) -> bool:
    """Return whether `kernel` uses the reproducible summation order; without a step there is no sum."""
    return problem.T * problem.B == 0 or kernel.canonical_sums(problem)


def why_missing(name: str) -> str:
    """Why the kernel called `name` runs nothing here, or nothing; it may need more than the package."""
    reason: str = getattr(importlib.import_module(TABLE[name]), "WHY_NOT", "")
    return reason


def select(problem: Problem) -> Kernel:
    """Return the pinned kernel, or the first of the table that runs `problem`."""
    pinned = _pinned.get()
    reasons = {}
    for name in TABLE if pinned is None else [pinned]:
        reason = why_not(name, problem)
        if reason is None:
            return load(name)
        reasons[name] = reason
    if pinned is not None:
        msg = f"kernel {pinned!r} is pinned and cannot run this problem: {reasons[pinned]}"
        raise KernelError(msg)
    listed = "".join(f"\n  not {name}: {reason}" for name, reason in reasons.items())
    msg = f"no kernel can run this problem:{listed}"
    raise KernelError(msg)
