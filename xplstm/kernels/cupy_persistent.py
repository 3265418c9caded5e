"""CuPy with one cooperative launch for a whole layer: weights stay on the chip from step to step.

Each block holds some hidden units' rows of W_hh in shared memory; blocks wait for each other by
counters. How the work is cut is chosen by a model of its cost on the device at
hand, and never so that more blocks are launched than run at the same time, which would
wait for ever.

Under ``XPLSTM_REPRODUCIBLE=1`` the input projection is made with the published
order of sums too, so that every bit of the outputs is that of XPL-EXACT.

No row of the seam's table names it before it has run on a GPU; its tests run it emulated.

Derived from the equations of `xplstm._cell`, clauses XPL-CELL, XPL-SEQ and
XPL-EXACT of the specification; weights that stay on the chip after Diamos et al. (2016).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from xplstm import _cuda, _cuda_layer
from xplstm._cuda_layer import LAYER, Buffers, Call, Packed, Residuals, Segment
from xplstm._params import LSTMParams, LSTMState, Problem
from xplstm._typing import Array, Device

# cuBLAS makes the input projection unless the order of its sums matters.
CANONICAL_SUMS = os.environ.get("XPLSTM_REPRODUCIBLE", "") == "1"

THREADS = 256
WARP = 32
BLOCK_OF_K = 128
UNITS = 8
LANE_ROWS = 4
TILE_COLUMNS = 32
HALF = 2  # bytes

PLAN = "units unit_blocks groups rows tiles passes chunk"
FORWARD = _cuda.fields(
    f"{LAYER} {PLAN} weight z bias h c y exchange counters first:2 held slots keep from to"
)
BACKWARD = _cuda.fields(f"{LAYER} {PLAN} weight gates c dy dh dc dz exchange counters")
PROJECT = _cuda.fields("x weight z rows columns inputs held_rows first_row:2")

prepare = _cuda_layer.prepare


class Costs(NamedTuple):
    """What the choice between cuts, and against products by cuBLAS, is made by."""

    clock: float = 1.5e3
    """Cycles in a microsecond."""
    exchange: float = 1.5
    """Microseconds until all blocks of a group have a step's h."""
    step: float = 0.5
    """Microseconds of a step's gates and barriers."""
    cache_bytes: float = 20.0
    """Bytes a cycle that one multiprocessor gets from the second cache."""
    fused_step: float = 10.0
    """Microseconds of a step as a product and a kernel, whatever the sizes."""
    fused_operations: float = 3e7
    """Multiply-adds in float32 a microsecond that cuBLAS makes of large products."""


# Estimates from data sheets, on the careful side: no GPU has measured them yet.
COSTS = Costs()


class Chip(NamedTuple):
    """What of a device decides the cut."""

    processors: int
    shared: int
    """Bytes of shared memory that one block may have."""


class Plan(NamedTuple):
    """How the work is cut; Plan in persistent.cu says what each number is."""

    tile_rows: int
    units: int
    unit_blocks: int
    groups: int
    rows: int
    tiles: int
    passes: int
    chunk: int
    shared: int
    """Bytes of shared memory a block."""
    cost: float
    """Microseconds a step, by the model."""

    def fields(self) -> dict[str, int]:
        """Those that the kernel is told, by name."""
        return {name: getattr(self, name) for name in PLAN.split()}


