"""Allocate buffers, project the input and compute weight gradients for the CuPy kernels with CUDA sources.

`cupy_fused`, `cupy_persistent` and `cupy_block` implement only the recurrence. All
buffers are indexed by time. h and c have T + 1 slots. The state before time t is in
slot t for a forward direction, and in slot t + 1 for a reverse direction, so the states
before all steps are contiguous for both. Without residuals, all steps share one slot,
and the input is projected for several steps at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from xplstm._array import dtype_from_name, why_unusable
from xplstm._problem import Problem
from xplstm._state import LSTMState
from xplstm._typing import CuPyArray
from xplstm.cells.params import LSTMParams
from xplstm.kernels import _support
from xplstm.kernels._cuda import launch, loop
from xplstm.kernels._cuda.launch import CONSTANTS
from xplstm.kernels._cuda.loop import Matrix, Moves, Product

WARP = CONSTANTS.WARP

# The largest share of the device's memory for the input projection without residuals. Longer sequences need
# several projections and launches, each of which loads the weights on-chip again. The free memory must not
# determine the size, because cuBLAS may sum a product with fewer rows in another order.
PROJECTION_SHARE = 1 / 16

# The first version of CuPy with cuBLAS products of bfloat16.
OLDEST_CUPY = 14

# The largest number of rows or columns for cuBLAS, and of elements of a step for the kernels.
LARGEST_SIZE = 2**31 - 1

# For column sums, the least number of rows of a block, and the largest number of blocks per column.
RUN_ROWS = 64
RUNS = 256

LAYER = "lengths mask T B H P directions reverse"
LAYER_ALONE = launch.fields(LAYER)


class Packed(NamedTuple):
    """Stacked weights of all directions; the bias is the sum of both biases, in the wide dtype."""

    weight_ih: CuPyArray
    weight_hh: CuPyArray
    bias: CuPyArray | None
    weight_hr: CuPyArray | None


class Buffers(NamedTuple):
    """The arrays of a call; without residuals, h, c and m hold only one step."""

    y: CuPyArray
    """(T, B, D * P)"""
    z: CuPyArray
    """(D, T, B, 4H) in the wide dtype: the input projection, overwritten by the gates."""
    h: CuPyArray
    """(D, T + 1, B, P)"""
    c: CuPyArray
    """(D, T + 1, B, H) in the wide dtype."""
    m: CuPyArray | None
    """(D, T, B, H): the input of the projection of h."""
    start: LSTMState
    """(D, B, .): the state before the first step."""
    end: Any
    """(D, B, .): the state after the last step, which the kernel writes."""


class Segment(NamedTuple):
    """A range of steps with one input projection."""

    start: int
    stop: int
    first: list[int]
    """The earliest time of each direction."""


class Residuals(NamedTuple):
    """The residuals of a whole call."""

    problem: Problem
    packed: Packed
    x: CuPyArray
    valid: CuPyArray | None
    buffers: Buffers


def why_not(problem: Problem) -> str | None:
    """Return why none of these kernels can run `problem`, or None."""
    reason = _support.why_not(problem, "cupy", launch.SIZES) or problem.cell.reason or why_not_this_cupy()
    if reason:
        return reason
    largest = max(problem.T * problem.B, 4 * problem.H, problem.I)
    if largest > LARGEST_SIZE:
        return f"a matrix has {largest} rows or columns; cuBLAS supports at most {LARGEST_SIZE}"
    if problem.B * problem.H > LARGEST_SIZE:
        sizes = f"hidden_size={problem.H} with a batch of {problem.B}"
        return f"{sizes} has {problem.B * problem.H} elements per step; the kernels support {LARGEST_SIZE}"
    return None


def why_not_this_cupy() -> str | None:
    """Return why the installed CuPy cannot launch these kernels, or None."""
    cp = sys.modules.get("cupy")
    if cp is None:
        return None
    if int(cp.__version__.partition(".")[0]) < OLDEST_CUPY:
        return f"the kernel needs CuPy {OLDEST_CUPY} or later, and this is CuPy {cp.__version__}"
    if cp.cuda.runtime.is_hip:
        return "the kernel needs CUDA, and this CuPy is for ROCm"
    return None


def lazy_why_not(name: str) -> str:
    """Return WHY_NOT lazily, as ``__getattr__`` of a kernel's module; the first access queries CuPy."""
    if name == "WHY_NOT":
        return why_unusable("cupy") or ""
    raise AttributeError(name)


def kind(problem: Problem) -> str:
    """Return the kind for which the kernels are compiled: the dtype of `problem`, or "tf32"."""
    return "tf32" if problem.precision == "tf32" and problem.dtype == "float32" else problem.dtype


