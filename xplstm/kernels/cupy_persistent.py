"""Run the standard LSTM on CuPy arrays by one cooperative launch per layer, with weights on-chip.

Each block keeps the rows of W_hh of some hidden units on-chip for all steps
(Diamos et al., 2016). Blocks synchronise by counters. A cost model of the device
selects the partition. The number of blocks never exceeds the number that can be
resident at once, because the launch would otherwise deadlock.

Half precision, and float32 with ``precision="tf32"``, use mma instructions with weights in
registers. float32 and float64 use fused multiply-adds in reproducible summation order, with weights in
shared memory. With ``reproducible=True``, the input projection uses that order too, so that
the outputs have exactly the bits of XPL-EXACT. Without the compiled module, the same projection
runs during the capture of a CUDA graph, because CuPy does not allow cuBLAS calls then.

The code implements the equations of `xplstm.cells.lstm`, and the clauses XPL-CELL, XPL-SEQ
and XPL-EXACT of the specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import CuPyArray, Device, Proof
from xplstm.cells.params import LSTMParams
from xplstm.kernels._cuda import launch, layer, waits
from xplstm.kernels._cuda import proof as proofs
from xplstm.kernels._cuda.launch import CONSTANTS
from xplstm.kernels._cuda.layer import LAYER, Buffers, Call, Packed, Residuals, Segment

NAME = "cupy_persistent"
THREADS, WARP, BLOCK_OF_K = CONSTANTS.WALK_THREADS, CONSTANTS.WARP, CONSTANTS.BLOCK_OF_K
LANE_ROWS, TILE_ROWS, STEP_BYTES = CONSTANTS.LANE_ROWS, CONSTANTS.TILE_ROWS, CONSTANTS.STEP_BYTES
PROJECT_TILE, PROJECT_STAGED = CONSTANTS.PROJECT_TILE, CONSTANTS.PROJECT_STAGED
UNITS = 8
OLDEST = 80
"""Compute capability 8.0, in CuPy's notation."""

