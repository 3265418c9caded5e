"""Select the kernel that runs a problem.

A kernel runs one layer with all its directions over a whole sequence. The table
is ordered from the fastest kernel to the reference kernel, which supports every
problem. The first kernel that supports a problem runs it. Forward and backward
are registered together. A new kernel is a module in ``kernels/`` and a row here.
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
    """The functions of one kernel. Packed weights and residuals are private to the kernel."""

    name: str
    supports: Callable[[Problem], str | None]
    """Return None if the kernel supports the problem, else the reason."""
    prepare: Callable[[Problem, Directions], Any]
    """Pack the weights, one `Params` per direction, for `forward` with any T, B, lengths or mask."""
    forward: Callable[..., tuple[Array, LSTMState, Any]]
    """problem, packed weights, x, state_0, lengths or mask -> y, state_n, residuals. A problem with resets
    has one more argument, a boolean array (D, T, B): True where an existing step of a direction starts from
    a zero state."""
    backward: Callable[[Any, Array, LSTMState], tuple[Array | None, LSTMState, Directions]]
    """residuals, dy, dstate_n -> dx, dstate_0, dparams. dx may be None if the problem has dx=False."""
    canonical_sums: Callable[[Problem], bool] = lambda _: False
    """Return whether the kernel uses the reproducible summation order for a supported problem: a batch entry
    has the same bits in every batch."""
    slower: Callable[[Problem], str | None] = lambda _: None
    """Return why the kernel is expected to be slower than the next kernel of the table for a supported
    problem, or None."""
    proof: Callable[[Problem, Kernel], Proof] | None = None
    """Return the kernel's proof for the problem's device. Without a passed proof, the kernel runs only if it
    is pinned. The first call in a process may compare the kernel with the reference kernel, which is the
    second argument. None for a kernel that needs no proof."""
    stepper: Callable[[Problem, tuple[Any, ...]], Stepper] | None = None
    """Return a function for single steps, from the first layer's problem and the packed weights of all
    layers, which have one direction. The function takes x_t and state as users pass them (only h for a cell
    without c). The function returns y_t and the next state (with undefined c for such a cell), or None,
    before any work, for arguments that it cannot validate. The function accepts every batch size."""
    caller: Callable[[Problem, tuple[Any, ...], bool], Stepper] | None = None
    """Return a function for small calls. The arguments are those of `stepper`, and whether the batch is the
    first axis. The function takes x and state and returns y and the final state, or None for arguments that
    it cannot validate and for large calls."""
    storages: tuple[str, ...] = ()
    """Storage types that the kernel reads weights from, in addition to the problem's dtype."""
    arrays: str = ""
    """Library whose arrays the kernel runs on, if the kernel can also run on borrowed memory."""


# Fastest first. `load` imports each module on first use.
TABLE = {
    "native": "xplstm.kernels.native",
    "numpy_inplace": "xplstm.kernels.numpy_inplace",
    "cupy_block": "xplstm.kernels.cupy_block",
    "cupy_persistent": "xplstm.kernels.cupy_persistent",
    "cupy_fused": "xplstm.kernels.cupy_fused",
    "cupy_elementwise": "xplstm.kernels.cupy_elementwise",
    "jax_scan": "xplstm.kernels.jax_scan",
    "reference": "xplstm.kernels.reference",
}

# Optional attributes of a kernel.
OPTIONAL = ("canonical_sums", "slower", "proof", "stepper", "caller", "storages", "arrays")

_pinned = _choice.kernel


def use_kernel(name: str | None) -> Chosen[str | None]:
    """Pin the kernel that runs all layers; None restores the automatic selection.

    A call pins the kernel for the whole process at once. As a context manager,
    the call pins the kernel inside its block, for the current thread or task.
    A call inside such a block has effect until the end of the block.
    A call of a layer raises an error if the pinned kernel cannot run it. A kernel
    that needs a proof on the device runs without the proof only if it is pinned.

    With "cupy_block", "cupy_persistent" or "cupy_fused" pinned, losses, optimisers, dropout and embeddings of
    CuPy arrays also use CUDA kernels, if one supports the call. With any other kernel pinned, they use none.

    Parameters
    ----------
    name : str or None
        "native", "numpy_inplace", "cupy_block", "cupy_persistent", "cupy_fused", "cupy_elementwise",
        "jax_scan" or "reference".

    Returns
    -------
    context manager
        Optional to enter. Leaving its block restores the previous setting.

    Raises
    ------
    ArgumentError
        If `name` is unknown.

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
        msg = f"kernel {name!r} is unknown, expected one of {', '.join(TABLE)}"
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
"""Return the name of the pinned kernel, or None. A wrapper function would slow single steps down."""


def why_not(name: str, problem: Problem) -> str | None:
    """Return why the kernel `name` does not run `problem`, or None; the kernel's own reason comes first."""
    kernel, pinned = load(name), _pinned.get()
    problem = problem.lend_to(kernel.arrays)
    if problem.activations and problem.weights not in kernel.storages:
        return f"the kernel cannot round activations to {problem.activations}"
    reason = kernel.supports(problem)
    if reason is not None:
        return reason
    if problem.reproducible and not canonical_sums(kernel, problem):
        return "the kernel does not use the reproducible summation order, which reproducible=True requires"
    if pinned is not None:
        return None if pinned == name else f"kernel {pinned!r} is pinned"
    # reproducible=True ignores `slower`, because the next kernel may lack the summation order.
    verdict = None if kernel.proof is None else kernel.proof(problem, load("reference"))
    if verdict is not None and not verdict.passed:
        reason = verdict.text
    elif not problem.reproducible:
        reason = kernel.slower(problem)
    return f"{reason}; use_kernel({name!r}) runs it" if reason else None


def proof(kernel: Kernel, problem: Problem) -> str:
    """Return the text of the kernel's proof on the device, or "" if `kernel` is pinned or needs no proof."""
    if kernel.proof is None or _pinned.get() is not None:
        return ""
    return kernel.proof(problem.lend_to(kernel.arrays), load("reference")).text


def canonical_sums(kernel: Kernel, problem: Problem) -> bool:
    """Return whether `kernel` uses the reproducible summation order; a problem without steps has no sums."""
    return problem.T * problem.B == 0 or kernel.canonical_sums(problem.lend_to(kernel.arrays))


def why_missing(name: str) -> str:
    """Return why the kernel `name` cannot run on this machine, such as a missing package, or ""."""
    reason: str = getattr(importlib.import_module(TABLE[name]), "WHY_NOT", "")
    return reason


def select(problem: Problem) -> Kernel:
    """Return the pinned kernel, or the first kernel of the table that runs `problem`."""
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
