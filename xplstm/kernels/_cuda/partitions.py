"""Partition a layer's recurrence among thread blocks, by a cost model of the device.

A plan states how many hidden units and batch entries a block has. The number of blocks never exceeds the
number that can be resident at once, because a launch whose blocks wait for each other would otherwise
deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from xplstm._problem import Problem
from xplstm._typing import Device
from xplstm.kernels._cuda import launch, layer
from xplstm.kernels._cuda import proof as proofs
from xplstm.kernels._cuda.launch import CONSTANTS

THREADS, WARP, BLOCK_OF_K = CONSTANTS.WALK_THREADS, CONSTANTS.WARP, CONSTANTS.BLOCK_OF_K
LANE_ROWS, TILE_ROWS, STEP_BYTES = CONSTANTS.LANE_ROWS, CONSTANTS.TILE_ROWS, CONSTANTS.STEP_BYTES
UNITS = 8
# For each kind that uses mma, the number of k that one instruction reads of a row.
STEP_OF_K = {kind: STEP_BYTES // launch.KINDS[kind] for kind in ("float16", "bfloat16", "tf32")}
MOST_UNITS = 32
WARP_UNITS = (8, 16)
"""Units of a warp in a single-block group, for mma."""

CELL_CYCLES = {"float64": 1000, "float32": 280}
"""Cycles of the gates of a cell for each thread of a block; 160 with the special function unit."""

PLAN = "units unit_blocks groups rows tiles passes chunk"


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
    alone: bool = False
    """Whether a block has all units of its group, and so waits for no other block."""

    def fields(self) -> dict[str, int]:
        """Return the fields that the kernel reads, by name."""
        return {name: getattr(self, name) for name in PLAN.split()}


def up(a: int, b: int) -> int:
    """Return `a` divided by `b`, rounded up."""
    return -(-a // b)


@lru_cache(maxsize=1024)
def best_plan(
    chip: Chip, directions: int, B: int, H: int, kind: str, backward: bool, costs: Costs, alone: bool = False
) -> Plan | None:
    """Return the cheapest partition that fits the chip, or None."""
    candidates = plans(chip, directions, B, H, kind, backward, costs, alone)
    return min(candidates, key=lambda p: p.cost, default=None)


def plans(
    chip: Chip, directions: int, B: int, H: int, kind: str, backward: bool, costs: Costs, alone: bool = False
) -> Iterator[Plan]:
    """Yield every partition that fits the chip, with at most one block per SM."""
    mma = kind in STEP_OF_K
    for groups in range(1, min(up(B, TILE_ROWS if mma else LANE_ROWS), chip.processors // directions) + 1):
        rows, most = up(B, groups), chip.processors // (directions * groups)
        if groups > 1 and rows == up(B, groups - 1):
            continue
        for units in _units_alone(H, mma) if alone else _units(H, most, mma):
            for tile_rows in (TILE_ROWS,) if mma else (LANE_ROWS,) if alone else (4, 8, 16):
                for tiles in (1, 2, 4, 8):
                    passes = up(rows, tiles * tile_rows)
                    sizes = tile_rows, units, up(H, units), groups, rows, tiles, passes
                    plan = Plan(*sizes, chunk=0, shared=0, cost=0.0, alone=alone)
                    sized = _measure_plan(plan, chip, H, kind, backward)
                    if 0 < sized.shared <= chip.shared:
                        yield sized._replace(cost=plan_cost(sized, H, kind, backward, costs))


def _units(H: int, most: int, mma: bool) -> Iterator[int]:
    """Return the units per block for at most `most` blocks; for mma, larger numbers are candidates too."""
    fewest = up(up(H, min(up(H, UNITS), most)), UNITS) * UNITS
    return iter(range(fewest, MOST_UNITS + 1, UNITS) if mma else (fewest,))


def _units_alone(H: int, mma: bool) -> tuple[int, ...]:
    """Return the units of a block that has all H units; for mma, the least number for all warps, or none."""
    if not mma:
        return (up(H, UNITS) * UNITS,)
    return tuple(n for n in (each * (THREADS // WARP) for each in WARP_UNITS) if n >= H)[:1]


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
    held = 2 * p.passes if p.alone else min(p.passes, 2)
    numbers = H * (columns + rows * held) + up(H, BLOCK_OF_K) * rows * columns + columns
    return p._replace(shared=numbers * wide + _cell_bytes(p, False, wide))


def _measure_backward(p: Plan, chip: Chip, H: int, kind: str) -> Plan:
    """Return the plan with its bytes: weights, sums, cells, and dz, whole or in double-buffered chunks."""
    rows, wide = p.tiles * p.tile_rows, launch.KINDS[kind]
    slices = max(1, THREADS // WARP // (p.tiles * (p.units // UNITS)))
    fixed = (4 * H * p.units + slices * rows * p.units) * wide + _cell_bytes(p, True, wide)
    if p.alone:
        return p._replace(chunk=4 * H, shared=fixed + 2 * p.passes * rows * 4 * H * wide)
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
    """Number of a warp's tiles of 8 columns."""
    rest: int
    """Number of a warp's steps whose weights are in shared memory."""
    warps: int
    """Number of warps with a slice or, in a single-block group, with its own columns."""


