"""Implement the few CuPy functions that xplstm's kernels call, on the CPU.

Arrays and products are those of NumPy, and kernels are the emulated ones. The substitute is stricter than
CuPy to reveal errors. New memory is NaN, memory around an array must not be written, the operands of a
product must be inside one array each, arguments must have the sizes of the kernel's parameters, and waiting
for a device raises an error.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import tempfile
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from tests.cuda_emulation import compiled
from tests.cuda_emulation.memory import Memory, check_margins
from xplstm.kernels._cuda import launch, layer, loop, partitions, program, proof, waits
from xplstm.kernels._cuda.launch import CONSTANTS

ATTRIBUTES = {
    "MultiProcessorCount": 6,
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "ReservedSharedMemoryPerBlock": 1024,
    "MaxRegistersPerMultiprocessor": 65536,
    "MaxThreadsPerMultiProcessor": 2048,
    "CooperativeLaunch": 1,
}
CAPABILITY = "90"
TOTAL_MEMORY = 2**34
LARGEST_GRID = 65535
PATIENCE = 600.0
"""Seconds: threads of a busy processor wait for each other far longer than those of a GPU."""
VERSION = "14.2.0"
CACHES = (
    *(launch.kernel, launch._module, loop.functions, loop.why_python),
    *(program.compile_kernel, waits.status, layer.device_memory, partitions.best_plan),
)
"""Of what is made with the library that is here."""

launched: list[str] = []
"""Names of the kernels and products since the last `clear`, in order."""
calls: list[tuple[Any, ...]] = []
"""The same with all arguments; addresses are the number of an array and the bytes before it."""
copied: list[tuple[int, ...]] = []
"""Shapes of what was copied, cast or computed by CuPy since the last `clear`, each a launch of its own."""
queues: set[tuple[int, int]] = set()
"""Devices, and the addresses of their streams, that got work or memory since the last `clear`."""


def place(address: int) -> tuple[int, int] | int:
    """Return the number of the array at an address and the bytes before it, or only the address."""
    for memory in Memory.everything:
        if memory.start <= address < memory.start + memory.size:
            return memory.number, address - memory.start
    return address


class Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class ndarray(np.ndarray):
    """NumPy array with an address and a device, and without functions that read its values."""

    device: Any = None
    memory: Memory | None = None

    @property
    def data(self) -> Pointer:  # type: ignore[override]
        return Pointer(self.ctypes.data)

    def __array_finalize__(self, other: Any) -> None:
        same = isinstance(other, ndarray)
        self.device, self.memory = (other.device, other.memory) if same else (Device.current, None)
        queues.add((Device.current.id, Stream.current[Device.current.id].ptr))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """Export for a stream without pending work; raise an error if CuPy would queue a wait."""
        assert (dl_device, copy) == (None, None)
        assert self.size, "CuPy would ask the driver about the memory of an empty array"
        assert stream == Stream.consumer(), f"stream {stream} of the consumer is not CuPy's current one"
        version = {} if max_version is None else {"max_version": max_version}
        return np.asarray(self).__dlpack__(**version)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> ndarray:
        """Allocate memory for every result, as CuPy does."""
        given = [np.asarray(a) if isinstance(a, ndarray) else a for a in inputs]
        targets = options.get("out")
        if targets is not None:
            options["out"] = tuple(np.asarray(a) for a in targets)
        result = getattr(ufunc, method)(*given, **options)
        copied.append(np.shape(result))
        return guarded(np.asarray(result)) if targets is None else targets[0]

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:  # type: ignore[override]
        dtype = np.dtype(dtype)
        if dtype == self.dtype and not copy:
            return self
        copied.append(self.shape)
        return guarded(np.asarray(self).astype(dtype))

    def copy(self) -> ndarray:  # type: ignore[override]
        copied.append(self.shape)
        return guarded(np.asarray(self))

    def __setitem__(self, key: Any, value: Any) -> None:
        assert isinstance(value, ndarray), "a number of the host, which CuPy sends to the device"
        copied.append(value.shape)
        np.asarray(self)[key] = value

    def argsort(self) -> ndarray:  # type: ignore[override]
        """Sort stably, as CuPy does."""
        return guarded(np.argsort(np.asarray(self), kind="stable"))

    def _waits(self, *_: Any) -> Any:
        msg = "a kernel looked at a value, which waits for the device"
        raise AssertionError(msg)

    __bool__ = __int__ = __float__ = __index__ = item = tolist = get = _waits


def guarded(a: np.ndarray) -> ndarray:
    """Return a copy of `a` with margins, on the current device."""
    fresh = empty(a.shape, a.dtype)
    np.asarray(fresh)[...] = a
    return fresh


def asarray(a: Any) -> ndarray:
    """Return an array on the GPU."""
    return guarded(np.asarray(a))


def from_dlpack(array: Any) -> ndarray:
    """Return an array on memory of a device, without margins; its library gets the current stream."""
    kind, number = array.__dlpack_device__()
    assert kind == 2, f"DLPack's device {kind} is not a GPU of CUDA"
    with Device(number):
        capsule = array.__dlpack__(stream=Stream.consumer(), max_version=(1, 0), copy=None)
        host = types.SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        return np.from_dlpack(host).view(ndarray)


def empty(shape: Any, dtype: Any = np.float32) -> ndarray:
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    memory.inside()[...] = 0xFF
    a = memory.inside().view(dtype).reshape(shape).view(ndarray)
    a.memory, a.device = memory, Device.current
    return a


def zeros(shape: Any, dtype: Any = np.float32) -> ndarray:
    a = empty(shape, dtype)
    np.asarray(a)[...] = 0
    return a


def empty_like(a: ndarray) -> ndarray:
    return empty(a.shape, a.dtype)


def zeros_like(a: ndarray) -> ndarray:
    return zeros(a.shape, a.dtype)


def array(a: ndarray, dtype: Any, copy: bool, order: str) -> ndarray:
    assert copy
    assert order == "C"
    assert isinstance(a, ndarray), "an array of the host, which CuPy sends to the device"
    copied.append(a.shape)
    return guarded(np.asarray(a).astype(dtype))


def ascontiguousarray(a: ndarray) -> ndarray:
    assert isinstance(a, ndarray), "an array of the host, which CuPy sends to the device"
    if a.flags.c_contiguous and a.memory is not None:
        return a
    copied.append(a.shape)
    return guarded(np.asarray(a))


def stack(arrays: list[ndarray]) -> ndarray:
    assert all(isinstance(a, ndarray) for a in arrays), "an array of the host, which CuPy refuses"
    together = guarded(np.stack([np.asarray(a) for a in arrays]))
    copied.append(together.shape)
    return together


class Library(types.ModuleType):
    """NumPy's functions of the array API standard, on the current device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def arange(self, stop: int, *, dtype: Any, device: Device) -> ndarray:
        assert device == Device.current
        return guarded(np.arange(stop, dtype=dtype))


