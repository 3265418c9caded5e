"""CuPy's side of the kernels on NVIDIA GPUs: sources, launches, and products by cuBLAS.

Everything runs on the current device and stream and waits for nothing. CuPy is
imported when a kernel runs, never to find out whether it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xplstm._typing import CuPyArray

SOURCES = Path(__file__).parent
HEADERS = ("primitives.cuh", "functions.cuh", "layer.cuh")


class Constants(NamedTuple):
    """Numbers that the sources and the launches share: each is a macro of its name in the sources."""

    WARP: int = 32
    THREADS: int = 128
    """Of a block of fused.cu, at most."""
    RUN_THREADS: int = 256
    """Of a block of sum_runs."""
    TRAINING_THREADS: int = 256
    """Of a block of training.cu, at most."""
    TABLE: int = 32
    """Arrays that one launch of training.cu takes."""
    WALK_THREADS: int = 256
    """Of a block of a persistent kernel, at most, and of project.cu."""
    POLLS: int = 64
    """Reads of a counter between two looks at the clock."""
    BLOCK_OF_K: int = 128
    """Numbers that one chain of fused multiply-adds sums."""
    LANE_ROWS: int = 4
    """Rows of a lane of persistent.cu."""
    TILE_ROWS: int = 16
    """Rows of an mma instruction."""
    STEP_BYTES: int = 32
    """Bytes of k that an mma instruction takes of a row."""
    PROJECT_TILE: int = 64
    PROJECT_STAGED: int = 16


CONSTANTS = Constants()
DEFINES = tuple(f"-D{name}={value}" for name, value in CONSTANTS._asdict().items())
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number of each dtype that the kernels know."""
KINDS = {**SIZES, "tf32": 4}
"""Those, and float32 whose products may be rounded: what a kernel is compiled for."""
WALK = ("persistent.cu", "persistent_mma.cu")


def parts(name: str) -> tuple[str, ...]:
    """Return the files that a source consists of."""
    cell = ("cell.cuh",) if name in ("fused.cu", *WALK) else ()
    walk = ("walk.cuh",) if name in WALK else ()
    return (*HEADERS, *cell, *walk, name)


@cache
def source(name: str) -> str:
    """One text: CuPy's cache of compiled kernels would not see a change in an included file."""
    return "\n".join((SOURCES / part).read_text(encoding="utf-8") for part in parts(name))


@cache
def kernel(file: str, name: str, kind: str, cooperative: bool = False) -> Any:
    """Return the kernel `name` of a file for one kind, compiled once for each device when first launched."""
    return _module(file, kind, cooperative, _entry(name) if file in WALK else None).get_function(name)


def _entry(name: str) -> int:
    """Return the number of an entry of a walk, as walk.cuh counts them."""
    return int(name.rpartition("_")[2]) + (100 if "back" in name else 0)


@cache
def _module(file: str, kind: str, cooperative: bool, only: int | None) -> Any:
    import cupy as cp

    options = (f"-D{kind.upper()}", *DEFINES, *(() if only is None else (f"-DONLY={only}",)))
    return cp.RawModule(code=source(file), options=options, enable_cooperative_groups=cooperative)


def wide(dtype: str) -> str:
    """Name of the dtype that sums over numbers of a dtype or kind are made in."""
    return "float64" if dtype == "float64" else "float32"


def fields(spec: str) -> np.dtype:
    """Return the dtype of a struct of pointers and 64-bit integers, in order; `name:n` is an array of n."""
    parts = (part.partition(":") for part in spec.split())
    return np.dtype([(name, np.int64, (int(n),)) if n else (name, np.int64) for name, _, n in parts])


def struct(dtype: np.dtype, **values: Any) -> np.ndarray:
    """One struct for a launch; an array becomes its address, None becomes null, a list begins its field."""
    packed = np.zeros(1, dtype)
    for name, value in values.items():
        if isinstance(value, list):
            packed[name][0, : len(value)] = value
        else:
            packed[name] = address(value) if hasattr(value, "data") else (0 if value is None else value)
    return by_value(packed)


def by_value(packed: np.ndarray) -> np.ndarray:
    """Return the same memory without fields, as a launch takes it.

    NumPy would describe the fields in Python at every launch, which takes longer than the launch itself.
    """
    return packed.view(f"V{packed.nbytes}")


def address(a: CuPyArray) -> int:
    """Return the address of the first element of `a` in device memory."""
    return int(a.data.ptr)


class Matrix(NamedTuple):
    """The layout of an operand of a product in memory, row by row.

    `step` counts elements from one row to the next; a transposed operand is
    the transpose of what is stored.
    """

    step: int
    transposed: bool = False