def capturing(problem: Problem) -> bool:
    """Return whether the device's stream is being captured for a CUDA graph."""
    cp = sys.modules.get("cupy")
    if cp is None:
        return False
    with problem.device:
        return bool(cp.cuda.get_current_stream().is_capturing())


def refuses_products(problem: Problem) -> bool:
    """Return whether a capture forbids products, which CuPy does not allow without the compiled module."""
    return capturing(problem) and bool(loop.why_python())


def prepare(problem: Problem, params: tuple[LSTMParams, ...]) -> Packed:
    """Stack the weights of all directions, and add the two biases."""
    import cupy as cp

    def stacked(arrays: list[CuPyArray]) -> CuPyArray:
        return cp.ascontiguousarray(arrays[0][None]) if len(arrays) == 1 else cp.stack(arrays)

    wide = dtype_from_name(cp, launch.wide(problem.dtype))
    with problem.device:
        pairs: list[Any] = [
            (p.bias_ih, p.bias_hh) for p in params if p.bias_ih is not None and p.bias_hh is not None
        ]
        bias = stacked([ih.astype(wide) + hh.astype(wide) for ih, hh in pairs]) if pairs else None
        hr = stacked([p.weight_hr for p in params]) if problem.proj_size else None
        return Packed(
            stacked([p.weight_ih for p in params]), stacked([p.weight_hh for p in params]), bias, hr
        )


