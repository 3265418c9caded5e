"""Memory for time: keep one state for every k steps and run the steps again when they are needed.

The single-level scheme of Chen, Xu, Zhang and Guestrin (2016): O(T/k + k) steps
are held instead of T, for one more forward pass. It wraps any kernel, a
direction at a time, because two directions meet a segment from opposite ends.
Half precision is widened before it is cut, so that neither c nor a sum over
segments is ever rounded to half inside a call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from xplstm import _array
from xplstm._params import Problem, each
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells import Params
from xplstm.kernels._support import segments

if TYPE_CHECKING:
    from xplstm._dispatch import Kernel


def widened(problem: Problem) -> Problem:
    """Return the problem of each segment except its length."""
    dtype = _array.wide_dtype(problem.xp, _array.dtype_named(problem.xp, problem.dtype))
    return problem._replace(dtype=_array.dtype_name(dtype))


class Residuals(NamedTuple):
    """Inputs and the state before each segment; the steps inside are run again when they are needed."""

    kernel: Kernel
    every: int
    problem: Problem
    dtype: str
    packed: tuple[Any, ...]
    x: Array
    valid: Array | None
    fresh: tuple[Array, ...]
    states: tuple[list[LSTMState], ...]


def forward(
    kernel: Kernel,
    every: int,
    problem: Problem,
    params: tuple[Params, ...],
    x: Array,
    state: LSTMState,
    valid: Array | None,
    *fresh: Array,
) -> tuple[Array, LSTMState, Residuals]:
    """`kernel.forward` that keeps one state for every `every` steps of each direction."""
    xp, dtype = problem.xp, problem.dtype
    problem, x = widened(problem), _array.widen(x)
    state = LSTMState(*map(_array.widen, state))
    params = tuple(each(_array.widen, p) for p in params)
    ys, ends, starts, packed = [], [], [], []
    for d, reverse in enumerate(problem.reverse):
        segment_y: dict[int, Array] = {}
        before: list[LSTMState] = []
        end = LSTMState(state.h[d : d + 1, ...], state.c[d : d + 1, ...])
        whole = problem.part(d, 0, problem.T)._replace(keep=False)
        packed.append(kernel.prepare(whole, params[d : d + 1]))
        for lo, hi in segments(problem.T, every, reverse):
            before.append(end)
            part = problem.part(d, lo, hi)._replace(keep=False)
            segment_y[lo], end, _ = kernel.forward(
                part, packed[d], x[lo:hi, ...], end, *_cut(problem, valid, fresh, d, lo, hi)
            )
        ys.append(xp.concat([segment_y[lo] for lo in sorted(segment_y)], axis=0))
        ends.append(end)
        starts.append(before)
    residuals = Residuals(kernel, every, problem, dtype, tuple(packed), x, valid, fresh, tuple(starts))
    return _array.narrow(xp.concat(ys, axis=-1), dtype), _join(problem, ends, dtype), residuals


def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array, LSTMState, tuple[Params, ...]]:
    """`kernel.backward` of each segment from the last to the first, after running it forward again."""
    kernel, every, problem, dtype, packed, x, valid, fresh, states = residuals
    xp, P = problem.xp, problem.output_size
    dy, dstate_n = _array.widen(dy), LSTMState(*map(_array.widen, dstate_n))
    dx = xp.zeros_like(x)
    dstates: list[LSTMState] = []
    dparams: list[Params] = []
    for d, reverse in enumerate(problem.reverse):
        dstate = LSTMState(dstate_n.h[d : d + 1, ...], dstate_n.c[d : d + 1, ...])
        segment_dx: dict[int, Array] = {}
        total: Params | None = None
        for (lo, hi), start in reversed(
            list(zip(segments(problem.T, every, reverse), states[d], strict=True))
        ):
            part = problem.part(d, lo, hi)
            steps = _cut(problem, valid, fresh, d, lo, hi)
            _, _, kept = kernel.forward(part, packed[d], x[lo:hi, ...], start, *steps)
            dy_part = dy[lo:hi, :, d * P : (d + 1) * P]
            segment_dx[lo], dstate, (dp,) = kernel.backward(kept, dy_part, dstate)
            total = dp if total is None else _add(total, dp)
        dx = dx + xp.concat([segment_dx[lo] for lo in sorted(segment_dx)], axis=0)
        dstates.append(dstate)
        assert total is not None, "T = 0 never comes here"
        dparams.append(each(partial(_array.narrow, dtype=dtype), total))
    return _array.narrow(dx, dtype), _join(problem, dstates, dtype), tuple(dparams)


def _cut(
    problem: Problem, valid: Array | None, fresh: tuple[Array, ...], d: int, lo: int, hi: int
) -> tuple[Array | None, ...]:
    """Return lengths or mask, and where direction `d` starts from zeros, as the steps ``lo:hi`` see them."""
    if valid is not None and problem.valid == "lengths":
        valid = _array.bounded(problem.xp, valid - lo, 0, hi - lo)
    elif valid is not None:
        valid = valid[lo:hi, ...]
    return valid, *(a[d : d + 1, lo:hi, :] for a in fresh)


def _join(problem: Problem, states: list[LSTMState], dtype: str) -> LSTMState:
    """One state of the states of single directions."""
    return LSTMState(*(_array.narrow(problem.xp.concat(a, axis=0), dtype) for a in zip(*states, strict=True)))


def _add(a: Params, b: Params) -> Params:
    return type(a)(*(None if u is None else u + v for u, v in zip(a, b, strict=True)))
