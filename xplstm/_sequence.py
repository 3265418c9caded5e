"""The reference kernel: the cell over time, forward and backward, on any array library.

A step that is not valid holds the state and gives the output 0. A backward
direction therefore needs no reversed copy: walking time downwards, it keeps its
initial state until it meets a row's last valid step.

Backward through time follows Werbos (1990).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xplstm import _array, _cell
from xplstm._params import LSTMParams, LSTMState, Problem
from xplstm._typing import Array, Namespace

# The hoisted input projection is made for as many steps at a time as stay below this many elements.
PROJECTION_BOUND = 2**20

# The array library's own products decide the order of the sums.
CANONICAL_SUMS = False


class Step(NamedTuple):
    """What the backward pass needs of one step of one direction."""

    t: int
    gates: _cell.Gates
    h_prev: Array
    c_prev: Array
    c: Array


class Residuals(NamedTuple):
    """What the backward pass needs of a whole call; `steps` in the order in which they ran."""

    problem: Problem
    params: tuple[LSTMParams, ...]
    x: Array
    mask: Array | None
    steps: tuple[list[Step], ...]


def supports(problem: Problem) -> str | None:  # noqa: ARG001 - the signature of every kernel
    """Run everything."""
    return None


def prepare(
    problem: Problem,  # noqa: ARG001 - the signature of every kernel
    params: tuple[LSTMParams, ...],
) -> tuple[LSTMParams, ...]:
    """Parameters in the dtype of the sums: half precision accumulates, and keeps c, in float32."""
    return tuple(LSTMParams(*(None if a is None else _array.widen(a) for a in p)) for p in params)


def forward(
    problem: Problem, params: tuple[LSTMParams, ...], x: Array, state: LSTMState, valid: Array | None
) -> tuple[Array, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·)."""
    xp = problem.xp
    x, h_0, c_0 = (_array.widen(a) for a in (x, *state))
    mask = step_mask(problem, valid)
    x = _zero_where_invalid(xp, mask, x)
    ys, h_n, c_n, steps = [], [], [], []
    for d, (p, reverse) in enumerate(zip(params, problem.reverse, strict=True)):
        y, h, c, kept = _forward_direction(problem, p, x, h_0[d, ...], c_0[d, ...], mask, reverse)
        ys.append(y)
        h_n.append(h)
        c_n.append(c)
        steps.append(kept)
    y = _array.narrow(ys[0] if len(ys) == 1 else xp.concat(ys, axis=-1), problem.dtype)
    state_n = LSTMState(
        _array.narrow(xp.stack(h_n), problem.dtype), _array.narrow(xp.stack(c_n), problem.dtype)
    )
    return y, state_n, Residuals(problem, params, x, mask, tuple(steps)) if problem.keep else None


def _forward_direction(
    problem: Problem, p: LSTMParams, x: Array, h: Array, c: Array, mask: Array | None, reverse: bool
) -> tuple[Array, Array, Array, list[Step]]:
    """Run one direction: y (T, B, ·) in time order, the last state, and what was kept."""
    xp = problem.xp
    y: dict[int, Array] = {}
    kept: list[Step] = []
    for t, zx in _projected_inputs(problem, p, x, reverse):
        h_new, c_new, gates = _cell.forward(xp, zx, h, c, p)
        y[t] = h_new
        if mask is not None:
            y[t] = _zero_where_invalid(xp, mask[t, ...], h_new)
            h_new = xp.where(mask[t, ...], h_new, h)
            c_new = xp.where(mask[t, ...], c_new, c)
        if problem.keep:
            kept.append(Step(t, gates, h, c, c_new))
        h, c = h_new, c_new
    return _stack_time(problem, y, problem.output_size), h, c, kept


def _projected_inputs(
    problem: Problem, p: LSTMParams, x: Array, reverse: bool
) -> Iterator[tuple[int, Array]]:
    """Yield each step in walking order with its ``W_ih x + b``, projected many steps at a time."""
    length = max(1, PROJECTION_BOUND // max(1, problem.B * 4 * problem.H))
    for lo, hi in segments(problem.T, length, reverse):
        zx = _cell.project_input(x[lo:hi, ...], p)
        for t in range(hi - 1, lo - 1, -1) if reverse else range(lo, hi):
            yield t, zx[t - lo, ...]


def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array, LSTMState, tuple[LSTMParams, ...]]:
    """Gradients by x, by the initial state and by each direction's parameters."""
    problem, params, x, mask, _ = residuals
    xp, P = problem.xp, problem.output_size
    dy, dh_n, dc_n = (_array.widen(a) for a in (dy, *dstate_n))
    dy = _zero_where_invalid(xp, mask, dy)
    dx = xp.zeros_like(x)
    dh_0, dc_0, dparams = [], [], []
    for d in range(len(params)):
        dy_d = dy[..., d * P : (d + 1) * P]
        dx_d, dh, dc, dp = _backward_direction(residuals, d, dy_d, dh_n[d, ...], dc_n[d, ...])
        dx = dx + dx_d
        dh_0.append(dh)
        dc_0.append(dc)
        dparams.append(LSTMParams(*(None if a is None else _array.narrow(a, problem.dtype) for a in dp)))
    dx = _array.narrow(_zero_where_invalid(xp, mask, dx), problem.dtype)
    return (
        dx,
        LSTMState(_array.narrow(xp.stack(dh_0), problem.dtype), _array.narrow(xp.stack(dc_0), problem.dtype)),
        tuple(dparams),
    )


