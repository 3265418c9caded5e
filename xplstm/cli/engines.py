"""Run each library of `bench` in its own process, which works only on request.

A thread pool that spins after its work is done would slow the next library.
So the whole process is suspended until its next turn.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from xplstm._errors import KernelError
from xplstm.cli.peers import PRODUCT, Shape, Work, builder, product

# Every library reads one of these when it is imported.
VARIABLES = ("XPLSTM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def serve(name: str, threads: int, connection: Connection) -> None:
    """Answer requests until asked to stop: build a shape, give a result, time a number of calls."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        # Some pools are as large as the number of processors, whatever their settings.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    work: Work | None = None
    while True:
        request: dict[str, Any] = json.loads(connection.recv_bytes())
        if request["op"] == "stop":
            return
        if request["op"] == "build":
            work = builder(name)(Shape(*request["shape"]), threads)
            connection.send_bytes(json.dumps(work.train is not None).encode())
        elif request["op"] == "product":
            connection.send_bytes(json.dumps(_fastest(product(name, threads))).encode())
        else:
            assert work is not None
            call = work.train if request["what"] == "train" else work.forward
            assert call is not None
            if request["op"] == "result":
                connection.send_bytes(np.ascontiguousarray(call(), dtype=np.float32).tobytes())
            else:
                connection.send_bytes(json.dumps(_time(call, request["calls"])).encode())


# Seconds in which a system finds a processor for every thread that has just been woken, and caches fill.
WARM = 0.02


def _time(call: Callable[[], Any], calls: int) -> float:
    """Seconds a call, after some that warm up, one at least."""
    end = time.perf_counter() + WARM
    call()
    while time.perf_counter() < end:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls."""
    return min(_time(call, 1) for _ in range(10))


class Engine(AbstractContextManager["Engine"]):
    """A process that serves one engine, seen from outside."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        before = {variable: os.environ.get(variable) for variable in VARIABLES}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, threads, theirs), daemon=True)
        os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
        try:
            self._process.start()
        finally:
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value
        theirs.close()

    def _signal(self, name: str) -> None:
        """Stop or continue the process, where a system can."""
        if hasattr(signal, name) and self._process.pid is not None:
            os.kill(self._process.pid, getattr(signal, name))

    def _ask(self, **request: Any) -> bytes:
        self._signal("SIGCONT")
        self._connection.send_bytes(json.dumps(request).encode())
        try:
            answer = self._connection.recv_bytes()
        except EOFError:
            self._process.join()
            msg = f"the process of {self.name} ended with code {self._process.exitcode}"
            raise KernelError(msg) from None
        self._signal("SIGSTOP")
        return answer

    def build(self, shape: Shape) -> bool:
        """Make ready for a shape; whether the engine can train it."""
        return bool(json.loads(self._ask(op="build", shape=shape)))

    def result(self, what: str) -> np.ndarray:
        """Flat y or dx."""
        return np.frombuffer(self._ask(op="result", what=what), dtype=np.float32)

    def time(self, what: str, calls: int) -> float:
        """Seconds a call."""
        return float(json.loads(self._ask(op="time", what=what, calls=calls)))

    def product(self) -> float:
        """Multiply-adds a second of a large product of matrices, in 1e9, each as two operations."""
        return 2e-9 * PRODUCT**3 / float(json.loads(self._ask(op="product")))

    def __exit__(self, *exc: object) -> None:
        if self._process.exitcode is None:
            self._signal("SIGCONT")
            self._connection.send_bytes(json.dumps({"op": "stop"}).encode())
        self._process.join()
