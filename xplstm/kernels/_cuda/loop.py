"""Issue cuBLAS products and kernel launches, step by step on the current stream.

The compiled module calls the cuBLAS and the driver that CuPy has loaded, even while the stream is captured
for a CUDA graph. Without the compiled module, a Python loop calls CuPy's own functions, which do not allow
cuBLAS during a capture.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xplstm.kernels import _compiled
from xplstm.kernels._cuda import launch

DRIVER = "libcuda.so.1"
FUNCTIONS = ("cublasGemmEx", "cublasGemmStridedBatchedEx", "cublasSetStream_v2", "cublasSetWorkspace_v2")
WORKSPACE = 2**25
"""Bytes of cuBLAS's workspace during a capture, the largest size that its manual recommends for any GPU.
Memory that cuBLAS allocated itself would become a part of the graph."""

# As struct Operation of issue.h.
OPERAND = "{0}_start:2 {0}_apart:2 {0}_type {0}_bytes {0}_step"
OPERATION = launch.fields(
    "kernel grid:2 threads arguments transposed:2 sizes:3 alpha beta directions compute algo "
    + " ".join(map(OPERAND.format, "abc"))
)


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

    def at(self, k: int) -> list[int]:
        """Return the addresses at step k."""
        return [start + k * apart for start, apart in zip(self.starts, self.apart, strict=True)]


class Product:
    """A product ``c = a @ b``, or ``c += a @ b``, with fixed sizes; a loop gives the addresses.

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
        self._scalars = np.asarray([1, add], dtype=launch.wide(kind))
        self.alpha = self._scalars.ctypes.data
        self.beta = self.alpha + self._scalars.itemsize
        # cuBLAS is column-major. It computes the transpose of c, so a and b are swapped.
        self.transposed, self.sizes = (int(b.transposed), int(a.transposed)), (n, m, k)
        stored, result = (codes[kind], launch.KINDS[kind]), (codes[out], launch.SIZES[out])
        self.operands = (*stored, b.step), (*stored, a.step), (*result, c.step)
        """For each operand, its type, the bytes of an element, and the elements between its columns."""
        self.how = computes.get(kind, cublas.CUBLAS_COMPUTE_32F), cublas.CUBLAS_GEMM_DEFAULT

    def __call__(self, a: list[int], b: list[int], c: list[int]) -> None:
        """Compute one product for each of the one or two addresses of c; addresses of a and b may repeat."""
        loop = new()
        loop.product(self, *(Moves(starts, [0] * len(starts)) for starts in (a, b, c)))
        loop.run(range(1))


