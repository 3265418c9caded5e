"""Serve one engine of the GPU benchmark in a process that uses the GPU only on request."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.gpu import cudnn, engines
from tests.benchmarks.gpu.engines import ENGINES, Results, Work
from xplstm import _dispatch
from xplstm._errors import XplstmError
from xplstm.cli import engines as served
from xplstm.cli.peers import Shape
from xplstm.cli.results import versions
from xplstm.kernels import cupy_block, cupy_elementwise, cupy_fused, cupy_persistent
from xplstm.kernels._cuda import launch, loop, partitions, walks

PACKAGES = ("xplstm", "numpy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "array-api-compat")
TINY = 64
MANY = 500


class Server:
    """One engine in its process, with a method for every request."""

    def __init__(self, name: str) -> None:
        import cupy as cp

        self._name, self._cp = name, cp
        self._work: Work | None = None
        self._turn = 0

    @property
    def _ready(self) -> Work:
        assert self._work is not None, "build comes first"
        return self._work

    def about(self) -> dict[str, Any]:
        """Return the device and the versions."""
        cp = self._cp
        device, runtime = cp.cuda.Device(), cp.cuda.runtime
        attributes = device.attributes
        return {
            "gpu": runtime.getDeviceProperties(device.id)["name"].decode(),
            "multiprocessors": attributes["MultiProcessorCount"],
            "shared bytes a block": attributes["MaxSharedMemoryPerBlockOptin"],
            "bytes of second cache": attributes["L2CacheSize"],
            "compute capability": device.compute_capability,
            "driver": _driver(),
            "CUDA driver": runtime.driverGetVersion(),
            "CUDA runtime": runtime.runtimeGetVersion(),
            "versions": _versions(),
            "costs": partitions.COSTS._asdict(),
            "kernels": _digest(),
        }

    def build(self, shape: list[int], precision: str) -> int:
        """Prepare the engine; return the number of input sets."""
        cache = self._cp.cuda.Device().attributes["L2CacheSize"]
        self._work = None
        self._shape, self._turn = Shape(*shape), 0
        self._work = ENGINES[self._name].build(engines.inputs(self._shape, cache), precision)
        return self._ready.sets

    def release(self) -> None:
        """Free the memory of the previous shape for the other processes."""
        self._work = None
        self._cp.get_default_memory_pool().free_all_blocks()
        self._cp.get_default_pinned_memory_pool().free_all_blocks()
        if self._name == "torch":
            importlib.import_module("torch").cuda.empty_cache()

    def results(self, what: str) -> dict[str, list[float]]:
        """Return elements of the results for the first input set."""
        found = engines.sample(self._ready, self._shape, getattr(self._ready, what)(0))
        return {name: [float(v) for v in a] for name, a in found.items()}

    def _call(self, what: str) -> Results:
        """Run one call on the next input set."""
        self._turn = (self._turn + 1) % self._ready.sets
        found: Results = getattr(self._ready, what)(self._turn)
        return found

    def time(self, what: str, calls: int) -> dict[str, float]:
        """Return the seconds per call on the device, and in Python until the launch, after a warm-up call."""
        work, cp = self._ready, self._cp
        (work.wait or (lambda _: None))(self._call(what))
        cp.cuda.Device().synchronize()
        start, end = cp.cuda.Event(), cp.cuda.Event()
        begun = time.perf_counter()
        start.record()
        for _ in range(calls):
            last = self._call(what)
        host = time.perf_counter() - begun
        end.record()
        end.synchronize()
        device = cp.cuda.get_elapsed_time(start, end) * 1e-3
        if work.wait is not None:
            # Events measure only CuPy's stream.
            work.wait(last)
            device = time.perf_counter() - begun
        return {"device": device / calls, "host": host / calls}

    def facts(self, what: str, calls: int) -> dict[str, Any]:
        """Return microseconds of the loop over time of an xplstm kernel, and the launches of one call.

        In inference this is the forward loop, in training the backward loop.
        """
        if self._name not in engines.OURS:
            return {}
        kernel = importlib.import_module(_dispatch.TABLE[self._name])
        # The kernels with on-chip weights use the same launch function.
        room = kernel if hasattr(kernel, "walk") else walks
        with timed_walks(room, "walk" if what == "forward" else "walk_back", self._cp.cuda) as spans:
            for _ in range(calls):
                self._call(what)
            self._cp.cuda.Device().synchronize()
            took = [1e3 * self._cp.cuda.get_elapsed_time(*span) for span in spans]
        with counted() as counts:
            self._call(what)
        # A long call without residuals has several launches.
        return {"walk": np.asarray(took).reshape(calls, -1).sum(axis=1).tolist(), "launches": counts}

    def overheads(self) -> dict[str, float]:
        """Return the microseconds in Python of a launch and of a product."""
        cp = self._cp
        empty = cp.RawKernel('extern "C" __global__ void nothing(long long) {}', "nothing")
        a, b = cp.zeros((TINY, TINY), cp.float32), cp.zeros((TINY, TINY), cp.float32)
        whole = loop.Matrix(TINY)
        product = loop.Product("float32", (TINY, TINY, TINY), whole, whole, whole, out="float32")
        at, out = [launch.address(a)], [launch.address(b)]
        calls = {
            "launch": lambda: empty((1,), (32,), (0,)),
            "product by cublasGemmEx": lambda: product(at, at, out),
            "product by cupy.matmul": lambda: cp.matmul(a, a),
        }
        return {name: 1e6 * _host_time(cp, call) for name, call in calls.items()}


def _host_time(cp: Any, call: Callable[[], object]) -> float:
    """Return the minimum seconds in Python of a call that the device completes earlier, over some trials."""
    found = []
    for _ in range(7):
        cp.cuda.Device().synchronize()
        begun = time.perf_counter()
        for _ in range(MANY):
            call()
        found.append((time.perf_counter() - begun) / MANY)
    return min(found)


@contextlib.contextmanager
def timed_walks(room: Any, name: str, cuda: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Record events before and after every launch of a kernel inside the block."""
    spans: list[tuple[Any, Any]] = []
    real = getattr(room, name)

    def walk(*arguments: Any, **options: Any) -> Any:
        start, end = cuda.Event(), cuda.Event()
        start.record()
        found = real(*arguments, **options)
        end.record()
        spans.append((start, end))
        return found

    setattr(room, name, walk)
    try:
        yield spans
    finally:
        setattr(room, name, real)


