"""Functions that several kernels share: checks of a problem, masks, and the input projection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from xplstm import _array
from xplstm._problem import Problem
from xplstm._typing import Array, Namespace
from xplstm.cells import Equations, Params
from xplstm.kernels import _steps

# The largest number of elements of one hoisted input projection.
PROJECTION_BOUND = 2**20


def why_not(problem: Problem, backend: str, dtypes: Collection[str], resets: bool = False) -> str | None:
    """Return why a kernel for arrays of `backend` and `dtypes` cannot run `problem`, or None.

    `resets` is True for a kernel that supports steps that start from zeros.
    """
    if problem.backend != backend:
        more = problem.loan if isinstance(problem.loan, str) else ""
        return f"needs {backend} arrays, got {problem.backend} arrays{f'; {more}' if more else ''}"
    if problem.dtype not in dtypes:
        return f"dtype {problem.dtype} is not one of {', '.join(dtypes)}"
    if problem.resets and not resets:
        return "the kernel does not support reset="
    return None


def projected_inputs(
    problem: Problem,
    at: Callable[[int], Equations],
    p: Params,
    x: Array,
    reverse: bool,
    bound: int = PROJECTION_BOUND,
) -> Iterator[tuple[int, Array]]:
    """Yield each time in the direction's order with ``W_ih x + b``, computed for many steps at a time."""
    length = max(1, bound // max(1, problem.B * p.weight_ih.shape[0]))
    for lo, hi in segments(problem.T, length, reverse):
        # Flatten to one product; a batched product makes CuPy copy the weights and launch more kernels.
        zx = at(lo).project_input(flatten_time(x[lo:hi, ...]), p)
        zx = _array.reshape(zx, (hi - lo, problem.B, zx.shape[-1]))
        for t in range(hi - 1, lo - 1, -1) if reverse else range(lo, hi):
            yield t, zx[t - lo, ...]


def step_mask(problem: Problem, valid: Array | None) -> Array | None:
    """Return (T, B, 1) booleans, True for a valid step, or None if all steps are valid."""
    exists = _steps.existing(problem.xp, problem.valid, valid, problem.T, problem.device)
    return None if exists is None else exists[:, :, None]


def segments(T: int, every: int, reverse: bool) -> list[tuple[int, int]]:
    """Return the bounds of segments of `every` steps, in the order of a direction."""
    bounds = [(lo, min(lo + every, T)) for lo in range(0, T, every)]
    return bounds[::-1] if reverse else bounds


def zero_where_invalid(xp: Namespace, mask: Array | None, a: Array) -> Array:
    """Return `a` with exact zeros where the mask is False; unlike a product, selection removes NaN."""
    return a if mask is None else xp.where(mask, a, xp.zeros_like(a))


def zero_where(xp: Namespace, flags: Array | None, a: Array) -> Array:
    """Return `a` with exact zeros where `flags` is True, even in place of NaN."""
    return a if flags is None else xp.where(flags, xp.zeros_like(a), a)


def flatten_time(a: Array) -> Array:
    """Reshape (T, B, N) to (T*B, N)."""
    return _array.reshape(a, (a.shape[0] * a.shape[1], a.shape[2]))
