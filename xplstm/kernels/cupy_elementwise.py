"""Run any cell on CuPy arrays, with generated elementwise kernels between cuBLAS products.

The kernel records one step of a cell's equations, forward and backward, with its masks. The operations
between two products become one elementwise kernel: the standard LSTM needs one forward and one backward. The
equations come from `xplstm.cells` and are not repeated here. No block waits for another block, so no launch
can hang.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from xplstm import _array
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import CuPyArray
from xplstm.cells import Cell, Params, Sizes
from xplstm.cells.params import each
from xplstm.kernels import _support
from xplstm.kernels._cuda import layer
from xplstm.kernels._cuda.program import Program, Run, build
from xplstm.kernels._cuda.recorded import Matrix, NotElementwise, Recorder, Value
from xplstm.kernels._support import flatten_time, projected_inputs, step_mask, zero_where_invalid

DTYPES = ("float64", "float32", "float16", "bfloat16")

# Kernels index the elements of a step's widest array in 32 bits.
LARGEST_STEP = 2**31 - 1
# The largest number of elements of one input projection.
PROJECTION_BOUND = 2**26

arrays = "cupy"
__getattr__ = layer.lazy_why_not


class Form(NamedTuple):
    """The properties of a problem that determine the recorded step."""

    cell: Cell
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Names and shapes of the layer's parameters, in the order of the cell's tuple."""
    H: int
    output_size: int
    masked: bool
    resets: bool


class Still(NamedTuple):
    """The attributes of a problem that a cell reads, without random masks."""

    xp: Any
    device: Any
    dtype: str
    B: int
    H: int
    output_size: int
    noise: None = None


class Recorded(NamedTuple):
    """The programs of one recorded step, forward and backward."""

    forward: Program
    """zx, h, c and the form's flags -> y, h', c' and the residuals of the step."""
    kept: tuple[tuple[int, str], ...]
    """For each residual, its number of columns and its place: "h before", "h after", "c before" or "c after"
    for a state, "own" for separate memory, or "nowhere" if backward does not read it."""
    infer: Program
    """`forward` without residuals."""
    backward: Program
    """dy, dh, dc, the flags and the residuals -> the step's gradients, and the previous dh and dc."""
    widths: tuple[int | None, ...]
    """Number of columns of each field of the cell's `StepGradients`."""
    fields: tuple[int | None, ...]
    """For each field, the index in `kept` of the same array, or None if the field is an output."""
    gradients: Any
    """The cell's type `StepGradients`."""


def _record_step(problem: Problem, d: int) -> Recorded:
    """Return the step of direction `d`, recorded once for all problems with the same form."""
    cell = problem.cell.direction(d)
    # The number of input features does not matter, because the input projection is not recorded.
    sizes = Sizes(1, problem.H, problem.proj_size, problem.bias)
    shapes = tuple(cell.shapes(sizes).items())
    return record(Form(cell, shapes, problem.H, problem.output_size, problem.valid != "all", problem.resets))


def _inputs(recorder: Recorder, form: Form) -> tuple[Params, Any]:
    """Return the parameters as inputs of a recorded step, and the equations of the step."""
    arrays: dict[str, Matrix | Value] = {
        name: recorder.row(shape[0]) if len(shape) == 1 else recorder.matrix((shape[0], shape[1]))
        for name, shape in form.shapes
    }
    still = Still(recorder, None, "float32", 0, form.H, form.output_size)
    return form.cell.Params(**arrays), form.cell.at(still)(0)


def _leaves(kept: Any) -> list[Value]:
    """Return the values of a cell's nested tuple."""
    return [leaf for part in kept for leaf in (_leaves(part) if isinstance(part, tuple) else [part])]


def _refill(kept: Any, leaves: list[Value]) -> Any:
    """Return the nested tuple with its values replaced by `leaves`, which this function empties."""
    parts = [_refill(part, leaves) if isinstance(part, tuple) else leaves.pop(0) for part in kept]
    return kept._make(parts)