LIBRARY = Library("cupy")


class Device:
    """Device by number; inside a block it is the current one."""

    current: Device

    def __init__(self, number: int = -1) -> None:
        self.id = Device.current.id if number < 0 else number
        self.attributes, self.compute_capability = ATTRIBUTES, CAPABILITY
        self.entered: list[Device] = []

    def __enter__(self) -> Device:
        self.entered.append(Device.current)
        Device.current = self
        return self

    def __exit__(self, *_: Any) -> None:
        Device.current = self.entered.pop()

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment] # as CuPy's


Device.current = Device(0)


class Stream:
    """Current stream of a device, which a test may mark as captured."""

    current: ClassVar[dict[int, Stream]]
    everything: ClassVar[weakref.WeakSet[Stream]] = weakref.WeakSet()
    captured = False
    invalid = False
    """A recording that has failed: every question about it does, too."""

    def __init__(self, null: bool = False, *, non_blocking: bool = False) -> None:
        assert not (null and non_blocking)
        self.entered: list[tuple[int, Stream]] = []
        self.non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        self.waited_for = 0
        Stream.everything.add(self)

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        """Return a stream of another library."""
        version, ptr = obj.__cuda_stream__()
        assert (version, type(ptr)) == (0, int)
        stream = cls(null=True)
        stream.ptr = ptr
        return stream

    @staticmethod
    def consumer() -> int:
        """Return the current stream as DLPack numbers it, where 1 is the legacy default stream."""
        return Stream.current[Device.current.id].ptr or 1

    def is_capturing(self) -> bool:
        if self.invalid:
            msg = "cudaErrorStreamCaptureInvalidated"
            raise RuntimeError(msg)
        if self.ptr == 0 and any(s.captured and not s.non_blocking for s in Stream.everything):
            msg = "cudaErrorStreamCaptureImplicit"
            raise RuntimeError(msg)
        return self.captured

    def synchronize(self) -> None:
        """Return at once, because every launch is complete when it returns."""
        self.waited_for += 1

    def __enter__(self) -> Stream:
        self.entered.append((Device.current.id, Stream.current[Device.current.id]))
        Stream.current[Device.current.id] = self
        return self

    def __exit__(self, *_: Any) -> None:
        number, before = self.entered.pop()
        Stream.current[number] = before


