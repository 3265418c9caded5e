"""Run any cell by ``jax.lax.scan``: JAX compiles one step, independent of the length of the sequence.

The equations are those of `xplstm.cells`. Masks and resets work as in the reference kernel. `backward` is a
second scan over the cell's backward step. JAX computes all derivatives from `backward` and its transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, cast

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells import Equations, Params
from xplstm.cells.activations import Compiled
from xplstm.cells.params import each
from xplstm.kernels._support import flatten_time, step_mask, why_not, zero_where, zero_where_invalid

WHY_NOT = _array.why_unusable("jax") or ""
DTYPES = ("float64", "float32", "float16", "bfloat16")


class Residuals(NamedTuple):
    """The residuals of a whole call."""

    problem: Problem
    params: tuple[Params, ...]
    x: Array
    mask: Array | None
    fresh: Array | None
    steps: tuple[Any, ...]
    """For each direction, the residuals of its steps, each array (T, B, ·) in time order."""


def supports(problem: Problem) -> str | None:
    """Return why the reference kernel must run `problem`, or None."""
    if problem.noise is not None:
        return "the kernel does not draw random masks inside a step"
    return why_not(problem, "jax", DTYPES, resets=True)


def prepare(
    problem: Problem,  # noqa: ARG001 - the signature of every kernel
    params: tuple[Params, ...],
) -> tuple[Params, ...]:
    """Widen half precision to float32, the dtype of sums and of c inside a call."""
    return tuple(each(_array.widen, p) for p in params)


def forward(
    problem: Problem,
    params: tuple[Params, ...],
    x: Array,
    state: LSTMState,
    valid: Array | None,
    fresh: Array | None = None,
) -> tuple[Array, LSTMState, Residuals | None]:
    """Scan every direction over x (T, B, I) from `state` (D, B, ·), or from zeros where `fresh` is True."""
    if problem.keep:
        return _forward(problem, params, x, state, valid, fresh)
    return *_differentiable(problem)(params, x, LSTMState(*state), valid, fresh), None


def _differentiable(problem: Problem) -> Callable[..., tuple[Array, LSTMState]]:
    """Return the call as a function whose derivative is the transpose of `backward`.

    JAX's derivative of a scan sums the gradients of the weights step by step, as a part of the carry.
    `backward` instead computes one product over all steps. `backward` is linear, so JAX can transpose it for
    tangents, and transpose the result again for gradients.
    """
    import jax

    def call(*given: Any) -> Any:
        return _forward(problem, *given)[:2]

    def derivative(given: Any, tangents: Any) -> Any:
        y, end, residuals = _forward(problem._replace(keep=True), *given)
        dparams, dx, dstate, *_ = tangents
        push = jax.linear_transpose(partial(backward, residuals), y, end)
        # `backward` returns gradients in the dtype of the call, but these tangents belong to widened weights.
        dparams = tuple(each(partial(_array.narrow, dtype=problem.dtype), p) for p in dparams)
        return (y, end), push((dx, dstate, dparams))

    made: Any = jax.custom_jvp(call)
    made.defjvp(derivative)
    return cast("Callable[..., tuple[Array, LSTMState]]", made)


def _forward(
    problem: Problem,
    params: tuple[Params, ...],
    x: Array,
    state: LSTMState,
    valid: Array | None,
    fresh: Array | None,
) -> tuple[Array, LSTMState, Residuals]:
    """Run every direction, and keep the residuals of each step if the problem has keep=True."""
    xp = problem.xp
    x, h_0, c_0 = (_array.widen(a) for a in (x, *state))
    mask = step_mask(problem, valid)
    x = zero_where_invalid(xp, mask, x)
    ys, ends, steps = [], [], []
    for d, p in enumerate(params):
        start = LSTMState(h_0[d, ...], c_0[d, ...])
        end, (y, kept) = _scan_forward(problem, d, p, x, start, mask, _start_flags(fresh, d))
        ys.append(y)
        ends.append(end)
        steps.append(kept)
    y = _array.narrow(ys[0] if len(ys) == 1 else xp.concat(ys, axis=-1), problem.dtype)
    state_n = _stack_states(problem, ends)
    return y, state_n, Residuals(problem, params, x, mask, fresh, tuple(steps))


@cache
def _library() -> Any:
    """Return ``jax.numpy`` with XLA's logistic function and split operation."""
    import jax

    return Compiled(jax.numpy, jax.nn.sigmoid, partial(jax.numpy.split, axis=-1))


