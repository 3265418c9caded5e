"""Run any cell over time, forward and backward, on any array library.

A step that is not valid keeps the state and has the output 0. A reverse
direction therefore needs no reversed copy. It runs from the last time to the
first, and keeps its initial state until the last valid step of a batch entry.

Backpropagation through time follows Werbos (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells import Equations, Params
from xplstm.cells.params import each
from xplstm.kernels._support import flatten_time, projected_inputs, step_mask, zero_where, zero_where_invalid

# Saturated gates underflow to 0. This must not raise an error, even if the user calls `numpy.seterr`.
_UNDERFLOWS = np.errstate(under="ignore")


class Residuals(NamedTuple):
    """The residuals of a whole call; `steps` are in the order in which they ran."""

    problem: Problem
    params: tuple[Params, ...]
    x: Array
    mask: Array | None
    fresh: tuple[list[Array | None], ...]
    """For each direction and time, booleans (B, 1) of the batch entries that start from zeros, or None."""
    steps: tuple[list[tuple[int, Any]], ...]


def supports(problem: Problem) -> str | None:  # noqa: ARG001 - the signature of every kernel
    """Return None, because the reference kernel supports every problem."""
    return None


@_UNDERFLOWS
def prepare(
    problem: Problem,  # noqa: ARG001 - the signature of every kernel
    params: tuple[Params, ...],
) -> tuple[Params, ...]:
    """Widen half precision to float32, the dtype of sums and of c inside a call."""
    return tuple(each(_array.widen, p) for p in params)


@_UNDERFLOWS
def forward(
    problem: Problem,
    params: tuple[Params, ...],
    x: Array,
    state: LSTMState,
    valid: Array | None,
    fresh: Array | None = None,
) -> tuple[Array, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·), or from zeros where `fresh` is True."""
    xp = problem.xp
    x, h_0, c_0 = (_array.widen(a) for a in (x, *state))
    mask = step_mask(problem, valid)
    x = zero_where_invalid(xp, mask, x)
    begins = tuple(_start_flags(problem, fresh, d) for d in range(len(params)))
    ys, h_n, c_n, steps = [], [], [], []
    for d, p in enumerate(params):
        start = LSTMState(h_0[d, ...], c_0[d, ...])
        y, h, c, kept = _forward_direction(problem, d, p, x, start, mask, begins[d])
        ys.append(y)
        h_n.append(h)
        c_n.append(c)
        steps.append(kept)
    y = _array.narrow(ys[0] if len(ys) == 1 else xp.concat(ys, axis=-1), problem.dtype)
    state_n = LSTMState(
        _array.narrow(xp.stack(h_n), problem.dtype), _array.narrow(xp.stack(c_n), problem.dtype)
    )
    return y, state_n, Residuals(problem, params, x, mask, begins, tuple(steps)) if problem.keep else None


def _equations(problem: Problem, d: int) -> Callable[[int], Equations]:
    """Return the equations of direction `d` at each time."""
    part = problem.part(d, 0, problem.T)
    return part.cell.at(part)


def _start_flags(problem: Problem, fresh: Array | None, d: int) -> list[Array | None]:
    """Return the flags of each time, or None for a time without True; flags on a device are not read."""
    if fresh is None:
        return [None] * problem.T
    some = [True] * problem.T
    if not _array.is_lazy(fresh):
        some = _array.to_numpy(problem.xp.any(fresh[d, ...], axis=1)).tolist()
    return [fresh[d, t, :, None] if now else None for t, now in enumerate(some)]


def _forward_direction(
    problem: Problem,
    d: int,
    p: Params,
    x: Array,
    start: LSTMState,
    mask: Array | None,
    begins: list[Array | None],
) -> tuple[Array, Array, Array, list[tuple[int, Any]]]:
    """Run one direction; return y (T, B, ·) in time order, the last state, and each step's residuals."""
    xp, at, (h, c) = problem.xp, _equations(problem, d), start
    y: dict[int, Array] = {}
    steps: list[tuple[int, Any]] = []
    for t, zx in projected_inputs(problem, at, p, x, problem.reverse[d]):
        h, c = (zero_where(xp, begins[t], a) for a in (h, c))
        h_new, c_new, step = at(t).forward(xp, zx, h, c, p)
        y[t] = h_new
        if mask is not None:
            y[t] = zero_where_invalid(xp, mask[t, ...], h_new)
            h_new = xp.where(mask[t, ...], h_new, h)
            c_new = xp.where(mask[t, ...], c_new, c)
        if problem.keep:
            steps.append((t, step))
        h, c = h_new, c_new
    return _stack_time(problem, y, problem.output_size), h, c, steps