def _up(a: int, b: int) -> int:
    """`a` divided by `b`, rounded up."""
    return -(-a // b)


@cache
def best_plan(
    chip: Chip, directions: int, B: int, H: int, size: int, backward: bool, costs: Costs
) -> Plan | None:
    """The cheapest cut that fits the chip, if there is one; `size` is that of a number in bytes."""
    return min(_plans(chip, directions, B, H, size, backward, costs), key=lambda p: p.cost, default=None)


def _plans(
    chip: Chip, directions: int, B: int, H: int, size: int, backward: bool, costs: Costs
) -> Iterator[Plan]:
    """Every cut that fits; more units in a block than the processors ask for would leave some idle."""
    for groups in range(1, min(_up(B, LANE_ROWS), chip.processors // directions) + 1):
        unit_blocks = min(_up(H, UNITS), chip.processors // (directions * groups))
        units = _up(_up(H, unit_blocks), UNITS) * UNITS
        unit_blocks, rows = _up(H, units), _up(B, groups)
        for tile_rows in (16,) if size == HALF else (4, 8, 16):
            for tiles in (1, 2, 4, 8):
                passes = _up(rows, tiles * tile_rows)
                plan = Plan(tile_rows, units, unit_blocks, groups, rows, tiles, passes, 0, 0, 0.0)
                sized = _sized_back(plan, chip, H, size) if backward else _sized(plan, H, size)
                if sized.shared <= chip.shared and sized.chunk >= 0:
                    yield sized._replace(cost=_cost(sized, H, size, backward, costs))


def padded(k: int, size: int) -> int:
    """Numbers from one row of k's to the next, as in persistent.cu."""
    return _up(k, 16) * 16 + 8 if size == HALF else k


def _slices(p: Plan, k: int, size: int, backward: bool) -> int:
    """Into how many parts a sum over k is cut."""
    columns = p.units if backward else 4 * p.units
    if size != HALF and not backward:
        return _up(k, BLOCK_OF_K)
    return max(1, THREADS // WARP // (p.tiles * _up(columns, TILE_COLUMNS if size == HALF else UNITS)))


def _sized(p: Plan, H: int, size: int) -> Plan:
    """With the shared memory that the forward walk takes: weights, h, sums of slices, c."""
    columns, rows = 4 * p.units, p.tiles * p.tile_rows
    held = padded(H, size) * (columns + rows)
    wide = _slices(p, H, size, False) * rows * columns + p.passes * rows * p.units
    return p._replace(shared=held * size + wide * max(size, 4))


def _sized_back(p: Plan, chip: Chip, H: int, size: int) -> Plan:
    """With that of the backward walk: weights, sums of slices, dh and dc; as much of dz as is left."""
    rows, (step, margin) = p.tiles * p.tile_rows, (16, 8) if size == HALF else (4, 0)
    wide = _slices(p, 4 * H, size, True) * rows * p.units + 2 * p.passes * rows * p.units
    fixed = padded(4 * H, size) * p.units * size + wide * max(size, 4)
    room = (chip.shared - fixed) // (rows * size) - margin
    chunk = min(_up(4 * H, step), room // step) * step
    if chunk < min(4 * H, WARP):
        return p._replace(chunk=-1)
    return p._replace(chunk=chunk, shared=fixed + rows * size * (chunk + margin))


def _cost(p: Plan, H: int, size: int, backward: bool, costs: Costs) -> float:
    """Microseconds a step: the slowest of arithmetic, shared memory and latency, reading, waiting."""
    k = 4 * H if backward else H
    product = _mma_cycles(p, k, backward) if size == HALF else _fma_cycles(p, k, size, backward)
    staging = p.tiles * p.tile_rows * k * size / costs.cache_bytes
    cycles = p.passes * (product + staging)
    return cycles / costs.clock + costs.step * p.passes + (costs.exchange if p.unit_blocks > 1 else 0.0)


def _fma_cycles(p: Plan, k: int, size: int, backward: bool) -> float:
    """Cycles of a pass's product: a lane has 4 rows, and forward one column for each 4 rows of a tile."""
    wide, lanes = size // 4, p.tile_rows // LANE_ROWS
    columns, chains = (1, THREADS // WARP) if backward else (lanes, _up(k, BLOCK_OF_K))
    tiles = p.tiles * (p.units // UNITS)
    work = tiles * k * lanes // 4 if backward else tiles * k
    arithmetic = work * LANE_ROWS * columns * wide / 4
    reading = work * (2 + (columns == 4)) * wide
    latency = _up(tiles * chains, THREADS // WARP) * k / chains * max(LANE_ROWS * columns, 8) * wide
    return max(arithmetic, reading, latency)


def _mma_cycles(p: Plan, k: int, backward: bool) -> float:
    """Cycles of a pass's product: 16 of k, 16 rows and up to 32 columns take 12 readings of shared memory."""
    steps = p.tiles * _up(p.units if backward else 4 * p.units, TILE_COLUMNS) * _up(k, 16)
    return max(12.0 * steps, 40.0 * _up(steps, THREADS // WARP))


def fused_cost(directions: int, B: int, H: int, size: int, costs: Costs) -> float:
    """Microseconds a step as a product and a kernel."""
    operations = costs.fused_operations * (8 if size == HALF else 4 / size)
    return costs.fused_step + directions * 4 * B * H * H / operations


def _chip(device: Device) -> Chip:
    known = device.attributes
    return Chip(known["MultiProcessorCount"], known["MaxSharedMemoryPerBlockOptin"])


def _plan(problem: Problem, backward: bool) -> Plan | None:
    size = _cuda.SIZES[problem.dtype]
    return best_plan(_chip(problem.device), len(problem.reverse), problem.B, problem.H, size, backward, COSTS)


def supports(problem: Problem) -> str | None:
    """Run what fits the chip and is expected to be faster than products by cuBLAS."""
    reason = _cuda_layer.why_not(problem)
    if reason is not None:
        return reason
    if problem.proj_size:
        return f"it has no projection, and proj_size is {problem.proj_size}"
    if problem.T * problem.B == 0:
        return "there is no step to run"
    known = problem.device.attributes
    if known["ComputeCapabilityMajor"] < 8 or not known["CooperativeLaunch"]:
        return "the device is older than compute capability 8.0 or launches nothing cooperatively"
    plans = [_plan(problem, backward) for backward in ((False, True) if problem.keep else (False,))]
    if None in plans:
        chip = _chip(problem.device)
        return (
            f"hidden_size={problem.H} does not fit: {chip.processors} processors with "
            f"{chip.shared} bytes of shared memory hold W_hh of fewer units"
        )
    cost = plans[0].cost if plans[0] is not None else 0.0
    size = _cuda.SIZES[problem.dtype]
    other = fused_cost(len(problem.reverse), problem.B, problem.H, size, COSTS)
    if CANONICAL_SUMS and size == HALF:
        return f"dtype {problem.dtype} has no published order of sums, which XPLSTM_REPRODUCIBLE asks for"
    if cost > other and not CANONICAL_SUMS:
        return f"a step is expected to take {cost:.1f} us, and {other:.1f} us by products of cuBLAS"
    return None


def forward(
    problem: Problem, packed: Packed, x: Array, state: LSTMState, valid: Array | None
) -> tuple[Array, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·)."""
    project = _project_input if CANONICAL_SUMS else _cuda_layer.project_input
    return _cuda_layer.forward(problem, packed, x, state, valid, _walk, project)


def _project_input(call: Call, packed: Packed, x: Array, z: Array, segment: Segment) -> None:
    """``W_ih x`` of a segment's steps in the published order of sums."""
    B, rows, columns = x.shape[1], (segment.stop - segment.start) * x.shape[1], z.shape[3]
    arguments = _cuda.struct(
        PROJECT,
        **{"x": x, "weight": packed.weight_ih, "z": z, "rows": rows, "columns": columns},
        **{"inputs": x.shape[2], "held_rows": z.shape[1] * B},
    )
    arguments["first_row"][0, : call.D] = [first * B for first in segment.first]
    kernel = _cuda.kernel("persistent.cu", "project_input", call.problem.dtype)
    shared = (32 * 33 + 8 * 32) * z.itemsize
    kernel((_up(columns, 32), _up(rows, 8), call.D), (32, 8), (arguments,), shared_mem=shared)


def _launch(call: Call, name: str, plan: Plan, arguments: np.ndarray) -> None:
    """One cooperative launch of as many blocks as the plan says, none of which has to wait for room."""
    kernel = _cuda.kernel("persistent.cu", f"{name}_{plan.tile_rows}", call.problem.dtype, cooperative=True)
    kernel.max_dynamic_shared_size_bytes = plan.shared
    blocks = call.D * plan.groups * plan.unit_blocks
    kernel((blocks,), (THREADS,), (arguments,), shared_mem=plan.shared)


def _exchange(call: Call, plan: Plan, height: int) -> dict[str, Array]:
    """What blocks hand each other, and the counters by which they wait; mma reads the padding too."""
    blocks = call.D * plan.groups
    rows = plan.passes * plan.tiles * plan.tile_rows
    height = padded(height, _cuda.SIZES[call.problem.dtype])
    return {
        "exchange": call.cp.zeros((2, blocks, rows, height), call.stored),
        "counters": call.cp.zeros((blocks, plan.unit_blocks), np.uint32),
    }


def _walk(call: Call, packed: Packed, buffers: Buffers, segment: Segment) -> None:
    """One launch."""
    plan = _plan(call.problem, False)
    assert plan is not None, "supports has seen to it"
    shared = _exchange(call, plan, call.problem.H)
    y, z, h, c, _ = buffers
    arguments = _cuda.struct(
        FORWARD,
        **call.layer,
        **plan.fields(),
        **shared,
        **{"weight": packed.weight_hh, "z": z, "bias": packed.bias, "h": h, "c": c, "y": y},
        **{"held": z.shape[1], "slots": h.shape[1], "keep": call.problem.keep},
        **{"from": segment.start, "to": segment.stop},
    )
    arguments["first"][0, : call.D] = segment.first
    _launch(call, "walk", plan, arguments)


def backward(
    residuals: Residuals, dy: Array, dstate_n: LSTMState
) -> tuple[Array, LSTMState, tuple[LSTMParams, ...]]:
    """Gradients by x, by the initial state and by each direction's parameters."""
    return _cuda_layer.backward(residuals, dy, dstate_n, _walk_back)


def _walk_back(
    call: Call, residuals: Residuals, dy: Array, dh: Array, dc: Array
) -> tuple[Array, Array | None]:
    """One launch."""
    problem = call.problem
    plan = _plan(problem, True)
    assert plan is not None, "supports has seen to it"
    dz = call.empty(call.D, problem.T, problem.B, 4 * problem.H)
    shared = _exchange(call, plan, 4 * problem.H)
    buffers = residuals.buffers
    arguments = _cuda.struct(
        BACKWARD,
        **call.layer,
        **plan.fields(),
        **shared,
        **{"weight": residuals.packed.weight_hh, "gates": buffers.z, "c": buffers.c},
        **{"dy": dy, "dh": dh, "dc": dc, "dz": dz},
    )
    _launch(call, "walk_back", plan, arguments)
    return dz, None