def _equations(problem: Problem, d: int) -> Equations:
    """Return the equations of direction `d`, which are the same at every step."""
    part = problem.part(d, 0, problem.T)
    return part.cell.at(part)(0)


def _start_flags(fresh: Array | None, d: int) -> Array | None:
    """Return booleans (T, B, 1), True where direction `d` starts from zeros."""
    return None if fresh is None else fresh[d, :, :, None]


def _stack_states(problem: Problem, states: list[LSTMState]) -> LSTMState:
    """Stack the states of all directions."""
    columns = (problem.xp.stack(column) for column in zip(*states, strict=True))
    return LSTMState(*(_array.narrow(column, problem.dtype) for column in columns))


def _scan_forward(
    problem: Problem,
    d: int,
    p: Params,
    x: Array,
    start: LSTMState,
    mask: Array | None,
    begins: Array | None,
) -> tuple[LSTMState, tuple[Array, Any]]:
    """Run one direction; return the last state, y (T, B, ·) and each step's residuals."""
    from jax import lax

    xp, step_of = _library(), _equations(problem, d)
    zx = step_of.project_input(flatten_time(x), p)
    zx = _array.reshape(zx, (problem.T, problem.B, zx.shape[-1]))

    def step(state: LSTMState, at: tuple[Array, Array | None, Array | None]) -> tuple[LSTMState, Any]:
        zx_t, exists, begins_t = at
        h, c = (zero_where(xp, begins_t, a) for a in state)
        h_new, c_new, kept = step_of.forward(xp, zx_t, h, c, p)
        y = zero_where_invalid(xp, exists, h_new)
        if exists is not None:
            h_new, c_new = xp.where(exists, h_new, h), xp.where(exists, c_new, c)
        return LSTMState(h_new, c_new), (y, kept if problem.keep else None)

    end, out = lax.scan(step, start, (zx, mask, begins), length=problem.T, reverse=problem.reverse[d])
    return end, out


def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array, LSTMState, tuple[Params, ...]]:
    """Return gradients with respect to x, the initial state and each direction's parameters."""
    problem, _, x, mask, *_ = residuals
    xp, P = problem.xp, problem.output_size
    dy, dh_n, dc_n = (_array.widen(a) for a in (dy, *dstate_n))
    dy = zero_where_invalid(xp, mask, dy)
    dx, dstates, dparams = xp.zeros_like(x), [], []
    for d, p in enumerate(residuals.params):
        end = LSTMState(dh_n[d, ...], dc_n[d, ...])
        dstate, gradients = _scan_backward(residuals, d, dy[..., d * P : (d + 1) * P], end)
        joined = each(flatten_time, gradients)
        dx_d, dp = _equations(problem, d).gradients(xp, flatten_time(x), joined, p)
        dx = dx + _array.reshape(dx_d, x.shape)
        dstates.append(dstate)
        dparams.append(each(partial(_array.narrow, dtype=problem.dtype), dp))
    dx = _array.narrow(zero_where_invalid(xp, mask, dx), problem.dtype)
    return dx, _stack_states(problem, dstates), tuple(dparams)


def _scan_backward(residuals: Residuals, d: int, dy: Array, end: LSTMState) -> tuple[LSTMState, Any]:
    """Run one direction backward; return the gradient of its initial state, and each step's gradients."""
    from jax import lax

    problem, p = residuals.problem, residuals.params[d]
    xp, step_of = _library(), _equations(problem, d)

    def step(dstate: LSTMState, at: tuple[Array, Any, Array | None, Array | None]) -> tuple[LSTMState, Any]:
        dy_t, kept, exists, begins_t = at
        dh, dc = dstate.h + dy_t, dstate.c
        gradients, dh_prev, dc_prev = step_of.backward(xp, dh, dc, kept, p)
        gradients = each(partial(zero_where_invalid, xp, exists), gradients)
        dh_prev, dc_prev = (zero_where(xp, begins_t, a) for a in (dh_prev, dc_prev))
        if exists is not None:
            dh_prev, dc_prev = xp.where(exists, dh_prev, dh), xp.where(exists, dc_prev, dc)
        return LSTMState(dh_prev, dc_prev), gradients

    inputs = (dy, residuals.steps[d], residuals.mask, _start_flags(residuals.fresh, d))
    return lax.scan(step, end, inputs, length=problem.T, reverse=not problem.reverse[d])