class Call:
    """Allocations, launches and products of one call, with the sizes and dtypes of the problem."""

    def __init__(self, problem: Problem, valid: CuPyArray | None) -> None:
        import cupy as cp

        self.cp, self.problem = cp, problem
        self.D, self.P = len(problem.reverse), problem.output_size
        self.stored = dtype_from_name(cp, problem.dtype)
        self.wide = dtype_from_name(cp, launch.wide(problem.dtype))
        if valid is not None:
            kind = np.int64 if problem.valid == "lengths" else np.bool_
            valid = cp.ascontiguousarray(valid.astype(kind, copy=False))
        self.valid = valid
        self.layer = {
            "T": problem.T,
            "B": problem.B,
            "H": problem.H,
            "P": self.P,
            "directions": self.D,
            "reverse": sum(back << d for d, back in enumerate(problem.reverse)),
            "lengths": valid if problem.valid == "lengths" else None,
            "mask": valid if problem.valid == "mask" else None,
        }

    def empty(self, *shape: int, wide: bool = False) -> CuPyArray:
        return self.cp.empty(shape, self.wide if wide else self.stored)

    def starts(self, a: CuPyArray, times: list[int] | None = None) -> list[int]:
        """Return the address of ``a[d]`` for each direction, or of ``a[d, times[d]]``."""
        at = [0] * self.D if times is None else times
        return [launch.address(a) + d * a.strides[0] + at[d] * a.strides[1] for d in range(self.D)]

    def times(self, k: int) -> list[int]:
        """Return the time of step k of each direction."""
        return [self.problem.T - 1 - k if back else k for back in self.problem.reverse]

    def before(self, k: int) -> list[int]:
        """Return the slot of the state before step k of each direction."""
        return [self.problem.T - k if back else k for back in self.problem.reverse]

    def after_all(self) -> list[int]:
        """Return the slot of the state after the last step of each direction."""
        return [0 if back else self.problem.T for back in self.problem.reverse]

    def product(self, *arguments: Any, out: str = "", add: bool = False) -> Product:
        return Product(kind(self.problem), *arguments, add=add, out=out or self.problem.dtype)

    def moves(self, a: CuPyArray, first: list[int] | None = None) -> Moves:
        """Return the addresses of ``a[d]``, or of the element of each step, from ``a[d, first[d]]`` on."""
        signs = [-1 if back else 1 for back in self.problem.reverse]
        apart = [0 if first is None else sign * a.strides[1] for sign in signs]
        return Moves(self.starts(a, first), apart)

    def launch(self, each: loop.Loop, name: str, count: int, arguments: np.ndarray) -> None:
        """Add to a loop the launch of one thread for each of `count` elements and each direction."""
        grid, threads = self.grid(count)
        each.launch(self.kernel(name), grid, threads, arguments)

    def grid(self, count: int) -> tuple[tuple[int, int], int]:
        """Return the blocks, and the threads per block, for `count` elements of each direction."""
        threads = min(CONSTANTS.THREADS, -(-count // WARP) * WARP)
        return (-(-count // threads), self.D), threads

    def launch_once(self, name: str, count: int, *arguments: Any) -> None:
        """Launch one thread for each of `count` elements."""
        self.kernel(name)((-(-count // CONSTANTS.THREADS),), (CONSTANTS.THREADS,), arguments)

    def kernel(self, name: str) -> Any:
        return launch.kernel("fused.cu", name, self.problem.dtype)

    def without_missing(self, a: CuPyArray, out: CuPyArray) -> CuPyArray:
        """Copy `a` (T, B, N) to `out`, with zeros at padded and masked steps, even in place of NaN."""
        self.launch_once("zero_missing", a.size, launch.struct(LAYER_ALONE, **self.layer), a, out, a.shape[2])
        return out

    def column_sums(self, a: CuPyArray) -> CuPyArray:
        """Sum `a` (D, T, B, N) over time and batch to (D, N)."""
        rows, columns = self.problem.T * self.problem.B, a.shape[3]
        height = max(RUN_ROWS, -(-rows // RUNS))
        runs = -(-rows // height)
        parts, out = self.empty(self.D, runs, columns, wide=True), self.empty(self.D, columns)
        block = WARP, CONSTANTS.RUN_THREADS // WARP
        tiles, shared = (-(-columns // WARP), runs, self.D), CONSTANTS.RUN_THREADS * parts.itemsize
        self.kernel("sum_runs")(tiles, block, (a, parts, rows, columns, height), shared_mem=shared)
        grid, threads = self.grid(columns)
        self.kernel("add_runs")(grid, (threads,), (parts, out, runs, columns))
        return out


Walk = Callable[[Call, Packed, Buffers, Segment], None]
WalkBack = Callable[[Call, Residuals, CuPyArray, CuPyArray, CuPyArray], "tuple[CuPyArray, CuPyArray | None]"]
ProjectInput = Callable[[Call, Packed, CuPyArray, CuPyArray, Segment], None]


def project_input(call: Call, packed: Packed, x: CuPyArray, z: CuPyArray, segment: Segment) -> None:
    """Compute ``W_ih x`` of a segment's steps by cuBLAS."""
    H4, I, rows = z.shape[3], x.shape[2], (segment.stop - segment.start) * x.shape[1]
    wide = launch.wide(call.problem.dtype)
    product = call.product((rows, H4, I), Matrix(I), Matrix(I, True), Matrix(H4), out=wide)
    starts = [launch.address(x) + t * x.strides[0] for t in segment.first]
    product(starts, call.starts(packed.weight_ih), call.starts(z))


def forward(
    problem: Problem,
    packed: Packed,
    x: CuPyArray,
    state: LSTMState,
    valid: CuPyArray | None,
    walk: Walk,
    project: ProjectInput = project_input,
) -> tuple[CuPyArray, LSTMState, Residuals | None]:
    """Run every direction over x (T, B, I) from `state` (D, B, ·); `walk` runs the steps of each segment."""
    with problem.device:
        call = Call(problem, valid)
        x = call.cp.ascontiguousarray(x)
        if problem.keep and call.valid is not None and x.size:
            x = call.without_missing(x, call.cp.empty_like(x))
        buffers = _buffers(call, LSTMState(*(call.cp.ascontiguousarray(a) for a in state)))
        for segment in _segments(problem, buffers.z.shape[1]):
            project(call, packed, x, buffers.z, segment)
            walk(call, packed, buffers, segment)
        residuals = Residuals(problem, packed, x, call.valid, buffers) if problem.keep else None
        return buffers.y, buffers.end, residuals


def projected_steps(problem: Problem) -> int:
    """Return the largest number of steps of one input projection."""
    step = len(problem.reverse) * problem.B * 4 * problem.H * launch.SIZES[launch.wide(problem.dtype)]
    return max(1, int(device_memory(problem.device.id) * PROJECTION_SHARE) // max(1, step))


@cache
def device_memory(number: int) -> int:
    """Return the memory of the device with this number, in bytes."""
    import cupy as cp

    return int(cp.cuda.runtime.getDeviceProperties(number)["totalGlobalMem"])


def _buffers(call: Call, start: LSTMState) -> Buffers:
    problem, D, P = call.problem, call.D, call.P
    T, B, H, keep = problem.T, problem.B, problem.H, problem.keep
    held = T if keep else min(T, projected_steps(problem))
    slots = T + 1 if keep else 1
    y, z = call.empty(T, B, D * P), call.empty(D, held, B, 4 * H, wide=True)
    h, c = call.empty(D, slots, B, P), call.empty(D, slots, B, H, wide=True)
    m = call.empty(D, T if keep else 1, B, H) if problem.proj_size else None
    begin: Any = start
    end = LSTMState(*(a.copy() if T * B == 0 else call.cp.empty_like(a) for a in begin))
    return Buffers(y, z, h, c, m, start, end)


def _segments(problem: Problem, held: int) -> list[Segment]:
    T = problem.T
    if T * problem.B == 0:
        return []
    bounds = [(lo, min(lo + held, T)) for lo in range(0, T, held)]
    return [Segment(lo, hi, [T - hi if back else lo for back in problem.reverse]) for lo, hi in bounds]


def backward(
    residuals: Residuals, dy: CuPyArray, dstate_n: LSTMState, walk_back: WalkBack
) -> tuple[CuPyArray, LSTMState, tuple[LSTMParams, ...]]:
    """Return the gradients with respect to x, the initial state and each direction's parameters.

    `walk_back` returns the gradients of z and of the projected states of all steps. It overwrites the
    gradients of the last state with the gradients of the initial state.
    """
    problem = residuals.problem
    with problem.device:
        call = Call(problem, residuals.valid)
        dh, dc = (call.cp.array(a, dtype=call.wide, order="C", copy=True) for a in dstate_n)
        if problem.T * problem.B == 0:
            dx, dparams = call.cp.zeros_like(residuals.x), _zero_gradients(call, residuals.packed)
        else:
            dz, dprojected = walk_back(call, residuals, call.cp.ascontiguousarray(dy), dh, dc)
            dx, dparams = _input_gradient(call, residuals, dz), _gradients(call, residuals, dz, dprojected)
        return dx, LSTMState(*(a.astype(call.stored, copy=False) for a in (dh, dc))), dparams


def _input_gradient(call: Call, residuals: Residuals, dz: CuPyArray) -> CuPyArray:
    """Compute dx as the sum over the directions, in the wide dtype."""
    problem, x = call.problem, residuals.x
    rows, H4, I = problem.T * problem.B, 4 * problem.H, problem.I
    alone = call.D == 1
    dx = call.empty(*x.shape, wide=not alone)
    for d, (step, weight) in enumerate(
        zip(call.starts(dz), call.starts(residuals.packed.weight_ih), strict=True)
    ):
        out = problem.dtype if alone else launch.wide(problem.dtype)
        product = call.product((rows, I, H4), Matrix(H4), Matrix(I), Matrix(I), add=d > 0, out=out)
        product([step], [weight], [launch.address(dx)])
    dx = dx.astype(call.stored, copy=False)
    return dx if call.valid is None else call.without_missing(dx, dx)


def _gradients(
    call: Call, residuals: Residuals, dz: CuPyArray, dprojected: CuPyArray | None
) -> tuple[LSTMParams, ...]:
    """Compute the parameters' gradients: a product over all steps for each weight, and a sum for the bias."""
    problem, packed, D, P = call.problem, residuals.packed, call.D, call.P
    rows, I, H, H4 = problem.T * problem.B, problem.I, problem.H, 4 * problem.H
    dih, dhh = call.cp.empty_like(packed.weight_ih), call.cp.empty_like(packed.weight_hh)
    before = call.starts(residuals.buffers.h, [int(back) for back in problem.reverse])
    over_steps = call.product((H4, I, rows), Matrix(H4, True), Matrix(I), Matrix(I))
    over_steps(call.starts(dz), [launch.address(residuals.x)] * D, call.starts(dih))
    over_steps = call.product((H4, P, rows), Matrix(H4, True), Matrix(P), Matrix(P))
    over_steps(call.starts(dz), before, call.starts(dhh))
    db = call.column_sums(dz) if problem.bias else None
    twin = None if db is None else db.copy()
    dhr = None
    if residuals.buffers.m is not None and dprojected is not None:
        dhr = call.cp.empty_like(packed.weight_hr)
        over_steps = call.product((P, H, rows), Matrix(P, True), Matrix(H), Matrix(H))
        over_steps(call.starts(dprojected), call.starts(residuals.buffers.m), call.starts(dhr))
    return _by_direction(D, dih, dhh, db, twin, dhr)


def _zero_gradients(call: Call, packed: Packed) -> tuple[LSTMParams, ...]:
    zeros = call.cp.zeros_like
    bias = None if packed.bias is None else call.cp.zeros(packed.bias.shape, call.stored)
    twin = None if bias is None else bias.copy()
    hr = None if packed.weight_hr is None else zeros(packed.weight_hr)
    return _by_direction(call.D, zeros(packed.weight_ih), zeros(packed.weight_hh), bias, twin, hr)


def _by_direction(D: int, *stacked: CuPyArray | None) -> tuple[LSTMParams, ...]:
    def of(d: int) -> list[Any]:
        return [None if a is None else a[d] for a in stacked]

    return tuple(LSTMParams(*of(d)) for d in range(D))
