"""Launch the walks of persistent.cu and persistent_mma.cu: all steps of a layer in one launch.

In a plan with one block per group, blocks never wait, so the launch cannot hang. In other plans, blocks wait
for counters, or in TF32 for flags inside the exchanged words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import CuPyArray
from xplstm.cells.params import LSTMParams
from xplstm.kernels._cuda import launch, layer, partitions, waits
from xplstm.kernels._cuda.launch import CONSTANTS
from xplstm.kernels._cuda.layer import LAYER, Buffers, Call, Packed, Residuals, Segment
from xplstm.kernels._cuda.partitions import PLAN, STEP_BYTES, STEP_OF_K, WARP, Plan, up

Outputs: TypeAlias = tuple[CuPyArray, LSTMState, Residuals | None]
Gradients: TypeAlias = tuple[CuPyArray, LSTMState, tuple[LSTMParams, ...]]

WAITING = "cupy_persistent"
"""Name of the kernel whose blocks wait for each other."""
PROJECT_TILE, PROJECT_STAGED = CONSTANTS.PROJECT_TILE, CONSTANTS.PROJECT_STAGED
WAITS = "counters abandoned status patience"
FORWARD = launch.fields(
    f"{LAYER} {PLAN} weight z bias h_0 c_0 h_n c_n h c y exchange {WAITS} first:2 held slots keep from to"
)
BACKWARD = launch.fields(f"{LAYER} {PLAN} weight gates c dy dh dc dz exchange {WAITS}")
PROJECT = launch.fields("x weight z rows columns inputs held_rows first_row:2")

OLDEST = 80
"""Compute capability 8.0, in CuPy's notation."""


def why_not(problem: Problem) -> str | None:
    """Return why a walk in one launch cannot run `problem`, whatever its partition, or None."""
    reason = layer.why_not(problem)
    if reason is None and problem.proj_size:
        return f"the kernel does not support a projection, and proj_size is {problem.proj_size}"
    if reason is None and int(problem.device.compute_capability) < OLDEST:
        return "the device has a compute capability below 8.0"
    return reason


def project(call: Call, packed: Packed, x: CuPyArray, z: CuPyArray, segment: Segment) -> None:
    """Compute ``W_ih x`` of a segment by cuBLAS, or in reproducible summation order if required."""
    if call.problem.reproducible or layer.refuses_products(call.problem):
        _project_in_order(call, packed, x, z, segment)
    else:
        layer.project_input(call, packed, x, z, segment)


def _project_in_order(call: Call, packed: Packed, x: CuPyArray, z: CuPyArray, segment: Segment) -> None:
    """Compute ``W_ih x`` of a segment by one launch, in reproducible summation order."""
    B, rows, columns = x.shape[1], (segment.stop - segment.start) * x.shape[1], z.shape[3]
    arguments = launch.struct(
        PROJECT,
        **{"x": x, "weight": packed.weight_ih, "z": z, "rows": rows, "columns": columns},
        **{"inputs": x.shape[2], "held_rows": z.shape[1] * B},
        **{"first_row": [first * B for first in segment.first]},
    )
    kernel = launch.kernel("project.cu", "project_input", call.problem.dtype)
    shared = 2 * PROJECT_STAGED * (PROJECT_TILE + 4) * z.itemsize
    grid = up(rows, PROJECT_TILE), up(columns, PROJECT_TILE), call.D
    kernel(grid, (CONSTANTS.WALK_THREADS,), (arguments,), shared_mem=shared)


def _launch(call: Call, name: str, plan: Plan, arguments: np.ndarray) -> None:
    """Launch a kernel, cooperatively if blocks wait; CUDA then raises an error unless all can be resident.

    Raises KernelError if a wait of an earlier launch was abandoned.

    The grid extends along y. Along x, CuPy would launch only the blocks that fit, which would deadlock.
    """
    if not plan.alone:
        waits.check(WAITING, call.problem.device.id)
    kind = layer.kind(call.problem)
    units = plan.units // (partitions.THREADS // WARP) if plan.alone else plan.units
    file, each = ("persistent_mma.cu", units) if kind in STEP_OF_K else ("persistent.cu", plan.tile_rows)
    entry = f"{name}_alone_{each}" if plan.alone else f"{name}_{each}"
    kernel = launch.kernel(file, entry, kind, cooperative=not plan.alone)
    kernel.max_dynamic_shared_size_bytes = partitions.chip_of(call.problem.device).shared
    blocks = call.D * plan.groups * plan.unit_blocks
    kernel((1, blocks), (partitions.THREADS,), (arguments,), shared_mem=plan.shared)


