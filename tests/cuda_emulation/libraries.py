"""The libraries of CUDA that CuPy loads, as shared libraries of a few functions that run on the processor.

The functions have the signatures of NVIDIA's headers. Each hands its arguments to Python, where a product is
made by NumPy and a launch is emulated; or does nothing where no call is recorded, as when the host's time is
measured. The functions of CuPy's own module make the same products.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.cuda_emulation import compiled
from tests.cuda_emulation.standin import Device, Kernel, Memory, Stream, calls, launched, place
from xplstm._array import dtype_from_name
from xplstm.kernels._cuda import loop

CODES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}
COMPUTE = {68: np.dtype("float32"), 70: np.dtype("float64"), 77: np.dtype("float32")}
TF32 = 77
PRODUCTS = {
    *((68, a, c) for a, c in (("float16", "float16"), ("bfloat16", "bfloat16"))),
    *((68, a, "float32") for a in ("float16", "bfloat16", "float32")),
    (70, "float64", "float64"),
    (TF32, "float32", "float32"),
}
"""Of the table of cublasGemmEx: how it sums, the type of both factors, and that of the result."""


def _matrix(ptr: int, code: int, rows: int, columns: int, step: int) -> np.ndarray:
    """Return a matrix in column-major order, as BLAS reads it, completely inside one array."""
    dtype = np.dtype(dtype_from_name(np, CODES[code]))
    assert step >= rows, "cuBLAS refuses columns that overlap"
    assert rows > 0
    assert columns > 0
    size = ((columns - 1) * step + rows) * dtype.itemsize
    inside = [m for m in Memory.everything if m.start <= ptr and ptr + size <= m.start + m.size]
    assert inside, "an operand of a product leaves its array"
    start = ptr - inside[0].start
    flat = inside[0].inside()[start : start + size].view(dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, step * dtype.itemsize))


def tf32(a: np.ndarray) -> np.ndarray:
    """Truncate numbers to a 10-bit fraction, as cuBLAS may; rounding to nearest has half of this error."""
    return np.where(np.isfinite(a), (a.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), a)


class CUBLASError(RuntimeError):
    """Error class of CuPy, with the same messages."""

    NAMES: ClassVar[dict[int, str]] = {
        **{3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE"},
        **{13: "CUBLAS_STATUS_EXECUTION_FAILED", 14: "CUBLAS_STATUS_INTERNAL_ERROR"},
    }

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(self.NAMES[status])
        if status == BROKEN and state["trouble"] is not None:
            self.__cause__, state["trouble"] = state["trouble"], None


def handle() -> int:
    """Return the handle of the current device and thread, as in CuPy."""
    return 7000 + Device.current.id


def _set_stream(given: int) -> None:
    """Set the current stream, as each function of CuPy's module does first."""
    assert given == handle(), "the handle of another device"
    if Stream.current[Device.current.id].is_capturing():
        msg = "calling cuBLAS API during stream capture is currently unsupported"
        raise NotImplementedError(msg)


def _product(
    given: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, a: int, a_type: int, a_step: int, b: int, b_type: int, b_step: int,
    beta: int, c: int, c_type: int, c_step: int, compute: int, algo: int,
) -> None:  # fmt: skip
    """``c = alpha op(a) op(b) + beta c``, column-major, summed in the compute type."""
    assert (given, algo, a_type) == (handle(), -1, b_type)
    assert (compute, CODES[a_type], CODES[c_type]) in PRODUCTS, "cuBLAS makes no product of these types"
    dtype = COMPUTE[compute]
    scalars = [ctypes.c_double if dtype.itemsize == 8 else ctypes.c_float] * 2
    one, add = (kind.from_address(at).value for kind, at in zip(scalars, (alpha, beta), strict=True))
    left = _matrix(a, a_type, *((k, m) if transa else (m, k)), a_step).astype(dtype)
    right = _matrix(b, b_type, *((n, k) if transb else (k, n)), b_step).astype(dtype)
    if compute == TF32:
        left, right = tf32(left), tf32(right)
    out = _matrix(c, c_type, m, n, c_step)
    total = one * ((left.T if transa else left) @ (right.T if transb else right))
    out[...] = total + add * out.astype(dtype) if add else total
    calls.append(("product", transa, transb, m, n, k, one, place(a), a_type, a_step, place(b), b_type, b_step,
                  add, place(c), c_type, c_step, compute, algo))  # fmt: skip