def slice_steps(p: Plan, H: int, kind: str, backward: bool) -> Slices:
    """Return the division of the steps of k for a plan with mma."""
    warps = THREADS // WARP
    units = p.units // warps if p.alone else p.units
    columns = units // 8 if backward else units // 2
    batch = 8 if columns == 1 else 4 if columns <= 12 else 2
    kept = (48 if columns <= 2 else 64) // columns // batch * batch
    steps = up(4 * H if backward else H, STEP_OF_K[kind])
    share = steps if p.alone else up(steps, warps)
    slices, rest = up(steps, share), up(max(0, share - kept), batch) * batch
    return Slices(steps, slices, columns, rest, warps if p.alone else slices)


def _mma_bytes(p: Plan, H: int, kind: str, backward: bool) -> int:
    """Return the bytes of the weights that registers cannot hold, and of sums, biases and cells."""
    s = slice_steps(p, H, kind, backward)
    rest = THREADS // WARP * s.rest * s.columns * WARP * 8
    parts = s.warps * p.tiles * TILE_ROWS * 8 * s.columns * 4
    exchange = 2 * p.passes * p.tiles * s.steps * TILE_ROWS * STEP_BYTES if p.alone else 0
    return rest + exchange + parts + (0 if backward else 16 * p.units) + _cell_bytes(p, backward, 4)