@_UNDERFLOWS
def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array, LSTMState, tuple[Params, ...]]:
    """Return gradients with respect to x, the initial state and each direction's parameters."""
    problem, params, x, mask, *_ = residuals
    xp, P = problem.xp, problem.output_size
    dy, dh_n, dc_n = (_array.widen(a) for a in (dy, *dstate_n))
    dy = zero_where_invalid(xp, mask, dy)
    dx = xp.zeros_like(x)
    dh_0, dc_0, dparams = [], [], []
    for d in range(len(params)):
        dy_d = dy[..., d * P : (d + 1) * P]
        dx_d, dh, dc, dp = _backward_direction(residuals, d, dy_d, dh_n[d, ...], dc_n[d, ...])
        dx = dx + dx_d
        dh_0.append(dh)
        dc_0.append(dc)
        dparams.append(each(partial(_array.narrow, dtype=problem.dtype), dp))
    dx = _array.narrow(zero_where_invalid(xp, mask, dx), problem.dtype)
    return (
        dx,
        LSTMState(_array.narrow(xp.stack(dh_0), problem.dtype), _array.narrow(xp.stack(dc_0), problem.dtype)),
        tuple(dparams),
    )


def _backward_direction(
    residuals: Residuals, d: int, dy: Array, dh: Array, dc: Array
) -> tuple[Array, Array, Array, Params]:
    """Run one direction backward; one product at the end computes each parameter's gradient."""
    problem, p, x, mask = residuals.problem, residuals.params[d], residuals.x, residuals.mask
    xp, at, begins = problem.xp, _equations(problem, d), residuals.fresh[d]
    by_time: dict[int, Any] = {}
    for t, step in reversed(residuals.steps[d]):
        exists = None if mask is None else mask[t, ...]
        dh = dh + dy[t, ...]
        step_gradients, dh_prev, dc_prev = at(t).backward(xp, dh, dc, step, p)
        by_time[t] = [None if a is None else zero_where_invalid(xp, exists, a) for a in step_gradients]
        dh_prev, dc_prev = (zero_where(xp, begins[t], a) for a in (dh_prev, dc_prev))
        dh = dh_prev if exists is None else xp.where(exists, dh_prev, dh)
        dc = dc_prev if exists is None else xp.where(exists, dc_prev, dc)
    if not by_time:
        return xp.zeros_like(x), dh, dc, each(xp.zeros_like, p)

    columns = zip(*(by_time[t] for t in range(problem.T)), strict=True)
    joined = step_gradients._make(None if a[0] is None else flatten_time(xp.stack(a)) for a in columns)
    dx, dp = at(0).gradients(xp, flatten_time(x), joined, p)
    return _array.reshape(dx, x.shape), dh, dc, dp


def trace(residuals: Residuals, d: int) -> tuple[Array, ...]:
    """Return the cell's trace of direction `d`, each array (T, B, ·), with 0 at padded and masked steps."""
    problem, p, mask = residuals.problem, residuals.params[d], residuals.mask
    xp, at = problem.xp, _equations(problem, d)
    sizes = problem.cell.trace_sizes(problem.H, problem.output_size)
    columns: list[dict[int, Array]] = [{} for _ in sizes]
    for t, step in residuals.steps[d]:
        for column, value in zip(columns, at(t).trace(xp, step, p), strict=True):
            column[t] = zero_where_invalid(xp, None if mask is None else mask[t, ...], value)
    return tuple(
        _array.narrow(_stack_time(problem, column, size), problem.dtype)
        for column, size in zip(columns, sizes, strict=True)
    )


def _stack_time(problem: Problem, by_time: dict[int, Array], size: int) -> Array:
    """Stack one array per step into (T, B, size); T may be 0."""
    xp = problem.xp
    if by_time:
        return xp.stack([by_time[t] for t in range(problem.T)], axis=0)
    dtype = _array.wide_dtype(xp, _array.dtype_from_name(xp, problem.dtype))
    return xp.zeros((0, problem.B, size), dtype=dtype, device=problem.device)
