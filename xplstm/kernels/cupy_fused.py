"""Run the standard LSTM on CuPy arrays, with a cuBLAS product and a fused pointwise kernel per step.

One product projects the input of all steps. Each step is one product, which adds
to the projection, and one kernel. Both process all directions at once; a reverse
direction starts at the last time. The compiled module issues both. One product over
all steps computes the gradient of each weight.

The code implements the equations of `xplstm.cells.lstm`, and the clauses XPL-CELL
and XPL-SEQ of the specification.
"""

from __future__ import annotations

from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import CuPyArray, Proof
from xplstm.cells.params import LSTMParams
from xplstm.kernels._cuda import launch, layer, loop, trials
from xplstm.kernels._cuda.layer import LAYER, Buffers, Call, Packed, Residuals, Segment
from xplstm.kernels._cuda.loop import Matrix

NAME = "cupy_fused"

FORWARD = launch.fields(f"{LAYER} z bias h c m projected y first:2 held slots m_slots keep")
BACKWARD = launch.fields(f"{LAYER} gates c dy dh dc dm dprojected dz")

arrays = "cupy"
prepare = layer.prepare
__getattr__ = layer.lazy_why_not


def supports(problem: Problem) -> str | None:
    """Return None for a standard LSTM on CuPy arrays, else why not; a capture needs the compiled module."""
    reason = layer.why_not(problem)
    if reason is None and layer.refuses_products(problem):
        refused = "the stream is being captured for a CUDA graph, and CuPy does not allow cuBLAS calls then"
        return f"{refused}; the compiled module could make them, but {loop.why_python()}"
    return reason


def proof(problem: Problem, reference: trials.Engine) -> Proof:
    """Return the kernel's proof on the device; a quick check suffices, because its blocks never wait."""
    engine = trials.Engine(prepare, forward, backward)
    verdict = trials.proof(NAME, engine, reference, problem, lambda: trials.CHECKED + trials.PROJECTED)
    slow = f"{verdict.text}; its loop runs in Python ({loop.why_python()})"
    return verdict._replace(text=slow) if verdict.passed and loop.why_python() else verdict


def forward(
    problem: Problem, packed: Packed, x: CuPyArray, state: LSTMState, valid: CuPyArray | None
) -> tuple[CuPyArray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·)."""
    return layer.forward(problem, packed, x, state, valid, walk)


def walk(call: Call, packed: Packed, buffers: Buffers, segment: Segment) -> None:
    """Launch a product and a kernel per step, and a second pair for a projection."""
    problem, (y, z, h, c, m, start, end) = call.problem, buffers
    B, H, P, keep, wide = problem.B, problem.H, call.P, problem.keep, launch.wide(problem.dtype)
    projected = None if m is None else call.empty(call.D, B, P, wide=True)
    arguments = launch.struct(
        FORWARD,
        **call.layer,
        **{"z": z, "bias": packed.bias, "h": h, "c": c, "m": m, "projected": projected, "y": y},
        **{
            "first": segment.first,
            "held": z.shape[1],
            "slots": h.shape[1],
            "m_slots": 1 if m is None else m.shape[1],
            "keep": keep,
        },
    )
    recur = call.product((B, 4 * H, P), Matrix(P), Matrix(P, True), Matrix(4 * H), add=True, out=wide)
    project = call.product((B, P, H), Matrix(H), Matrix(H, True), Matrix(P), out=wide)
    at = [t - first for t, first in zip(call.times(0), segment.first, strict=True)]
    each = loop.new()
    before = call.moves(h, call.before(0) if keep else None)
    each.product(recur, before, call.moves(packed.weight_hh), call.moves(z, at))
    call.launch(each, "forward_gates", B * H, arguments)
    if m is not None and projected is not None:
        step = call.moves(m, call.times(0) if keep else None)
        each.product(project, step, call.moves(packed.weight_hr), call.moves(projected))
        call.launch(each, "forward_projected", B * P, arguments)
    if segment.start == 0:
        for d, first in enumerate(call.before(0) if keep else [0] * call.D):
            h[d, first], c[d, first] = start.h[d], start.c[d]
    each.run(range(segment.start, segment.stop))
    if segment.stop == problem.T:
        for d, last in enumerate(call.after_all() if keep else [0] * call.D):
            end.h[d], end.c[d] = h[d, last], c[d, last]


def backward(
    residuals: Residuals, dy: CuPyArray, dstate_n: LSTMState
) -> tuple[CuPyArray, LSTMState, tuple[LSTMParams, ...]]:
    """Return the gradients with respect to x, the initial state and each direction's parameters."""
    return layer.backward(residuals, dy, dstate_n, walk_back)


def walk_back(
    call: Call, residuals: Residuals, dy: CuPyArray, dh: CuPyArray, dc: CuPyArray
) -> tuple[CuPyArray, CuPyArray | None]:
    """Return dz and the gradient of projected states; overwrite `dh` and `dc` for the initial state."""
    problem, packed, D, P = call.problem, residuals.packed, call.D, call.P
    T, B, H = problem.T, problem.B, problem.H
    dz = call.empty(D, T, B, 4 * H)
    projection = problem.proj_size > 0
    dm = call.empty(D, B, H, wide=True) if projection else None
    dprojected = call.empty(D, T, B, P) if projection else None
    arguments = launch.struct(
        BACKWARD,
        **call.layer,
        **{"gates": residuals.buffers.z, "c": residuals.buffers.c, "dy": dy, "dh": dh, "dc": dc},
        **{"dm": dm, "dprojected": dprojected, "dz": dz},
    )
    wide = launch.wide(problem.dtype)
    recur = call.product((B, P, 4 * H), Matrix(4 * H), Matrix(P), Matrix(P), add=True, out=wide)
    project = call.product((B, H, P), Matrix(P), Matrix(H), Matrix(H), out=wide)
    first, each = call.times(0), loop.new()
    if dm is not None and dprojected is not None:
        call.launch(each, "backward_projected", B * P, arguments)
        each.product(project, call.moves(dprojected, first), call.moves(packed.weight_hr), call.moves(dm))
    call.launch(each, "backward_gates", B * H, arguments)
    each.product(recur, call.moves(dz, first), call.moves(packed.weight_hh), call.moves(dh))
    each.run(range(T - 1, -1, -1))
    return dz, dprojected
