"""Trade computation for memory: keep one state for every k steps, and run the steps again when needed.

The scheme is the single-level checkpointing of Chen, Xu, Zhang and Guestrin
(2016). It keeps O(T/k + k) steps instead of T, and needs one more forward pass.
It wraps any kernel and runs one direction at a time, because two directions
traverse the segments in opposite order. Half precision is widened first, so
that neither c nor a sum over segments is rounded to half inside a call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import Array
from xplstm.cells import Params
from xplstm.cells.params import each
from xplstm.kernels._support import segments

if TYPE_CHECKING:
    from xplstm._dispatch import Kernel


def widen_problem(problem: Problem) -> Problem:
    """Return the problem in the dtype of its segments."""
    dtype = _array.wide_dtype(problem.xp, _array.dtype_from_name(problem.xp, problem.dtype))
    return problem._replace(dtype=_array.dtype_name(dtype))


class Residuals(NamedTuple):
    """Inputs and the state before each segment; the pullback recomputes the steps of a segment."""

    kernel: Kernel
    every: int
    problem: Problem
    dtype: str
    packed: tuple[Any, ...]
    x: Array
    valid: Array | None
    fresh: tuple[Array, ...]
    states: tuple[list[LSTMState], ...]


class _Joined:
    """The segments of y or dx, for each direction, written into one array if the library supports it."""

    def __init__(self, problem: Problem, features: int, directions: int, dtype: str) -> None:
        self._xp, self._features, self._dtype = problem.xp, features, dtype
        self._segments: list[dict[int, Array]] = [{} for _ in range(directions)]
        self._whole: Any = None
        if problem.backend in ("numpy", "cupy"):
            shape = (problem.T, problem.B, features * directions)
            kind = _array.dtype_from_name(problem.xp, dtype)
            self._whole = problem.xp.empty(shape, dtype=kind, device=problem.device)

    def put(self, d: int, lo: int, segment: Array) -> None:
        """Store the segment of direction `d` that begins at step `lo`."""
        segment = _array.narrow(segment, self._dtype)
        if self._whole is None:
            self._segments[d][lo] = segment
        else:
            columns = slice(d * self._features, (d + 1) * self._features)
            self._whole[lo : lo + segment.shape[0], :, columns] = segment

    def concatenate(self) -> Array:
        """Return all segments as one array, with the directions concatenated."""
        if self._whole is not None:
            return self._whole
        ys = [self._xp.concat([a[lo] for lo in sorted(a)], axis=0) for a in self._segments]
        return ys[0] if len(ys) == 1 else self._xp.concat(ys, axis=-1)


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
    """Run `kernel.forward`, and keep one state for every `every` steps of each direction."""
    dtype = problem.dtype
    problem = widen_problem(problem)
    state = LSTMState(*map(_array.widen, state))
    params = tuple(each(_array.widen, p) for p in params)
    y = _Joined(problem, problem.output_size, len(params), dtype)
    ends, starts, packed = [], [], []
    for d, reverse in enumerate(problem.reverse):
        before: list[LSTMState] = []
        end = LSTMState(state.h[d : d + 1, ...], state.c[d : d + 1, ...])
        whole = problem.part(d, 0, problem.T)._replace(keep=False)
        packed.append(kernel.prepare(whole, params[d : d + 1]))
        for lo, hi in segments(problem.T, every, reverse):
            before.append(end)
            part = problem.part(d, lo, hi)._replace(keep=False)
            steps = _array.widen(x[lo:hi, ...]), end, *_slice_ragged(problem, valid, fresh, d, lo, hi)
            segment, end, _ = kernel.forward(part, packed[d], *steps)
            y.put(d, lo, segment)
        ends.append(end)
        starts.append(before)
    residuals = Residuals(kernel, every, problem, dtype, tuple(packed), x, valid, fresh, tuple(starts))
    return y.concatenate(), _join(problem, ends, dtype), residuals


def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array | None, LSTMState, tuple[Params, ...]]:
    """Run each segment forward again and then backward, from the last segment to the first."""
    kernel, every, problem, dtype, packed, x, valid, fresh, states = residuals
    P = problem.output_size
    dstate_n = LSTMState(*map(_array.widen, dstate_n))
    dx: Array | None = None
    dstates: list[LSTMState] = []
    dparams: list[Params] = []
    for d, reverse in enumerate(problem.reverse):
        dstate = LSTMState(dstate_n.h[d : d + 1, ...], dstate_n.c[d : d + 1, ...])
        joined = _Joined(problem, problem.I, 1, problem.dtype) if problem.dx else None
        total: Params | None = None
        for (lo, hi), start in reversed(
            list(zip(segments(problem.T, every, reverse), states[d], strict=True))
        ):
            part = problem.part(d, lo, hi)
            steps = _array.widen(x[lo:hi, ...]), start, *_slice_ragged(problem, valid, fresh, d, lo, hi)
            _, _, kept = kernel.forward(part, packed[d], *steps)
            dy_part = _array.widen(dy[lo:hi, :, d * P : (d + 1) * P])
            dx_part, dstate, (dp,) = kernel.backward(kept, dy_part, dstate)
            del kept  # frees the memory before the next segment allocates its residuals
            if joined is not None and dx_part is not None:
                joined.put(0, lo, dx_part)
            total = dp if total is None else _add(total, dp)
        if joined is not None:
            dx = joined.concatenate() if dx is None else dx + joined.concatenate()
        dstates.append(dstate)
        assert total is not None, "checkpointing needs T > 0"
        dparams.append(each(partial(_array.narrow, dtype=dtype), total))
    return None if dx is None else _array.narrow(dx, dtype), _join(problem, dstates, dtype), tuple(dparams)


def _slice_ragged(
    problem: Problem, valid: Array | None, fresh: tuple[Array, ...], d: int, lo: int, hi: int
) -> tuple[Array | None, ...]:
    """Return lengths or mask, and the flags of direction `d`, for the steps ``lo:hi``."""
    if valid is not None and problem.valid == "lengths":
        valid = _array.clip_values(problem.xp, valid - lo, 0, hi - lo)
    elif valid is not None:
        valid = valid[lo:hi, ...]
    return valid, *(a[d : d + 1, lo:hi, :] for a in fresh)


def _join(problem: Problem, states: list[LSTMState], dtype: str) -> LSTMState:
    """Concatenate the states of single directions."""
    return LSTMState(*(_array.narrow(problem.xp.concat(a, axis=0), dtype) for a in zip(*states, strict=True)))


def _add(a: Params, b: Params) -> Params:
    return type(a)(*(None if u is None else u + v for u, v in zip(a, b, strict=True)))