def _products(
    given: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, a: int, a_type: int, a_step: int, a_apart: int,
    b: int, b_type: int, b_step: int, b_apart: int,
    beta: int, c: int, c_type: int, c_step: int, c_apart: int, count: int, compute: int, algo: int,
) -> None:  # fmt: skip
    assert min(a_apart, b_apart) >= 0
    assert c_apart > 0
    sizes = [np.dtype(dtype_from_name(np, CODES[code])).itemsize for code in (a_type, b_type, c_type)]
    for d in range(count):
        one, other, out = (
            p + d * apart * size
            for p, apart, size in zip((a, b, c), (a_apart, b_apart, c_apart), sizes, strict=True)
        )
        _product(given, transa, transb, m, n, k, alpha, one, a_type, a_step, other, b_type, b_step,
                 beta, out, c_type, c_step, compute, algo)  # fmt: skip


def gemmEx(
    given: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, a: int, a_type: int, a_step: int, b: int, b_type: int, b_step: int,
    beta: int, c: int, c_type: int, c_step: int, compute: int, algo: int,
) -> None:  # fmt: skip
    _set_stream(given)
    _product(given, transa, transb, m, n, k, alpha, a, a_type, a_step, b, b_type, b_step,
             beta, c, c_type, c_step, compute, algo)  # fmt: skip
    launched.append("gemm")


def gemmStridedBatchedEx(
    given: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, a: int, a_type: int, a_step: int, a_apart: int,
    b: int, b_type: int, b_step: int, b_apart: int,
    beta: int, c: int, c_type: int, c_step: int, c_apart: int, count: int, compute: int, algo: int,
) -> None:  # fmt: skip
    _set_stream(given)
    _products(given, transa, transb, m, n, k, alpha, a, a_type, a_step, a_apart, b, b_type, b_step, b_apart,
              beta, c, c_type, c_step, c_apart, count, compute, algo)  # fmt: skip
    launched.append("gemm")


HOOK = """
    #include <cstddef>
    using Hook = int (*)(const char *, const long long *);
    static Hook hook = nullptr;
    #define ADDRESS(p) ((long long)(p))
    static int heard(const char *name, const long long *values) { return hook ? hook(name, values) : 0; }
    extern "C" void listen(Hook to) { hook = to; }
"""
BLAS = """
    extern "C" int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
        const void *A, int Atype, int lda, const void *B, int Btype, int ldb, const void *beta, void *C,
        int Ctype, int ldc, int compute, int algo)
    {
        const long long values[] = {ADDRESS(handle), transa, transb, m, n, k, ADDRESS(alpha), ADDRESS(A),
            Atype, lda, ADDRESS(B), Btype, ldb, ADDRESS(beta), ADDRESS(C), Ctype, ldc, compute, algo};
        return heard("cublasGemmEx", values);
    }
    extern "C" int cublasGemmStridedBatchedEx(void *handle, int transa, int transb, int m, int n, int k,
        const void *alpha, const void *A, int Atype, int lda, long long int strideA, const void *B, int Btype,
        int ldb, long long int strideB, const void *beta, void *C, int Ctype, int ldc, long long int strideC,
        int count, int compute, int algo)
    {
        const long long values[] = {ADDRESS(handle), transa, transb, m, n, k, ADDRESS(alpha), ADDRESS(A),
            Atype, lda, strideA, ADDRESS(B), Btype, ldb, strideB, ADDRESS(beta), ADDRESS(C), Ctype, ldc,
            strideC, count, compute, algo};
        return heard("cublasGemmStridedBatchedEx", values);
    }
    extern "C" int cublasSetStream_v2(void *handle, void *stream)
    {
        const long long values[] = {ADDRESS(handle), ADDRESS(stream)};
        return heard("cublasSetStream_v2", values);
    }
    extern "C" int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes)
    {
        const long long values[] = {ADDRESS(handle), ADDRESS(workspace), (long long)bytes};
        return heard("cublasSetWorkspace_v2", values);
    }
"""
DRIVER = """
    extern "C" int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
        unsigned bz, unsigned shared, void *stream, void **parameters, void **extra)
    {
        const long long values[] = {ADDRESS(f), gx, gy, gz, bx, by, bz, shared, ADDRESS(stream),
            ADDRESS(parameters), ADDRESS(extra)};
        return heard("cuLaunchKernel", values);
    }
"""
COUNTS = {
    **{"cublasGemmEx": 19, "cublasGemmStridedBatchedEx": 23, "cublasSetStream_v2": 2},
    **{"cublasSetWorkspace_v2": 3, "cuLaunchKernel": 11},
}
"""Arguments of each function."""
BROKEN = 14
"""The status of a call in which something is wrong on our side."""

heard: list[str] = []
"""Names of the functions that were called since listening began."""
state: dict[str, Any] = {"stream": None, "workspace": None, "fail": None, "trouble": None}
"""Of the handle; which call fails, with which status; and what was wrong in a call."""


@cache
def blas() -> Path:
    return compiled.shared("cublas", HOOK + BLAS)