@cache
def record(form: Form) -> Recorded:
    """Record a step; raise `NotElementwise` if elementwise kernels between products cannot compute it."""
    rows, cells = dict(form.shapes)["weight_ih"][0], form.cell.cell_size(form.H)
    there = Recorder()
    p, equations = _inputs(there, form)
    zx, h, c = there.array(rows), there.array(form.output_size), there.array(cells)
    valid = there.flags() if form.masked else None
    start_h, start_c = h, c
    if form.resets:
        fresh = there.flags()
        start_h, start_c = (there.where(fresh, there.zeros_like(a), a) for a in (h, c))
    h_new, c_new, step = equations.forward(there, zx, start_h, start_c, p)
    y = h_new
    if valid is not None:
        y = there.where(valid, h_new, 0.0)
        h_new, c_new = there.where(valid, h_new, start_h), there.where(valid, c_new, start_c)
    leaves = _leaves(step)

    back = Recorder()
    p, equations = _inputs(back, form)
    dy, dh, dc = (back.array(width) for width in (h.width, h.width, c.width))
    exists = back.flags() if form.masked else None
    cut = back.flags() if form.resets else None
    inputs = [back.array(leaf.width) for leaf in leaves]
    dh = dh + (dy if exists is None else back.where(exists, dy, 0.0))
    step_gradients, dh_prev, dc_prev = equations.backward(back, dh, dc, _refill(step, list(inputs)), p)
    fields = list(step_gradients)
    if cut is not None:
        dh_prev, dc_prev = (back.where(cut, back.zeros_like(a), a) for a in (dh_prev, dc_prev))
    if exists is not None:
        fields = [None if a is None else back.where(exists, a, 0.0) for a in fields]
        dh_prev, dc_prev = back.where(exists, dh_prev, dh), back.where(exists, dc_prev, dc)
    own = [a for a in fields if a is not None and a.at not in {k.at for k in inputs}]
    backward = build(back, [*own, dh_prev, dc_prev], [True] * len(own) + [False] * 2)

    aliases = [
        next((k for k, i in enumerate(inputs) if a is not None and a.at == i.at), None) for a in fields
    ]
    places = {h_new.at: "h after", c_new.at: "c after", h.at: "h before", c.at: "c before"}
    used = [backward.uses(i.node.slot) or k in aliases for k, i in enumerate(inputs)]
    kept = [
        places.get(leaf.at, "own") if needed else "nowhere" for leaf, needed in zip(leaves, used, strict=True)
    ]
    memory = [leaf for leaf, place in zip(leaves, kept, strict=True) if place == "own"]
    return Recorded(
        build(there, [y, h_new, c_new, *memory], [True, True, cells > 0] + [True] * len(memory)),
        tuple((leaf.width, place) for leaf, place in zip(leaves, kept, strict=True)),
        build(there, [y, h_new, c_new], [True, False, False]),
        backward,
        tuple(None if a is None else a.width for a in fields),
        tuple(aliases),
        type(step_gradients),
    )


class Direction(NamedTuple):
    """The residuals of one direction."""

    recorded: Recorded
    kept: list[CuPyArray | None]
    """Residuals of the steps, each (T, B, .), indexed by time."""
    flags: list[CuPyArray]
    """Booleans (T, B, 1): valid steps, and steps that start from zeros, if the form has them."""


class Residuals(NamedTuple):
    """The residuals of a whole call."""

    problem: Problem
    params: tuple[Params, ...]
    x: CuPyArray
    mask: CuPyArray | None
    directions: tuple[Direction, ...]


def supports(problem: Problem) -> str | None:
    """Return None if the step is elementwise between products and is not captured, else the reason."""
    reason = _support.why_not(problem, "cupy", DTYPES, resets=True)
    if reason is not None:
        return reason
    if problem.noise is not None:
        return "the kernel does not draw random masks inside a step"
    widest = problem.B * max(problem.cell.gates * problem.H, problem.output_size)
    if widest > LARGEST_STEP:
        return f"a step has {widest} elements; the kernel supports at most {LARGEST_STEP}"
    try:
        for d in range(len(problem.reverse)):
            _record_step(problem, d)
    except NotElementwise as error:
        return f"the cell's step is not elementwise between products: {error}"
    if layer.capturing(problem):
        return "the stream is being captured for a CUDA graph, and CuPy does not allow cuBLAS calls then"
    return None


def prepare(problem: Problem, params: tuple[Params, ...]) -> tuple[Params, ...]:
    """Widen half precision to float32, the dtype of sums and of c inside a call."""
    with problem.device:
        return tuple(each(_array.widen, p) for p in params)


