"""Measure graph, time and memory of a layer on a Dask array, compared with one NumPy call.

``python -m tests.benchmarks.dask_blocks`` measures 1000 steps of 10,000 batch entries in chunks of 100 x
1000: the number of tasks of the call, the time to build them, and the CPU time divided by that of one NumPy
call. The peak memory of a process on one and two threads, minus the memory before, is printed in chunks of x
and y per thread. The first processes have the environment that Dask sets for its workers. Without it, glibc
keeps freed chunks. Then a model of 50 MB runs on a cluster of 2 processes, which count how often they
unpickle and pack it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from tests.benchmarks.memory import MEGABYTE, ROOT, _resident

T, B, I, H = 1000, 10_000, 16, 32
CHUNKS = (100, 1000)
REPEATS = 3
GOALS = {"tasks": 300, "build": 0.05, "ratio": 1.1, "chunks": 4}


def _random(*shape: int) -> Any:
    """Return a Dask array whose tasks generate random numbers, like tasks that read a file."""
    import dask.array as da

    def block(block_info: Any = None) -> np.ndarray:
        place = block_info[None]
        seed = place["chunk-location"]
        return np.random.default_rng(seed).standard_normal(place["chunk-shape"], dtype="float32")

    chunks = tuple(da.core.normalize_chunks((*CHUNKS, -1), shape, dtype="float32"))
    return da.map_blocks(block, chunks=chunks, dtype="float32", meta=np.empty((0, 0, 0), "float32"))


def graph() -> None:
    """Print the tasks of call and graph, the seconds to build it, and the CPU times of both calls."""
    import dask
    import dask.array as da

    import xplstm

    lstm = xplstm.LSTM(I, H, rng=0)
    x = _random(T, B, I)
    lstm(x)  # loads all modules and data
    builds = []
    for _ in range(9):
        start = time.perf_counter()
        y, state = lstm(x)
        builds.append(time.perf_counter() - start)
    tasks = len({**dict(y.dask), **dict(state.h.dask)}) - len(x.dask)
    host = x.compute(scheduler="synchronous")
    dask_x, ratios = da.from_array(host, chunks=(*CHUNKS, -1)), []
    for _ in range(REPEATS):
        start = time.process_time()
        _, want = lstm(host)
        ours = time.process_time() - start
        start = time.process_time()
        # Each block of y is freed after it is computed, as if it were written to a file.
        y, state = lstm(dask_x)
        _, h = dask.compute(
            y.map_blocks(_drop, dtype="float32", chunks=(1, 1, 1)), state.h, scheduler="threads"
        )
        ratios.append((time.process_time() - start) / ours)
        assert np.array_equal(h, want.h)
    print(json.dumps({"tasks": tasks, "build": statistics.median(builds), "ratios": ratios}))


def _drop(block: np.ndarray) -> np.ndarray:
    return block[-1:, -1:, -1:].copy()


def peak(workers: int) -> None:
    """Print the peak memory minus the memory before, in bytes."""
    import dask

    import xplstm

    lstm, x = xplstm.LSTM(I, H, rng=0), _random(T, B, I)
    lstm(x[:100, :100])[0].compute(scheduler="synchronous")
    before = _resident("VmRSS")
    y, state = lstm(x)
    dask.compute(
        y.map_blocks(_drop, dtype="float32", chunks=(1, 1, 1)),
        state.h,
        scheduler="threads",
        num_workers=workers,
    )
    print(_resident("VmHWM") - before)


def _count() -> None:
    """Count how often this process unpickles and packs a model."""
    from xplstm._stack import Packed

    cls: Any = Packed
    set_state, pack = cls.__setstate__, cls._pack
    cls.counts = {"unpickled": 0, "packed": 0}

    def counted_state(self: Any, state: Any) -> None:
        cls.counts["unpickled"] += 1
        set_state(self, state)

    def counted_pack(self: Any, kernel: Any, problem: Any, layer: int) -> Any:
        cls.counts["packed"] += (kernel.name, layer) not in self._packed
        return pack(self, kernel, problem, layer)

    cls.__setstate__, cls._pack = counted_state, counted_pack


def _counts() -> Any:
    """Return the counts of this process."""
    from xplstm import _stack

    found: Any = _stack.Packed
    return found.counts


def cluster() -> None:
    """Print how often each of two worker processes unpickles and packs a model of 50 MB."""
    import dask.array as da
    import distributed

    import xplstm

    lstm = xplstm.LSTM(256, 1024, 2, rng=0)
    x = da.zeros((20, 640, 256), dtype="float32", chunks=(20, 16, 256))
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made,
        distributed.Client(made) as client,
    ):
        client.run(_count)
        _, state = lstm(x)
        state.h.compute()
        found = list(client.run(_counts).values())
    print(json.dumps({"nbytes": lstm.nbytes, "sizeof": sys.getsizeof(lstm), "workers": found, "layers": 2}))


def _of_workers() -> dict[str, str]:
    """Return the environment variables that Dask sets for its worker processes."""
    import dask
    import distributed  # noqa: F401 (brings the settings)

    return {k: str(v) for k, v in dask.config.get("distributed.nanny.pre-spawn-environ").items()}


def _run(*arguments: str, **environment: str) -> Any:
    """Run a part in a separate process."""
    command = [sys.executable, "-m", "tests.benchmarks.dask_blocks", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the results and the goals."""
    if len(sys.argv) > 1:
        {"graph": graph, "peak": lambda: peak(int(sys.argv[2])), "cluster": cluster}[sys.argv[1]]()
        return
    found = _run("graph")
    print(f"T, B, I, H = {T}, {B}, {I}, {H} in float32, chunks of {CHUNKS[0]} x {CHUNKS[1]}")
    print(f"tasks of the call                {found['tasks']:8}    goal {GOALS['tasks']}")
    print(f"build                            {1e3 * found['build']:8.1f} ms goal {1e3 * GOALS['build']:.0f}")
    ratio = statistics.median(found["ratios"])
    print(f"CPU time / one NumPy call        {ratio:8.2f}    goal {GOALS['ratio']}")
    chunk = 4 * CHUNKS[0] * CHUNKS[1] * (I + H)
    for where, environment in (("a worker process", _of_workers()), ("another process", {})):
        for threads in (1, 2):
            held = _run("peak", str(threads), **environment)
            print(
                f"peak on {threads} threads of {where}: {held / MEGABYTE:.1f} MiB, "
                f"{held / chunk / threads:.1f} chunks of x and y a thread, goal {GOALS['chunks']}"
            )
    found = _run("cluster")
    print(f"model of {found['nbytes'] / 1e6:.1f} MB, __sizeof__ {found['sizeof'] / 1e6:.1f} MB")
    for counts in found["workers"]:
        print(f"a worker unpickled it {counts['unpickled']} times and packed {counts['packed']} of 2 layers")


if __name__ == "__main__":
    main()
