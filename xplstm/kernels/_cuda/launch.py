"""Compile and launch the CUDA sources with CuPy, and call cuBLAS.

All work runs on the current device and stream, without synchronisation. CuPy is
imported when a kernel runs, never to find out whether it is installed.
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
    """Constants that the sources and the launches share. Each is a macro with its name in the sources."""

    WARP: int = 32
    THREADS: int = 128
    """Largest number of threads of a block of fused.cu."""
    RUN_THREADS: int = 256
    """Number of threads of a block of sum_runs."""
    TRAINING_THREADS: int = 256
    """Largest number of threads of a block of training.cu."""
    TABLE: int = 32
    """Largest number of arrays of one launch of training.cu."""
    WALK_THREADS: int = 256
    """Number of threads of a block of a persistent kernel and of project.cu."""
    POLLS: int = 64
    """Number of reads of a counter between two reads of the clock."""
    BLOCK_OF_K: int = 128
    """Number of terms of one chain of fused multiply-adds."""
    LANE_ROWS: int = 4
    """Number of rows of a lane of persistent.cu."""
    TILE_ROWS: int = 16
    """Number of rows of an mma instruction."""
    STEP_BYTES: int = 32
    """Bytes of a row along k that an mma instruction reads."""
    PROJECT_TILE: int = 64
    PROJECT_STAGED: int = 16


CONSTANTS = Constants()
DEFINES = tuple(f"-D{name}={value}" for name, value in CONSTANTS._asdict().items())
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Item size of each supported dtype, in bytes."""
KINDS = {**SIZES, "tf32": 4}
"""Item size of each kind for which a kernel is compiled: the dtypes, and float32 with TF32 products."""
WALK = ("persistent.cu", "persistent_mma.cu")


def parts(name: str) -> tuple[str, ...]:
    """Return the names of the files of a source, in order."""
    cell = ("cell.cuh",) if name in ("fused.cu", *WALK) else ()
    walk = ("walk.cuh",) if name in WALK else ()
    return (*HEADERS, *cell, *walk, name)


@cache
def source(name: str) -> str:
    """Return a source as one text, because CuPy's kernel cache does not track includes."""
    return "\n".join((SOURCES / part).read_text(encoding="utf-8") for part in parts(name))


@cache
def kernel(file: str, name: str, kind: str, cooperative: bool = False) -> Any:
    """Return the kernel `name` of a file for one kind; the first launch on a device compiles it."""
    return _module(file, kind, cooperative, _entry(name) if file in WALK else None).get_function(name)


def _entry(name: str) -> int:
    """Return the number of a kernel of a persistent source, as walk.cuh numbers its entries."""
    return int(name.rpartition("_")[2]) + (100 if "back" in name else 0)


@cache
def _module(file: str, kind: str, cooperative: bool, only: int | None) -> Any:
    import cupy as cp

    options = (f"-D{kind.upper()}", *DEFINES, *(() if only is None else (f"-DONLY={only}",)))
    return cp.RawModule(code=source(file), options=options, enable_cooperative_groups=cooperative)


def wide(dtype: str) -> str:
    """Return the name of the accumulation dtype of a dtype or kind."""
    return "float64" if dtype == "float64" else "float32"


def fields(spec: str) -> np.dtype:
    """Return the dtype of a struct of pointers and 64-bit integers; `name:n` is an array of length n."""
    parts = (part.partition(":") for part in spec.split())
    return np.dtype([(name, np.int64, (int(n),)) if n else (name, np.int64) for name, _, n in parts])


def struct(dtype: np.dtype, **values: Any) -> np.ndarray:
    """Fill a struct for a launch: arrays become addresses, None becomes null, a list fills an array field."""
    packed = np.zeros(1, dtype)
    for name, value in values.items():
        if isinstance(value, list):
            packed[name][0, : len(value)] = value
        else:
            packed[name] = address(value) if hasattr(value, "data") else (0 if value is None else value)
    return by_value(packed)


def by_value(packed: np.ndarray) -> np.ndarray:
    """Return the same memory without fields, as the argument of a launch.

    With fields, NumPy would build a description at every launch, which takes longer than the launch.
    """
    return packed.view(f"V{packed.nbytes}")


def address(a: CuPyArray) -> int:
    """Return the address of the first element of `a` in device memory."""
    return int(a.data.ptr)


class Matrix(NamedTuple):
    """The row-major memory layout of an operand of a product.

    `step` is the number of elements from one row to the next. A transposed operand
    is the transpose of the stored matrix.
    """

    step: int
    transposed: bool = False


class Moves(NamedTuple):
    """For each direction, an address that advances by a fixed number of bytes per step."""

    starts: list[int]
    """Addresses at step 0."""
    apart: list[int]
    """Bytes per step."""

    def pair(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the start and the bytes per step of the first and of the last direction."""
        return (self.starts[0], self.apart[0]), (self.starts[-1], self.apart[-1])


class Product:
    """A product ``c = a @ b``, or ``c += a @ b``, with fixed sizes; each call gives the addresses.

    a (m, k) and b (k, n) have the stored dtype, and c (m, n) has the dtype `out`. Half precision is summed in
    float32. Only the kind "tf32" rounds factors to TF32.
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
        # cuBLAS is column-major. It computes the transpose of c, so a and b are swapped.
        self._shape = (cp.cuda.get_cublas_handle(), int(b.transposed), int(a.transposed), n, m, k, one)
        self._a, self._b, self._c = (codes[kind], a.step), (codes[kind], b.step), (codes[out], c.step)
        self._zero = one + self._scalars.itemsize
        self._bytes = KINDS[kind], SIZES[out]
        self._how = (computes.get(kind, cublas.CUBLAS_COMPUTE_32F), cublas.CUBLAS_GEMM_DEFAULT)

    def over(self, a: Moves, b: Moves, c: Moves) -> Callable[[int], None]:
        """Return a fast function that computes the product of step k; the host limits the loop's speed."""
        # For one direction, both halves of a pair are equal, and `one` uses the first.
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
            ):  # cuBLAS does not document negative strides
                factors = right, b_type, b_step, (right_2 - right) // size, left, a_type, a_step
                between = (left_2 - left) // size, zero, out, c_type, c_step, (out_2 - out) // out_size
                batched(*shape, *factors, *between, 2, *how)
                return
            gemm(*shape, right, b_type, b_step, left, a_type, a_step, zero, out, c_type, c_step, *how)
            gemm(*shape, right_2, b_type, b_step, left_2, a_type, a_step, zero, out_2, c_type, c_step, *how)

        return one if len(c.starts) == 1 else both

    def __call__(self, a: list[int], b: list[int], c: list[int]) -> None:
        """Compute one product for each of the one or two addresses of c; addresses of a and b may repeat."""
        self.over(*(Moves(starts, [0] * len(starts)) for starts in (a, b, c)))(0)