# For each kind that uses mma, the number of k that one instruction reads of a row.
STEP_OF_K = {kind: STEP_BYTES // launch.KINDS[kind] for kind in ("float16", "bfloat16", "tf32")}
MOST_UNITS = 32

PLAN = "units unit_blocks groups rows tiles passes chunk"
WAITS = "counters abandoned status patience"
FORWARD = launch.fields(
    f"{LAYER} {PLAN} weight z bias h_0 c_0 h_n c_n h c y exchange {WAITS} first:2 held slots keep from to"
)
BACKWARD = launch.fields(f"{LAYER} {PLAN} weight gates c dy dh dc dz exchange {WAITS}")
PROJECT = launch.fields("x weight z rows columns inputs held_rows first_row:2")

arrays = "cupy"
prepare = layer.prepare
__getattr__ = layer.lazy_why_not


class Costs(NamedTuple):
    """The parameters of the cost model, which compares partitions, and this kernel with cuBLAS products."""

    clock: float = 1.5e3
    """Cycles per microsecond."""
    exchange: float = 1.5
    """Microseconds until all blocks of a group have received a step's h."""
    step: float = 0.5
    """Microseconds of a step's gates and barriers."""
    cache_bytes: float = 48.0
    """Bytes per cycle that one SM reads from the L2 cache."""
    all_cache_bytes: float = 2600.0
    """Bytes per cycle that all SMs together read from the L2 cache."""
    fused_step: float = 10.0
    """Fixed microseconds of a step as a product and a kernel, for any sizes."""
    fused_operations: float = 3e7
    """Multiply-adds in float32 per microsecond of large cuBLAS products."""


# Conservative estimates from data sheets, not measurements. Costs that ``python -m xplstm prove --fit`` fits
# on the device replace them.
COSTS = Costs()


class Chip(NamedTuple):
    """The properties of a device that determine the partition."""

    processors: int
    """Number of SMs."""
    shared: int
    """Largest shared memory of one block, in bytes."""


class Plan(NamedTuple):
    """A partition of the work; Plan in walk.cuh documents each field."""

    tile_rows: int
    units: int
    unit_blocks: int
    groups: int
    rows: int
    tiles: int
    passes: int
    chunk: int
    shared: int
    """Bytes of shared memory per block."""
    cost: float
    """Microseconds per step, by the cost model."""

    def fields(self) -> dict[str, int]:
        """Return the fields that the kernel reads, by name."""
        return {name: getattr(self, name) for name in PLAN.split()}


def _up(a: int, b: int) -> int:
    """Return `a` divided by `b`, rounded up."""
    return -(-a // b)


@lru_cache(maxsize=1024)
def best_plan(
    chip: Chip, directions: int, B: int, H: int, kind: str, backward: bool, costs: Costs
) -> Plan | None:
    """Return the cheapest partition that fits the chip, or None."""
    return min(plans(chip, directions, B, H, kind, backward, costs), key=lambda p: p.cost, default=None)


def plans(
    chip: Chip, directions: int, B: int, H: int, kind: str, backward: bool, costs: Costs
) -> Iterator[Plan]:
    """Yield every partition that fits the chip, with at most one block per SM."""
    mma = kind in STEP_OF_K
    for groups in range(1, min(_up(B, TILE_ROWS if mma else LANE_ROWS), chip.processors // directions) + 1):
        rows, most = _up(B, groups), chip.processors // (directions * groups)
        if groups > 1 and rows == _up(B, groups - 1):
            continue
        for units in _units(H, most, mma):
            for tile_rows in (TILE_ROWS,) if mma else (4, 8, 16):
                for tiles in (1, 2, 4, 8):
                    passes = _up(rows, tiles * tile_rows)
                    plan = Plan(tile_rows, units, _up(H, units), groups, rows, tiles, passes, 0, 0, 0.0)
                    sized = _measure_plan(plan, chip, H, kind, backward)
                    if 0 < sized.shared <= chip.shared:
                        yield sized._replace(cost=plan_cost(sized, H, kind, backward, costs))


def _units(H: int, most: int, mma: bool) -> Iterator[int]:
    """Yield the units per block for at most `most` blocks; for mma, larger numbers are candidates too."""
    fewest = _up(_up(H, min(_up(H, UNITS), most)), UNITS) * UNITS
    return iter(range(fewest, MOST_UNITS + 1, UNITS) if mma else (fewest,))


def _measure_plan(p: Plan, chip: Chip, H: int, kind: str, backward: bool) -> Plan:
    """Return the plan with its bytes of shared memory, or 0 if the plan is not possible."""
    if kind in STEP_OF_K:
        return p._replace(shared=_mma_bytes(p, H, kind, backward))
    return _measure_backward(p, chip, H, kind) if backward else _measure_forward(p, H, kind)


def _cell_bytes(p: Plan, backward: bool, wide: int) -> int:
    """Return the bytes of a block's cells and one flag: Held and HeldBack in walk.cuh."""
    return p.passes * p.tiles * p.tile_rows * p.units * ((9 if backward else 6) * wide + 4) + 4


def _measure_forward(p: Plan, H: int, kind: str) -> Plan:
    """Return the plan with its bytes: weights, h, sums, biases and cells; several passes double-buffer h."""
    columns, rows, wide = 4 * p.units, p.tiles * p.tile_rows, launch.KINDS[kind]
    numbers = H * (columns + rows * min(p.passes, 2)) + _up(H, BLOCK_OF_K) * rows * columns + columns
    return p._replace(shared=numbers * wide + _cell_bytes(p, False, wide))


def _measure_backward(p: Plan, chip: Chip, H: int, kind: str) -> Plan:
    """Return the plan with its bytes: weights, sums, cells, and dz, whole or in double-buffered chunks."""
    rows, wide = p.tiles * p.tile_rows, launch.KINDS[kind]
    slices = max(1, THREADS // WARP // (p.tiles * (p.units // UNITS)))
    fixed = (4 * H * p.units + slices * rows * p.units) * wide + _cell_bytes(p, True, wide)
    room = max(0, chip.shared - fixed) // (rows * wide)
    whole = p.passes == 1 and room >= 4 * H
    chunk = 4 * H if whole else min(4 * H, room // 8 * 4)
    if chunk < min(4 * H, WARP):
        return p
    return p._replace(chunk=chunk, shared=fixed + rows * wide * chunk * (1 if whole else 2))


class Slices(NamedTuple):
    """The division of the steps of k among warps, as in persistent_mma.cu."""

    steps: int
    slices: int
    columns: int
    """Number of tiles of 8 columns."""
    rest: int
    """Number of a warp's steps whose weights are in shared memory."""


def slice_steps(p: Plan, H: int, kind: str, backward: bool) -> Slices:
    """Return the division of the steps of k for a plan with mma."""
    columns = p.units // 8 if backward else p.units // 2
    batch = 8 if columns == 1 else 4 if columns <= 12 else 2
    kept = (48 if columns <= 2 else 64) // columns // batch * batch
    steps = _up(4 * H if backward else H, STEP_OF_K[kind])
    share = _up(steps, THREADS // WARP)
    return Slices(steps, _up(steps, share), columns, _up(max(0, share - kept), batch) * batch)


def _mma_bytes(p: Plan, H: int, kind: str, backward: bool) -> int:
    """Return the bytes of the weights that registers cannot hold, and of sums, biases and cells."""
    s = slice_steps(p, H, kind, backward)
    rest = THREADS // WARP * s.rest * s.columns * WARP * 8
    parts = s.slices * p.tiles * TILE_ROWS * 8 * s.columns * 4
    return rest + parts + (0 if backward else 16 * p.units) + _cell_bytes(p, backward, 4)


def plan_cost(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the modelled microseconds of a step: computation and fixed costs per pass, plus the exchange."""
    cycles = (_mma_cycles if kind in STEP_OF_K else _fma_cycles)(p, H, kind, backward, costs)
    waiting = costs.exchange if p.unit_blocks > 1 else 0.0
    return p.passes * (cycles / costs.clock + costs.step) + waiting


def _fma_cycles(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the cycles of a pass with fused multiply-adds.

    A lane computes 4 rows. It computes 4 columns backward, and forward one column for each 4 rows of a tile.
    The product of one pass or chunk overlaps with the staging of the next.
    """
    k, wide, lanes = 4 * H if backward else H, launch.KINDS[kind] // 4, p.tile_rows // LANE_ROWS
    columns, chains = (4, THREADS // WARP) if backward else (lanes, _up(k, BLOCK_OF_K))
    tiles = p.tiles * (p.units // UNITS)
    turns = tiles * k * lanes / 16 if backward else tiles * k
    arithmetic = turns * LANE_ROWS * columns * wide / 4
    # Wavefronts of shared memory for one k. Wide loads of two lanes merge if both read the same address.
    reading = turns * wide * ((4 / lanes + 2) if backward else (3 + (columns == 4)))
    latency = _up(tiles * chains, THREADS // WARP) * k / chains * max(LANE_ROWS * columns, 8) * wide
    latency = latency * lanes / 16 if backward else latency
    staging = _from_cache(p, p.tiles * p.tile_rows * k * 4 * wide, costs)
    product = max(arithmetic, reading, latency)
    alone = p.passes == 1 and p.chunk in (0, k)
    return product + staging if alone else max(product, staging)


def _from_cache(p: Plan, size: int, costs: Costs) -> float:
    """Return the cycles in which every block reads `size` bytes from the L2 cache."""
    return max(size / costs.cache_bytes, size * p.groups * p.unit_blocks / costs.all_cache_bytes)


def _mma_cycles(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the cycles of a pass with mma, in which reads of h overlap with products, and the sums follow.

    Each of the four tensor cores needs 8 cycles per instruction. Weights in shared memory need 2 cycles each.
    """
    s = slice_steps(p, H, kind, backward)
    reading = _from_cache(p, p.tiles * TILE_ROWS * s.steps * STEP_BYTES, costs)
    products = p.tiles * s.steps * s.columns * 2
    weights = p.tiles * s.slices * s.rest * s.columns * 2
    sums = s.slices * p.tiles * s.columns * 8
    return max(reading, products, weights) + sums


def fused_cost(directions: int, B: int, H: int, kind: str, costs: Costs) -> float:
    """Return the modelled microseconds of a step as a cuBLAS product and a kernel."""
    faster = {"float64": 0.5, "float32": 1.0, "tf32": 4.0}.get(kind, 8.0)
    return costs.fused_step + directions * 4 * B * H * H / (costs.fused_operations * faster)


def chip_of(device: Device) -> Chip:
    """Return the properties of a device that determine the partition."""
    known = device.attributes
    return Chip(known["MultiProcessorCount"], known["MaxSharedMemoryPerBlockOptin"])


def costs_of(device: Device) -> Costs:
    """Return the costs fitted on the device, or the estimates."""
    found = proofs.find_costs(device.id)
    return Costs(**found) if found else COSTS


def _plan(problem: Problem, backward: bool) -> Plan | None:
    """Return the cheapest plan, or None; batches with the same number of tiles share a cached plan."""
    kind = layer.kind(problem)
    tile = TILE_ROWS if kind in STEP_OF_K else LANE_ROWS
    sizes = len(problem.reverse), _up(problem.B, tile) * tile, problem.H, kind
    return best_plan(chip_of(problem.device), *sizes, backward, costs_of(problem.device))


def supports(problem: Problem) -> str | None:
    """Return None for a standard LSTM that fits the chip, else the reason."""
    reason = layer.why_not(problem)
    if reason is not None:
        return reason
    if problem.proj_size:
        return f"the kernel does not support a projection, and proj_size is {problem.proj_size}"
    device = problem.device
    reason = waits.why_not(device.id)
    if reason is not None:
        return reason
    if int(device.compute_capability) < OLDEST or not device.attributes["CooperativeLaunch"]:
        return "the device has a compute capability below 8.0, or does not support cooperative launches"
    best = [_plan(problem, backward) for backward in ((False, True) if problem.keep else (False,))]
    if problem.T * problem.B and None in best:
        chip = chip_of(problem.device)
        return (
            f"hidden_size={problem.H} with a batch of {problem.B} does not fit into {chip.processors} SMs "
            f"with {chip.shared} bytes of shared memory each"
        )
    return None


def proof(problem: Problem, _: object) -> Proof:
    """Return the kernel's proof on the device; a separate process must run the trials."""
    return proofs.decide(NAME, layer.kind(problem), problem.device)


def slower(problem: Problem) -> str | None:
    """Return why cuBLAS products are expected to be faster, or None."""
    if problem.reproducible or layer.refuses_products(problem):
        return None
    walks = (False, True) if problem.keep else (False,)
    cost = sum(plan.cost for plan in (_plan(problem, backward) for backward in walks) if plan is not None)
    kind = layer.kind(problem)
    costs = costs_of(problem.device)
    other = len(walks) * fused_cost(len(problem.reverse), problem.B, problem.H, kind, costs)
    if cost > other:
        return f"a step is expected to take {cost:.1f} us, but {other:.1f} us with cuBLAS products"
    return None


def canonical_sums(problem: Problem) -> bool:
    """Return whether all sums use the reproducible order; by default cuBLAS projects the input."""
    return problem.reproducible and layer.kind(problem) not in STEP_OF_K


def forward(
    problem: Problem,
    packed: Packed,
    x: CuPyArray,
    state: LSTMState,
    valid: CuPyArray | None,
    plan: Plan | None = None,
) -> tuple[CuPyArray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·), by the cheapest or the given plan."""
    return layer.forward(problem, packed, x, state, valid, partial(walk, plan=plan), _project)


def _project(call: Call, packed: Packed, x: CuPyArray, z: CuPyArray, segment: Segment) -> None:
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
    grid = _up(rows, PROJECT_TILE), _up(columns, PROJECT_TILE), call.D
    kernel(grid, (CONSTANTS.WALK_THREADS,), (arguments,), shared_mem=shared)


def _launch(call: Call, name: str, plan: Plan, arguments: np.ndarray) -> None:
    """Launch a kernel cooperatively; CUDA raises an error if not all blocks can be resident.

    Raises KernelError if a wait of an earlier launch was abandoned.

    The grid extends along y. Along x, CuPy would launch only the blocks that fit, which would deadlock.
    """
    waits.check(NAME, call.problem.device.id)
    kind = layer.kind(call.problem)
    file, each = ("persistent_mma.cu", plan.units) if kind in STEP_OF_K else ("persistent.cu", plan.tile_rows)
    kernel = launch.kernel(file, f"{name}_{each}", kind, cooperative=True)
    kernel.max_dynamic_shared_size_bytes = chip_of(call.problem.device).shared
    blocks = call.D * plan.groups * plan.unit_blocks
    kernel((1, blocks), (THREADS,), (arguments,), shared_mem=plan.shared)


def _exchange(call: Call, plan: Plan, height: int) -> dict[str, Any]:
    """Allocate zeroed counters for synchronisation, followed by the exchange buffers."""
    kind, groups = layer.kind(call.problem), call.D * plan.groups
    row = _up(height, STEP_OF_K[kind]) * STEP_BYTES if kind in STEP_OF_K else height * launch.KINDS[kind]
    sent = 2 * groups * plan.passes * plan.tiles * plan.tile_rows * row
    counters = groups * plan.unit_blocks * 4
    exchange = _up(counters + 4, 256) * 256
    both = call.cp.zeros((exchange + sent,), np.uint8)
    begin = launch.address(both)
    return {
        **{"counters": both, "abandoned": begin + counters, "exchange": begin + exchange},
        **{"status": waits.status(call.problem.device.id).address, "patience": int(waits.PATIENCE * 1e9)},
    }


def walk(call: Call, packed: Packed, buffers: Buffers, segment: Segment, plan: Plan | None) -> None:
    """Run all steps of a segment forward by one launch."""
    plan = plan or _plan(call.problem, False)
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


def backward(
    residuals: Residuals, dy: CuPyArray, dstate_n: LSTMState, plan: Plan | None = None
) -> tuple[CuPyArray, LSTMState, tuple[LSTMParams, ...]]:
    """Return the gradients with respect to x, the initial state and each direction's parameters."""
    return layer.backward(residuals, dy, dstate_n, partial(walk_back, plan=plan))


def walk_back(
    call: Call, residuals: Residuals, dy: CuPyArray, dh: CuPyArray, dc: CuPyArray, plan: Plan | None
) -> tuple[CuPyArray, CuPyArray | None]:
    """Run all steps backward by one launch; return the gradient with respect to z."""
    problem = call.problem
    plan = plan or _plan(problem, True)
    assert plan is not None, "supports checked that a plan exists"
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