def plan_cost(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the modelled microseconds of a step: computation and fixed costs per pass, plus the exchange."""
    cycles = (_mma_cycles if kind in STEP_OF_K else _fma_cycles)(p, H, kind, backward, costs)
    # The fixed costs include one cell of each thread.
    more = up(min(p.rows, p.tiles * p.tile_rows) * p.units, THREADS) - 1
    cycles += max(0, more) * CELL_CYCLES.get(kind, 160)
    waiting = costs.exchange if p.unit_blocks > 1 else 0.0
    return p.passes * (cycles / costs.clock + costs.step) + waiting


def _fma_cycles(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the cycles of a pass with fused multiply-adds.

    A lane computes 4 rows. It computes 4 columns backward, and forward one column for each 4 rows of a tile.
    The product of one pass or chunk overlaps with the staging of the next.
    """
    k, wide, lanes = 4 * H if backward else H, launch.KINDS[kind] // 4, p.tile_rows // LANE_ROWS
    columns, chains = (4, THREADS // WARP) if backward else (lanes, up(k, BLOCK_OF_K))
    tiles = p.tiles * (p.units // UNITS)
    turns = tiles * k * lanes / 16 if backward else tiles * k
    arithmetic = turns * LANE_ROWS * columns * wide / 4
    # Wavefronts of shared memory for one k. Wide loads of two lanes merge if both read the same address.
    reading = turns * wide * ((4 / lanes + 2) if backward else (3 + (columns == 4)))
    latency = up(tiles * chains, THREADS // WARP) * k / chains * max(LANE_ROWS * columns, 8) * wide
    latency = latency * lanes / 16 if backward else latency
    product = max(arithmetic, reading, latency)
    if p.alone:
        return product
    staging = _from_cache(p, p.tiles * p.tile_rows * k * 4 * wide, costs)
    at_once = p.passes == 1 and p.chunk in (0, k)
    return product + staging if at_once else max(product, staging)


def _from_cache(p: Plan, size: int, costs: Costs) -> float:
    """Return the cycles in which every block reads `size` bytes from the L2 cache."""
    return max(size / costs.cache_bytes, size * p.groups * p.unit_blocks / costs.all_cache_bytes)


def _mma_cycles(p: Plan, H: int, kind: str, backward: bool, costs: Costs) -> float:
    """Return the cycles of a pass with mma: reads of h overlapped with products, followed by the sums.

    Each of the four tensor cores needs 8 cycles per instruction. Weights in shared memory need 2 cycles each.
    """
    s = slice_steps(p, H, kind, backward)
    size = p.tiles * TILE_ROWS * s.steps * STEP_BYTES
    # In a single-block group, every warp reads all rows from shared memory, at 128 bytes per cycle.
    reading = s.warps * size / 128 if p.alone else _from_cache(p, size, costs)
    products = p.tiles * s.steps * s.columns * 2 * (s.warps if p.alone else 1)
    weights = p.tiles * s.warps * s.rest * s.columns * 2
    sums = s.warps * p.tiles * s.columns * 8
    return max(reading, products, weights) + sums


def fused_cost(directions: int, B: int, H: int, kind: str, costs: Costs) -> float:
    """Return the modelled microseconds of a step that runs as a cuBLAS product and a kernel."""
    faster = {"float64": 0.5, "float32": 1.0, "tf32": 4.0}.get(kind, 8.0)
    return costs.fused_step + directions * 4 * B * H * H / (costs.fused_operations * faster)


def chip_of(device: Device) -> Chip:
    """Return the properties of a device that determine the partition."""
    known = device.attributes
    return Chip(known["MultiProcessorCount"], known["MaxSharedMemoryPerBlockOptin"])


def products_cost(problem: Problem) -> float:
    """Return the modelled microseconds per step with cuBLAS, over all walks of the problem."""
    sizes = len(problem.reverse), problem.B, problem.H, layer.kind(problem)
    return (1 + problem.keep) * fused_cost(*sizes, costs_of(problem.device))


def costs_of(device: Device) -> Costs:
    """Return the costs fitted on the device, or the estimates."""
    found = proofs.find_costs(device.id)
    return Costs(**found) if found else COSTS


def plan_of(problem: Problem, backward: bool, alone: bool) -> Plan | None:
    """Return the cheapest plan, or None; batches with the same number of tiles share a cached plan."""
    kind = layer.kind(problem)
    tile = TILE_ROWS if kind in STEP_OF_K else LANE_ROWS
    sizes = len(problem.reverse), up(problem.B, tile) * tile, problem.H, kind
    return best_plan(chip_of(problem.device), *sizes, backward, costs_of(problem.device), alone)


def step_cost(problem: Problem, plan: Callable[[Problem, bool], Plan | None]) -> float | None:
    """Return the modelled microseconds per step, over all walks of a problem; None without a plan."""
    walks = [plan(problem, backward) for backward in ((False, True) if problem.keep else (False,))]
    costs = [p.cost for p in walks if p is not None]
    return sum(costs) if len(costs) == len(walks) else None