def _backward_direction(
    residuals: Residuals, d: int, dy: Array, dh: Array, dc: Array
) -> tuple[Array, Array, Array, LSTMParams]:
    """Walk one direction's steps back; the parameters' gradients are single products at the end."""
    problem, p, x, mask = residuals.problem, residuals.params[d], residuals.x, residuals.mask
    xp = problem.xp
    dz: dict[int, Array] = {}
    dhs: dict[int, Array] = {}
    h_prev: dict[int, Array] = {}
    m: dict[int, Array] = {}
    for t, gates, h_t, c_prev, c in reversed(residuals.steps[d]):
        exists = None if mask is None else mask[t, ...]
        dh = dh + dy[t, ...]
        dz_t, dh_prev, dc_prev = _cell.backward(xp, dh, dc, gates, c_prev, c, p)
        dz[t] = _zero_where_invalid(xp, exists, dz_t)
        h_prev[t] = _zero_where_invalid(xp, exists, h_t)
        if p.weight_hr is not None:
            dhs[t] = _zero_where_invalid(xp, exists, dh)
            m[t] = _zero_where_invalid(xp, exists, _cell.unprojected(xp, gates.o, c))
        dh = dh_prev if exists is None else xp.where(exists, dh_prev, dh)
        dc = dc_prev if exists is None else xp.where(exists, dc_prev, dc)

    H, P = problem.H, problem.output_size
    dz_all = _stack_time(problem, dz, 4 * H)
    projection = p.weight_hr is not None
    dp = _cell.parameter_gradients(
        xp,
        _rows(x),
        _rows(_stack_time(problem, h_prev, P)),
        _rows(dz_all),
        _rows(_stack_time(problem, m, H)) if projection else None,
        _rows(_stack_time(problem, dhs, P)) if projection else None,
        problem.bias,
    )
    return dz_all @ p.weight_ih, dh, dc, dp


def trace(residuals: Residuals, d: int) -> tuple[Array, ...]:
    """i, f, g, o, c, h of direction `d`, each (T, B, H) in time order and 0 where a step is not valid."""
    problem, params, _, mask, steps = residuals
    xp, p = problem.xp, params[d]
    columns: tuple[dict[int, Array], ...] = ({}, {}, {}, {}, {}, {})
    for t, gates, _, _, c in steps[d]:
        h = _cell.project_output(_cell.unprojected(xp, gates.o, c), p)
        for column, value in zip(columns, (*gates, c, h), strict=True):
            column[t] = _zero_where_invalid(xp, None if mask is None else mask[t, ...], value)
    sizes = (*[problem.H] * 5, problem.output_size)
    return tuple(
        _array.narrow(_stack_time(problem, column, size), problem.dtype)
        for column, size in zip(columns, sizes, strict=True)
    )


def step_mask(problem: Problem, valid: Array | None) -> Array | None:
    """(T, B, 1) booleans, true where a row has a step, or None where every row has all."""
    if valid is None:
        return None
    xp = problem.xp
    if problem.valid == "lengths":
        times = xp.arange(problem.T, dtype=valid.dtype, device=problem.device)
        valid = times[:, None] < valid[None, :]
    return valid[:, :, None]


def segments(T: int, every: int, reverse: bool) -> list[tuple[int, int]]:
    """Bounds of the segments of `every` steps, in the order in which a direction meets them."""
    bounds = [(lo, min(lo + every, T)) for lo in range(0, T, every)]
    return bounds[::-1] if reverse else bounds


def _zero_where_invalid(xp: Namespace, mask: Array | None, a: Array) -> Array:
    """`a` with exact zeros where the mask is false: selected, not multiplied, so that NaN vanishes too."""
    return a if mask is None else xp.where(mask, a, xp.zeros_like(a))


def _stack_time(problem: Problem, by_time: dict[int, Array], size: int) -> Array:
    """(T, B, size) from one array a step, T = 0 included."""
    xp = problem.xp
    if by_time:
        return xp.stack([by_time[t] for t in range(problem.T)], axis=0)
    dtype = _array.wide_dtype(xp, _array.dtype_named(xp, problem.dtype))
    return xp.zeros((0, problem.B, size), dtype=dtype, device=problem.device)


def _rows(a: Array) -> Array:
    """(T, B, N) as (T*B, N)."""
    return _array.reshape(a, (a.shape[0] * a.shape[1], a.shape[2]))