def _exchange(call: Call, plan: Plan, height: int) -> dict[str, Any]:
    """Allocate zeroed counters (not in TF32) and exchange buffers, unless each group has only one block."""
    if plan.alone:
        return dict.fromkeys(("exchange", *WAITS.split()), None)
    kind, groups = layer.kind(call.problem), call.D * plan.groups
    row = up(height, STEP_OF_K[kind]) * STEP_BYTES if kind in STEP_OF_K else height * launch.KINDS[kind]
    sent = 2 * groups * plan.passes * plan.tiles * plan.tile_rows * row
    counters = 0 if kind == "tf32" else groups * plan.unit_blocks * 4
    exchange = up(counters + 4, 256) * 256
    both = call.cp.zeros((exchange + sent,), np.uint8)
    begin = launch.address(both)
    return {
        **{"counters": both, "abandoned": begin + counters, "exchange": begin + exchange},
        **{"status": waits.status(call.problem.device.id).address, "patience": int(waits.PATIENCE * 1e9)},
    }


def walk(call: Call, packed: Packed, buffers: Buffers, segment: Segment, plan: Plan | None) -> None:
    """Run all steps of a segment forward by one launch."""
    assert plan is not None, "supports checked that a plan exists"
    shared = _exchange(call, plan, call.problem.H)
    z, h, c = buffers.z, buffers.h, buffers.c
    arguments = launch.struct(
        FORWARD,
        **call.layer,
        **plan.fields(),
        **shared,
        **{"weight": packed.weight_hh, "z": z, "bias": packed.bias, "h": h, "c": c, "y": buffers.y},
        **{"h_0": buffers.start.h, "c_0": buffers.start.c, "h_n": buffers.end.h, "c_n": buffers.end.c},
        **{"held": z.shape[1], "slots": h.shape[1], "keep": call.problem.keep},
        **{"from": segment.start, "to": segment.stop, "first": segment.first},
    )
    _launch(call, "walk", plan, arguments)


def walk_back(
    call: Call, residuals: Residuals, dy: CuPyArray, dh: CuPyArray, dc: CuPyArray, plan: Plan | None
) -> tuple[CuPyArray, CuPyArray | None]:
    """Run all steps backward by one launch; return the gradient with respect to z."""
    assert plan is not None, "supports checked that a plan exists"
    problem = call.problem
    dz = call.empty(call.D, problem.T, problem.B, 4 * problem.H)
    shared = _exchange(call, plan, 4 * problem.H)
    buffers = residuals.buffers
    arguments = launch.struct(
        BACKWARD,
        **call.layer,
        **plan.fields(),
        **shared,
        **{"weight": residuals.packed.weight_hh, "gates": buffers.z, "c": buffers.c},
        **{"dy": dy, "dh": dh, "dc": dc, "dz": dz},
    )
    _launch(call, "walk_back", plan, arguments)
    return dz, None


def passes(
    plan_of: Callable[[Problem, bool], Plan | None],
) -> tuple[Callable[..., Outputs], Callable[..., Gradients]]:
    """Return the forward and the backward pass of a kernel, whose plans `plan_of` chooses."""

    def forward(
        problem: Problem,
        packed: Packed,
        x: CuPyArray,
        state: LSTMState,
        valid: CuPyArray | None,
        plan: Plan | None = None,
    ) -> Outputs:
        """Run every direction over x (T, B, I) from `state` (D, B, ·), by the best or the given plan."""
        run = partial(walk, plan=plan or plan_of(problem, False))
        return layer.forward(problem, packed, x, state, valid, run, project)

    def backward(
        residuals: Residuals, dy: CuPyArray, dstate_n: LSTMState, plan: Plan | None = None
    ) -> Gradients:
        """Return the gradients with respect to x, the initial state and each direction's parameters."""
        run = partial(walk_back, plan=plan or plan_of(residuals.problem, True))
        return layer.backward(residuals, dy, dstate_n, run)

    return forward, backward