def forward(
    problem: Problem,
    params: tuple[Params, ...],
    x: CuPyArray,
    state: LSTMState,
    valid: CuPyArray | None,
    fresh: CuPyArray | None = None,
) -> tuple[CuPyArray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, .), or from zeros where `fresh` is True."""
    xp = problem.xp
    with problem.device:
        x, h_0, c_0 = (_array.widen(a) for a in (x, *state))
        mask = step_mask(problem, valid)
        x = zero_where_invalid(xp, mask, x)
        begins = [None if fresh is None else fresh[d, :, :, None] for d in range(len(params))]
        flags = [[a for a in (mask, begin) if a is not None] for begin in begins]
        ran = [_run(problem, d, p, x, h_0[d], c_0[d], flags[d]) for d, p in enumerate(params)]
        ys, h_n, c_n, directions = zip(*ran, strict=True)
        y = ys[0] if len(ys) == 1 else xp.concat(ys, axis=-1)
        narrowed = [_array.narrow(a, problem.dtype) for a in (y, xp.stack(h_n), xp.stack(c_n))]
    residuals = Residuals(problem, params, x, mask, directions) if problem.keep else None
    return narrowed[0], LSTMState(*narrowed[1:]), residuals


def _run(
    problem: Problem, d: int, p: Params, x: CuPyArray, h: CuPyArray, c: CuPyArray, flags: list[CuPyArray]
) -> tuple[CuPyArray, CuPyArray, CuPyArray, Direction]:
    """Run one direction; return y in time order, the last state, and the residuals."""
    import cupy as cp

    recorded, reverse = _record_step(problem, d), problem.reverse[d]
    T, B, part = problem.T, problem.B, problem.part(d, 0, problem.T)

    def memory(steps: int, width: int) -> CuPyArray:
        return cp.empty((steps, B, width), dtype=x.dtype)

    y, own = memory(T, problem.output_size), []
    if problem.keep:
        states = memory(T + 1, h.shape[-1]), memory(T + 1, c.shape[-1])
        for slots, start in zip(states, (h, c), strict=True):
            slots[T if reverse else 0] = start
        own = [memory(T, width) for width, place in recorded.kept if place == "own"]
    run = Run(recorded.forward if problem.keep else recorded.infer, _present(p), B, x.dtype)
    for t, zx in projected_inputs(problem, part.cell.at(part), p, x, reverse, PROJECTION_BOUND):
        into = {0: y[t]}
        if problem.keep:
            after = t if reverse else t + 1
            into |= {k: slots[after] for k, slots in enumerate(states, 1) if slots.shape[-1]}
            into |= {k: array[t] for k, array in enumerate(own, 3)}
        _, h, c, *_ = run([zx, h, c, *(a[t] for a in flags)], into)
    kept: list[CuPyArray | None] = []
    if problem.keep:
        halves = {
            f"{name} {side}": slots[1:] if reverse == (side == "before") else slots[:T]
            for name, slots in zip("hc", states, strict=True)
            for side in ("before", "after")
        }
        kept = [own.pop(0) if place == "own" else halves.get(place) for _, place in recorded.kept]
    return y, h, c, Direction(recorded, kept, flags)


def _present(p: Params) -> list[CuPyArray]:
    """Return the parameters that are not None."""
    return [a for a in p if a is not None]


def backward(
    residuals: Residuals, dy: CuPyArray, dstate_n: LSTMState
) -> tuple[CuPyArray, LSTMState, tuple[Params, ...]]:
    """Return gradients with respect to x, the initial state and each direction's parameters."""
    problem, P = residuals.problem, residuals.problem.output_size
    with problem.device:
        dy, dh_n, dc_n = (_array.widen(a) for a in (dy, *dstate_n))
        ran = [
            _run_back(residuals, d, dy[..., d * P : (d + 1) * P], dh_n[d], dc_n[d])
            for d in range(len(residuals.params))
        ]
        dx = zero_where_invalid(problem.xp, residuals.mask, sum(r[0] for r in ran))
        dh_0, dc_0 = (problem.xp.stack([r[k] for r in ran]) for k in (1, 2))
        dx, dh_0, dc_0 = (_array.narrow(a, problem.dtype) for a in (dx, dh_0, dc_0))
        dparams = tuple(each(lambda a: _array.narrow(a, problem.dtype), r[3]) for r in ran)
    return dx, LSTMState(dh_0, dc_0), dparams


def _run_back(
    residuals: Residuals, d: int, dy: CuPyArray, dh: CuPyArray, dc: CuPyArray
) -> tuple[CuPyArray, CuPyArray, CuPyArray, Params]:
    """Run one direction backward; one product at the end computes each parameter's gradient."""
    import cupy as cp

    problem, p, x = residuals.problem, residuals.params[d], residuals.x
    xp, T, (recorded, kept, flags) = problem.xp, problem.T, residuals.directions[d]
    if T == 0:
        return xp.zeros_like(x), dh, dc, each(xp.zeros_like, p)
    fields = list(zip(recorded.widths, recorded.fields, strict=True))
    own = [cp.empty((T, problem.B, w), dtype=x.dtype) for w, k in fields if w is not None and k is None]
    run = Run(recorded.backward, _present(p), problem.B, x.dtype)
    for t in range(T) if problem.reverse[d] else range(T - 1, -1, -1):
        step = [None if a is None else a[t] for a in kept]
        arrays = [dy[t], dh, dc, *(a[t] for a in flags), *step]
        *_, dh, dc = run(arrays, {k: a[t] for k, a in enumerate(own)})
    found = [None if w is None else own.pop(0) if k is None else kept[k] for w, k in fields]
    joined = recorded.gradients._make(None if a is None else flatten_time(a) for a in found)
    part = problem.part(d, 0, T)
    dx, dp = part.cell.at(part)(0).gradients(xp, flatten_time(x), joined, p)
    return _array.reshape(dx, x.shape), dh, dc, dp
