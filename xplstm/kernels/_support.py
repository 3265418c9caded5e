"""What engines of several families share: why one does not run a problem, masks, and the input projection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from xplstm import _array
from xplstm._problem import Problem
from xplstm._typing import Array, Namespace
from xplstm.cells import Equations, Params
from xplstm.kernels import _steps

# The hoisted input projection is made for as many steps at a time as stay below this many elements.
PROJECTION_BOUND = 2**20


def why_not(problem: Problem, backend: str, dtypes: Collection[str], resets: bool = False) -> str | None:
    """Return why an engine for arrays of `backend` and `dtypes` cannot run `problem`, or None.

    An engine that starts steps from zeros says so by `resets`.
    """
    borrowed = backend == "numpy" and problem.why_not_borrowed is None
    if problem.backend != backend and not borrowed:
        more = problem.why_not_borrowed if backend == "numpy" else ""
        return f"the arrays are of {problem.backend}, not of {backend}{f', and {more}' if more else ''}"
    if problem.dtype not in dtypes:
        return f"dtype {problem.dtype} is none of {', '.join(dtypes)}"
    if problem.resets and not resets:
        return "it does not start steps from zeros, which reset= asks for"
    return None


def projected_inputs(
    problem: Problem,
    at: Callable[[int], Equations],
    p: Params,
    x: Array,
    reverse: bool,
    bound: int = PROJECTION_BOUND,
) -> Iterator[tuple[int, Array]]:
    """Yield each time in the direction's order with its ``W_ih x + b``, projected many steps at a time."""
    length = max(1, bound // max(1, problem.B * p.weight_ih.shape[0]))
    for lo, hi in segments(problem.T, length, reverse):
        # One product of two matrices: a batch of T products costs CuPy a copy of the weights, and launches.
        zx = at(lo).project_input(flatten_time(x[lo:hi, ...]), p)
        zx = _array.reshape(zx, (hi - lo, problem.B, zx.shape[-1]))
        for t in range(hi - 1, lo - 1, -1) if reverse else range(lo, hi):
            yield t, zx[t - lo, ...]


def step_mask(problem: Problem, valid: Array | None) -> Array | None:
    """Return (T, B, 1) booleans, true where a batch entry has a step, or None where all have every step."""
    exists = _steps.existing(problem.xp, problem.valid, valid, problem.T, problem.device)
    return None if exists is None else exists[:, :, None]


def segments(T: int, every: int, reverse: bool) -> list[tuple[int, int]]:
    """Return the bounds of the segments of `every` steps, in the order in which a direction runs them."""
    bounds = [(lo, min(lo + every, T)) for lo in range(0, T, every)]
    return bounds[::-1] if reverse else bounds


def zero_where_invalid(xp: Namespace, mask: Array | None, a: Array) -> Array:
    """Return `a` with exact zeros where the mask is false; selection removes NaN, a product would not."""
    return a if mask is None else xp.where(mask, a, xp.zeros_like(a))


def zero_where(xp: Namespace, flags: Array | None, a: Array) -> Array:
    """Return `a` with exact zeros where `flags` is true, NaN included."""
    return a if flags is None else xp.where(flags, xp.zeros_like(a), a)


def flatten_time(a: Array) -> Array:
    """Return (T, B, N) as (T*B, N)."""
    return _array.reshape(a, (a.shape[0] * a.shape[1], a.shape[2]))