@cache
def module() -> Path:
    """Return CuPy's module of cuBLAS, which is linked to the library."""
    options = ("-shared", "-fPIC", "-Wl,--no-as-needed", str(blas()))
    path = compiled.made("cupy-cublas", ".so", "", options)
    if not path.exists():
        compiled.compile_to(path, "", *options)
    return path


def cublas() -> types.SimpleNamespace:
    """Return the functions of CuPy's cuBLAS module."""
    return types.SimpleNamespace(
        gemmEx=gemmEx, gemmStridedBatchedEx=gemmStridedBatchedEx,
        CUBLAS_COMPUTE_32F=68, CUBLAS_COMPUTE_64F=70, CUBLAS_COMPUTE_32F_FAST_TF32=TF32,
        CUBLAS_GEMM_DEFAULT=-1, getVersion=lambda _: 130000, CUBLASError=CUBLASError,
        __file__=str(opened(module())),
    )  # fmt: skip


def driver() -> types.SimpleNamespace:
    """Return CuPy's driver module; CuPy loads libcuda when it imports this module."""
    path = opened(compiled.shared("libcuda", HOOK + DRIVER))
    return types.SimpleNamespace(CUDADriverError=CUDADriverError, path=str(path))


@cache
def opened(path: Path) -> Path:
    """Load a library, as the import of CuPy does."""
    _libraries.append(ctypes.CDLL(str(path)))
    return path


_libraries: list[ctypes.CDLL] = []


class CUDADriverError(RuntimeError):
    """Error class of CuPy, with the driver's message."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__({1: "CUDA_ERROR_INVALID_VALUE: invalid argument"}.get(status, "CUDA_ERROR_UNKNOWN"))


def _set_library_stream(given: int, stream: int) -> None:
    assert given == handle(), "the handle of another device"
    assert stream == Stream.current[Device.current.id].ptr, "another stream than the current one"
    state["stream"], state["workspace"] = stream, None


def _set_workspace(given: int, workspace: int, size: int) -> None:
    assert given == handle(), "the handle of another device"
    inside = [m for m in Memory.everything if m.start <= workspace and workspace + size <= m.start + m.size]
    assert inside, "a workspace that is no memory of the device"
    state["workspace"] = inside[0].number


def _made(make: Callable[..., None]) -> Callable[..., None]:
    """Return a function that records and runs a product of the library, without the checks of CuPy."""

    def product(*values: int) -> None:
        stream = Stream.current[Device.current.id]
        assert state["stream"] == stream.ptr, "the handle is on another stream"
        assert stream.captured == (state["workspace"] is not None), "memory of cuBLAS's own in a graph"
        make(*values)
        launched.append("gemm")

    return product


def _launch(f: int, *values: int) -> None:
    kernel, (*sizes, shared, stream, parameters, extra) = Kernel.loaded[f], values
    assert stream == Stream.current[Device.current.id].ptr, "another stream than the current one"
    assert not extra
    places = (ctypes.c_void_p * len(kernel.sizes)).from_address(parameters)
    held = [
        (ctypes.c_char * size).from_buffer_copy(ctypes.string_at(at, size))
        for at, size in zip(places, kernel.sizes, strict=True)
    ]
    kernel.launch(tuple(sizes[:3]), tuple(sizes[3:]), shared, held)


FUNCTIONS: dict[str, Callable[..., None]] = {
    "cublasGemmEx": _made(_product),
    "cublasGemmStridedBatchedEx": _made(_products),
    "cublasSetStream_v2": _set_library_stream,
    "cublasSetWorkspace_v2": _set_workspace,
    "cuLaunchKernel": _launch,
}


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_longlong))
def _hear(name: bytes, values: Any) -> int:
    """Run one call, and return its status."""
    heard.append(name.decode())
    if state["fail"] is not None and state["fail"][0] == len(heard) - 1:
        return int(state["fail"][1])
    try:
        FUNCTIONS[name.decode()](*values[: COUNTS[name.decode()]])
    except BaseException as trouble:  # nothing may leave a function of C
        state["trouble"] = trouble
        return BROKEN
    return 0


def listen() -> None:
    """Run the calls of the libraries from now on; the driver is found in its library."""
    loop.DRIVER = driver().path
    for path in (blas(), loop.DRIVER):
        ctypes.CDLL(str(path)).listen(_hear)
    heard.clear()
    state.update(stream=None, workspace=None, fail=None, trouble=None)


def check() -> None:
    """Raise an error that a call recorded and did not raise."""
    if state["trouble"] is not None:
        raise state["trouble"]


@contextmanager
def deaf() -> Iterator[None]:
    """Return library functions that return at once."""
    for path in (blas(), loop.DRIVER):
        ctypes.CDLL(str(path)).listen(ctypes.cast(None, type(_hear)))
    yield
    listen()