Stream.current = {0: Stream(), 1: Stream()}


class Kernel:
    """One emulated kernel."""

    loaded: ClassVar[weakref.WeakValueDictionary[int, Kernel]] = weakref.WeakValueDictionary()

    def __init__(self, file: str, name: str, kind: str, cooperative: bool) -> None:
        self.name, self.cooperative = name, cooperative
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.library = compiled.library(file, kind)
        sizes = (ctypes.c_uint * 64)()
        self.sizes = list(sizes[: getattr(self.library, f"arguments_{name}")(sizes)])
        self.ptr = id(self)
        Kernel.loaded[self.ptr] = self

    @property
    def kernel(self) -> Kernel:
        """Return the function on the current device."""
        return self

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0
    ) -> None:
        assert all(n > 0 for n in (*grid, *block)), f"{self.name}: an empty launch, which CuPy makes one of 1"
        held = [_argument(a) for a in args]
        assert [ctypes.sizeof(a) for a in held] == self.sizes, f"{self.name}: arguments of other sizes"
        self.launch((*grid, 1, 1)[:3], (*block, 1, 1)[:3], shared_mem, held)

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, held: list[Any]) -> None:
        """Run a launch like the driver; `held` has one object for each argument."""
        assert shared <= self.max_dynamic_shared_size_bytes, f"{self.name}: more shared memory than allowed"
        assert max(grid[1:]) <= LARGEST_GRID, f"{self.name}: more blocks along y or z than CUDA takes"
        if self.cooperative:
            most = ATTRIBUTES["MultiProcessorCount"] * resident(int(np.prod(block)), shared)
            assert np.prod(grid) <= most, f"{self.name}: the driver has room for {most} blocks at once"
        addresses = (ctypes.c_void_p * max(1, len(held)))(*(ctypes.addressof(a) for a in held))
        sizes = (ctypes.c_uint * 6)(*grid, *block)
        launched.append(self.name)
        queues.add((Device.current.id, Stream.current[Device.current.id].ptr))
        given = b"".join(bytes(a).ljust(-(-ctypes.sizeof(a) // 8) * 8, b"\0") for a in held)
        words = np.frombuffer(given, np.int64).tolist()
        calls.append((self.name, *grid, *block, shared, *map(place, words)))
        launch = getattr(self.library, f"launch_{self.name}")
        refused = launch(sizes, ctypes.c_size_t(shared), int(self.cooperative), addresses)
        assert not refused, f"{self.name}: more blocks than are there at once"
        check_margins()


def resident(threads: int, shared: int) -> int:
    """Return the number of blocks that fit on one multiprocessor if threads use all registers."""
    threads = -(-threads // CONSTANTS.WARP) * CONSTANTS.WARP
    shared += ATTRIBUTES["ReservedSharedMemoryPerBlock"]
    return min(
        ATTRIBUTES["MaxRegistersPerMultiprocessor"] // (256 * threads),
        ATTRIBUTES["MaxThreadsPerMultiProcessor"] // threads,
        ATTRIBUTES["MaxSharedMemoryPerMultiprocessor"] // shared,
    )


def _argument(a: Any) -> Any:
    """Return the argument as CuPy passes it: an array's address, a struct's bytes, a number as 64 bits."""
    if isinstance(a, ndarray):
        assert a.device == Device.current, "an array of another device than the current one"
        return ctypes.c_uint64(a.data.ptr)
    if isinstance(a, np.ndarray):
        assert a.size == 1
        assert a.dtype.names is None, "NumPy describes the fields of a struct at every launch, in Python"
        return (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())
    assert type(a) is int
    return ctypes.c_int64(a)


class ElementwiseKernel:
    """CuPy's class for kernels of one line of C++ per element, for raw parameters only.

    Here the line runs in a loop on the CPU, with every index checked.
    """

    TYPES: ClassVar[dict[str, str]] = {"float32": "float", "float64": "double", "bool": "bool"}
    SOURCE = """
        #include <cmath>
        #include <cstddef>
        #include <cstdlib>
        using std::exp, std::expm1, std::log1p, std::tanh, std::sqrt, std::fabs;
        using T = {type};
        template <class E> struct Array {{
            E *start; std::ptrdiff_t size;
            E &operator[](std::ptrdiff_t k) const {{ if (k < 0 || k >= size) std::abort(); return start[k]; }}
        }};
        extern "C" void run(std::ptrdiff_t size, void *const *p, const std::ptrdiff_t *sizes) {{
            {arrays}
            for (std::ptrdiff_t i = 0; i < size; ++i) {{
                {operation}
            }}
        }}
    """

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        self.name, self.operation = name, operation
        self.inputs, self.outputs = (
            [tuple(p.split()) for p in text.split(",")] for text in (in_params, out_params)
        )
        assert all(len(p) == 3 and p[0] == "raw" for p in (*self.inputs, *self.outputs))

    def __call__(self, *args: np.ndarray, size: int) -> None:
        assert size > 0, "an empty launch"
        parameters = [*self.inputs, *self.outputs]
        assert len(args) == len(parameters)
        dtypes = {a.dtype for a, (_, kind, _) in zip(args, parameters, strict=True) if kind == "T"}
        assert len(dtypes) == 1, f"T is {dtypes}"
        for a, (_, kind, _) in zip(args, parameters, strict=True):
            assert kind == "T" or a.dtype == np.dtype(kind)
            assert not isinstance(a, ndarray) or a.device == Device.current, "an array of another device"
        carried = [np.ascontiguousarray(np.asarray(a)) for a in args]
        run = self.compiled(self.TYPES[dtypes.pop().name])
        addresses = (ctypes.c_void_p * len(args))(*(a.ctypes.data for a in carried))
        sizes = (ctypes.c_ssize_t * len(args))(*(a.size for a in carried))
        run(ctypes.c_ssize_t(size), addresses, sizes)
        for a, b in zip(args[len(self.inputs) :], carried[len(self.inputs) :], strict=True):
            np.asarray(a)[...] = b
        launched.append(self.name)
        queues.add((Device.current.id, Stream.current[Device.current.id].ptr))

    def compiled(self, kind: str) -> Any:
        parameters = [(p, "const ") for p in self.inputs] + [(p, "") for p in self.outputs]
        arrays = "".join(
            f"const Array<{const}{kind}> {name} = {{({const}{kind} *)p[{k}], sizes[{k}]}};"
            for k, ((_, kind, name), const) in enumerate(parameters)
        )
        text = self.SOURCE.format(type=kind, arrays=arrays, operation=self.operation)
        return ctypes.CDLL(str(compiled.shared("elementwise", text))).run


class Event:
    """Event whose time is the number of launches before it, one millisecond each."""

    def __init__(self) -> None:
        self.launches: int | None = None

    def record(self) -> None:
        self.launches = len(launched)

    def synchronize(self) -> None:
        assert self.launches is not None, "an event that was not recorded"


def get_elapsed_time(start: Event, end: Event) -> float:
    assert start.launches is not None
    assert end.launches is not None
    return float(end.launches - start.launches)


class PinnedMemoryPointer(bytearray):
    """Host memory that a device reaches at the same address."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof((ctypes.c_char * len(self)).from_buffer(self))


class MemoryPointer:
    """Memory of an allocator; arrays here allocate their own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = Memory(size)
        self.ptr = self.memory.start

    def memset_async(self, value: int, size: int) -> None:
        assert 0 <= value <= 0xFF
        assert 0 < size <= self.size


@contextmanager
def using_allocator(allocate: Any) -> Iterator[None]:
    """Check the allocator, which new memory here does not need."""
    for size in (0, 512):
        assert isinstance(allocate(size), MemoryPointer)
    yield


def properties(number: int) -> dict[str, Any]:
    return {
        "name": f"Emulated {number}".encode(),
        "multiProcessorCount": ATTRIBUTES["MultiProcessorCount"],
        "totalGlobalMem": TOTAL_MEMORY,
    }


@functools.cache
def entries(file: str, kind: str, only: str) -> list[str]:
    """Return the kernels of a module with one entry."""
    return compiled.names(file, kind.removeprefix("-D").lower(), f"-DONLY={only}")


class RawModule:
    def __init__(self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool) -> None:
        self.file = next(
            path.name for path in launch.SOURCES.glob("*.cu") if launch.source(path.name) == code
        )
        kind, *defines = options
        only = [d.removeprefix("-DONLY=") for d in defines if d.startswith("-DONLY=")]
        assert tuple(defines) == (*launch.DEFINES, *(f"-DONLY={n}" for n in only))
        self.entries = entries(self.file, kind, only[0]) if only else None
        self.kind = kind.removeprefix("-D").lower()
        self.cooperative = enable_cooperative_groups

    def get_function(self, name: str) -> Kernel:
        assert self.entries in (None, [name]), f"one entry was asked for, and {self.entries} are compiled"
        return Kernel(self.file, name, self.kind, self.cooperative)


def modules() -> dict[str, types.ModuleType]:
    """Return the entries of ``sys.modules`` with which the kernels import this module instead of CuPy."""
    from tests.cuda_emulation import libraries

    arrays = (ndarray, empty, zeros, empty_like, zeros_like, array, asarray, ascontiguousarray, stack)
    cupy = types.ModuleType("cupy")
    cupy.__version__ = VERSION
    for offered in (*arrays, from_dlpack, RawModule, ElementwiseKernel):
        setattr(cupy, offered.__name__, offered)
    for name in ("float64", "float32", "float16", "int64", "uint8"):
        setattr(cupy, name, getattr(np, name))
    cupy.asnumpy = np.array
    runtime = types.SimpleNamespace(is_hip=False, CUDA_R_32F=0, CUDA_R_64F=1, CUDA_R_16F=2, CUDA_R_16BF=14)
    runtime.getDeviceProperties = properties
    runtime.driverGetVersion = runtime.runtimeGetVersion = lambda: 13000
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(malloc=MemoryPointer)
    cupy.cuda = types.SimpleNamespace(Device=Device, runtime=runtime, get_cublas_handle=libraries.handle)
    cupy.cuda.alloc = MemoryPointer
    cupy.cuda.get_current_stream = lambda: Stream.current[Device.current.id]
    cupy.cuda.alloc_pinned_memory = PinnedMemoryPointer
    cupy.cuda.Stream, cupy.cuda.using_allocator = Stream, using_allocator
    cupy.cuda.Event, cupy.cuda.get_elapsed_time = Event, get_elapsed_time
    cupy.cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = libraries.cublas()
    api = types.ModuleType("cupy_backends.cuda.api")
    api.driver = libraries.driver()
    found = {name: types.ModuleType(name) for name in ("cupy_backends", "cupy_backends.cuda")}
    return {**found, "cupy": cupy, libs.__name__: libs, api.__name__: api}


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Install this module instead of CuPy."""
    from tests.cuda_emulation import libraries

    stand_ins = modules()
    before, patience = {name: sys.modules.get(name) for name in stand_ins}, waits.PATIENCE
    sys.modules.update(stand_ins)
    driver = loop.DRIVER
    libraries.listen()
    waits.PATIENCE = PATIENCE
    proof.forget()
    for cache in CACHES:
        cache.cache_clear()
    for log in (launched, calls, copied):
        log.clear()
    try:
        with tempfile.TemporaryDirectory() as proofs, patch.dict(os.environ, {proof.FOLDER: proofs}):
            yield stand_ins["cupy"]
        libraries.check()
    finally:
        proof.forget()
        check_margins()
        waits.PATIENCE, loop.DRIVER = patience, driver
        for cache in CACHES:
            cache.cache_clear()
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