class Counted:
    """Kernel whose launches are counted; all other attributes are those of the kernel."""

    _count: tuple[str, Any, dict[str, int]]

    def __init__(self, name: str, real: Any, counts: dict[str, int]) -> None:
        self.__dict__["_count"] = name, real, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._count[1], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._count[1], name, value)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Launch the kernel."""
        name, real, counts = self._count
        counts[name] = counts.get(name, 0) + 1
        return real(*arguments, **options)


class CountedLoop:
    """Loop over steps that counts products and launches."""

    def __init__(self, real: loop.Loop, counts: dict[str, int]) -> None:
        self._real, self._counts = real, counts
        self._names: list[str] = []

    def product(self, *arguments: Any) -> None:
        """Add a product."""
        self._names.append("product")
        self._real.product(*arguments)

    def launch(self, kernel: Counted, *arguments: Any) -> None:
        """Add a launch of a counted kernel."""
        name, real, _ = kernel._count
        self._names.append(name)
        self._real.launch(real, *arguments)

    def run(self, steps: range) -> None:
        """Run the steps."""
        for name in self._names:
            self._counts[name] = self._counts.get(name, 0) + len(steps)
        self._real.run(steps)


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count launches by kernel name, and products, inside the block."""
    counts: dict[str, int] = {}
    find, new = launch.kernel, loop.new

    def counting(file: str, name: str, *rest: Any, **options: Any) -> Any:
        return Counted(name, find(file, name, *rest, **options), counts)

    launch.kernel = counting  # type: ignore[assignment]
    loop.new = lambda: CountedLoop(new(), counts)  # type: ignore[assignment, return-value]
    try:
        yield counts
    finally:
        launch.kernel, loop.new = find, new


def _driver() -> str:
    """Return NVIDIA's driver version from nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown: no nvidia-smi is here"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, check=False, capture_output=True, text=True)
    return asked.stdout.strip().partition("\n")[0] or f"unknown: {asked.stderr.strip()}"


def _digest() -> str:
    """Return a digest of the kernel sources; results of other sources need another file."""
    rooms = (cupy_block, cupy_persistent, cupy_fused, cupy_elementwise)
    sources = (file for file in sorted(launch.SOURCES.iterdir()) if file.is_file())
    files = [*sources, *(Path(inspect.getfile(room)) for room in rooms)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _versions() -> dict[str, str]:
    """Return the versions of Python, of cuDNN, and of the packages that are installed."""
    found = versions(PACKAGES)
    try:
        found["cudnn"] = cudnn.version()
    except XplstmError as error:
        found["cudnn"] = str(error)
    return found


def serve(name: str, connection: Connection) -> None:
    """Answer requests until asked to stop."""
    engines.before_import()
    served.serve(lambda: Server(name), connection)


class Worker(served.Worker):
    """Process of one engine; it is not suspended, because an idle context does not slow others."""

    def __init__(self, name: str, target: Callable[[str, Connection], None] = serve) -> None:
        super().__init__(name, target, (name,))