class Moves(NamedTuple):
    """Addresses of each direction that move by as many bytes from step to step."""

    starts: list[int]
    """At step 0."""
    apart: list[int]

    def pair(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return where the first and the last direction begin, and how far each moves."""
        return (self.starts[0], self.apart[0]), (self.starts[-1], self.apart[-1])


class Product:
    """``c = a @ b``, or ``c += a @ b``, of sizes known beforehand, at addresses that each call gives.

    a is (m, k) and b is (k, n), of the stored dtype; c is (m, n), of `out`. Sums are made in float32 for
    half precision, and factors are rounded to TF32 for that kind alone.
    """

    def __init__(
        self,
        kind: str,
        sizes: tuple[int, int, int],
        a: Matrix,
        b: Matrix,
        c: Matrix,
        *,
        add: bool = False,
        out: str,
    ) -> None:
        import cupy as cp
        from cupy_backends.cuda.libs import cublas

        codes = {
            "float64": cp.cuda.runtime.CUDA_R_64F,
            "float32": cp.cuda.runtime.CUDA_R_32F,
            "tf32": cp.cuda.runtime.CUDA_R_32F,
            "float16": cp.cuda.runtime.CUDA_R_16F,
            "bfloat16": cp.cuda.runtime.CUDA_R_16BF,
        }
        m, n, k = sizes
        computes = {"float64": cublas.CUBLAS_COMPUTE_64F, "tf32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32}
        self._scalars = np.asarray([1, add], dtype=wide(kind))
        one = self._scalars.ctypes.data
        self._gemm, self._batched = cublas.gemmEx, cublas.gemmStridedBatchedEx
        # cuBLAS reads columns: its c is our c transposed, so that a and b change places.
        self._shape = (cp.cuda.get_cublas_handle(), int(b.transposed), int(a.transposed), n, m, k, one)
        self._a, self._b, self._c = (codes[kind], a.step), (codes[kind], b.step), (codes[out], c.step)
        self._zero = one + self._scalars.itemsize
        self._bytes = KINDS[kind], SIZES[out]
        self._how = (computes.get(kind, cublas.CUBLAS_COMPUTE_32F), cublas.CUBLAS_GEMM_DEFAULT)

    def over(self, a: Moves, b: Moves, c: Moves) -> Callable[[int], None]:
        """Return what makes the product of step k, and does little else: a loop waits for the host alone."""
        # A lone direction is the first of two that are the same, of which one product is made.
        (a_0, a_1), (b_0, b_1), (c_0, c_1) = (moves.pair() for moves in (a, b, c))
        (a_type, a_step), (b_type, b_step), (c_type, c_step) = self._a, self._b, self._c
        gemm, batched, shape, zero, how = self._gemm, self._batched, self._shape, self._zero, self._how
        size, out_size = self._bytes

        def one(k: int, _factors: np.ndarray = self._scalars) -> None:  # keeps what `zero` points to
            left, right, out = a_0[0] + k * a_0[1], b_0[0] + k * b_0[1], c_0[0] + k * c_0[1]
            gemm(*shape, right, b_type, b_step, left, a_type, a_step, zero, out, c_type, c_step, *how)

        def both(k: int, _factors: np.ndarray = self._scalars) -> None:
            left, right, out = a_0[0] + k * a_0[1], b_0[0] + k * b_0[1], c_0[0] + k * c_0[1]
            left_2, right_2, out_2 = a_1[0] + k * a_1[1], b_1[0] + k * b_1[1], c_1[0] + k * c_1[1]
            if (
                left_2 >= left and right_2 >= right and out_2 >= out
            ):  # cuBLAS says nothing of distances below 0
                factors = right, b_type, b_step, (right_2 - right) // size, left, a_type, a_step
                between = (left_2 - left) // size, zero, out, c_type, c_step, (out_2 - out) // out_size
                batched(*shape, *factors, *between, 2, *how)
                return
            gemm(*shape, right, b_type, b_step, left, a_type, a_step, zero, out, c_type, c_step, *how)
            gemm(*shape, right_2, b_type, b_step, left_2, a_type, a_step, zero, out_2, c_type, c_step, *how)

        return one if len(c.starts) == 1 else both

    def __call__(self, a: list[int], b: list[int], c: list[int]) -> None:
        """One product for each address of c, of which there are one or two; those of a and b may repeat."""
        self.over(*(Moves(starts, [0] * len(starts)) for starts in (a, b, c)))(0)