class CompiledLoop:
    """Operations of a step, which the compiled module issues."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, ...]] = []
        self._kept: list[Any] = []
        """Owners of the memory and of the functions whose addresses the operations contain."""

    def product(self, product: Product, a: Moves, b: Moves, c: Moves) -> None:
        """Add a product of each direction."""
        scalars = product.alpha, product.beta, len(c.starts), *product.how
        operation = [0, (0, 0), 0, 0, product.transposed, product.sizes, *scalars]
        for operand, moves in zip(product.operands, (b, a, c), strict=True):
            operation += [(moves.starts[0], moves.starts[-1]), (moves.apart[0], moves.apart[-1]), *operand]
        self._add(product, *operation)

    def launch(self, kernel: Any, grid: tuple[int, int], threads: int, arguments: np.ndarray) -> None:
        """Add a launch, whose arguments are a struct and the number of the step."""
        function = kernel.kernel
        no_product = (0, 0), (0, 0, 0), *[0] * 5, *((0, 0), (0, 0), 0, 0, 0) * 3
        self._add((function, arguments), function.ptr, grid, threads, arguments.ctypes.data, *no_product)

    def _add(self, owner: Any, *operation: Any) -> None:
        self._operations.append(operation)
        self._kept.append(owner)

    def run(self, steps: range) -> None:
        """Issue all operations for each step, in order."""
        import cupy as cp
        from cupy_backends.cuda.api import driver
        from cupy_backends.cuda.libs import cublas

        from xplstm.kernels import _engine

        stream, handle = cp.cuda.get_current_stream(), cp.cuda.get_cublas_handle()
        workspace = cp.cuda.alloc(WORKSPACE) if stream.is_capturing() else None
        own, size = (0, 0) if workspace is None else (workspace.ptr, WORKSPACE)
        operations = np.array(self._operations, OPERATION).view(np.uint8)
        count = len(steps)
        failed = _engine.issue(
            functions(), handle, stream.ptr, own, size, operations, steps.start, count, steps.step
        )
        if failed is not None:
            of_driver, status, operation, k = failed
            error = driver.CUDADriverError(status) if of_driver else cublas.CUBLASError(status)
            where = f"operation {operation} of step {k}" if operation >= 0 else "the stream or workspace"
            error.add_note(f"while {where} was issued, of {len(self._operations)} operations a step")
            raise error


class PythonLoop:
    """Operations of a step, which Python issues by CuPy's functions."""

    def __init__(self) -> None:
        self._calls: list[Callable[[int], None]] = []

    def product(self, product: Product, a: Moves, b: Moves, c: Moves) -> None:
        """Add a product of each direction."""
        import cupy as cp
        from cupy_backends.cuda.libs import cublas

        gemm, batched = cublas.gemmEx, cublas.gemmStridedBatchedEx
        head = cp.cuda.get_cublas_handle(), *product.transposed, *product.sizes, product.alpha
        (a_type, size, a_step), (b_type, _, b_step), (c_type, out_size, c_step) = product.operands
        beta, how = product.beta, product.how

        def one(left: int, right: int, out: int) -> None:
            gemm(*head, left, a_type, a_step, right, b_type, b_step, beta, out, c_type, c_step, *how)

        def run(k: int, _kept: Product = product) -> None:
            addresses = list(zip(b.at(k), a.at(k), c.at(k), strict=True))
            apart = [other - first for first, other in zip(addresses[0], addresses[-1], strict=True)]
            if len(addresses) == 1 or min(apart) < 0:  # cuBLAS does not document negative strides
                for places in addresses:
                    one(*places)
                return
            left, right, out = addresses[0]
            left_apart, right_apart, out_apart = apart[0] // size, apart[1] // size, apart[2] // out_size
            factors = left, a_type, a_step, left_apart, right, b_type, b_step, right_apart
            batched(*head, *factors, beta, out, c_type, c_step, out_apart, 2, *how)

        self._calls.append(run)

    def launch(self, kernel: Any, grid: tuple[int, int], threads: int, arguments: np.ndarray) -> None:
        """Add a launch, whose arguments are a struct and the number of the step."""
        self._calls.append(lambda k: kernel(grid, (threads,), (arguments, k)))

    def run(self, steps: range) -> None:
        """Issue all operations for each step, in order."""
        for k in steps:
            for call in self._calls:
                call(k)


Loop: TypeAlias = CompiledLoop | PythonLoop


def new() -> Loop:
    """Return a loop without operations."""
    return PythonLoop() if why_python() else CompiledLoop()


@cache
def why_python() -> str:
    """Return why the loops run in Python, or an empty text."""
    if _compiled.WHY_NOT:
        return _compiled.WHY_NOT
    try:
        functions()
    except (AttributeError, OSError) as error:
        return f"the CUDA functions that CuPy uses were not found: {error}"
    return ""


@cache
def functions() -> tuple[int, int, int, int, int]:
    """Return the addresses of FUNCTIONS and of cuLaunchKernel in the libraries that CuPy has loaded."""
    from cupy_backends.cuda.libs import cublas

    # CuPy's module has the symbols of the library that it is linked to; several may be loaded.
    module, driver = (ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_LAZY) for name in (cublas.__file__, DRIVER))
    gemm, batched, set_stream, set_workspace = (_address(getattr(module, name)) for name in FUNCTIONS)
    return gemm, batched, set_stream, set_workspace, _address(driver.cuLaunchKernel)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
