"""Run each engine of a benchmark in its own process, on request.

A kernel that hangs or breaks its context must not stop the measurements of other engines. A thread pool may
spin after its work and slow the next library, so a CPU process is suspended until its next turn. The CPU and
GPU benchmarks share this file.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

import numpy as np

from xplstm import KernelError, XplstmError
from xplstm.cli.peers import PRODUCT, Shape, Work, builder, product

# Environment variables for the number of threads, which libraries read on import.
VARIABLES = ("XPLSTM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Timeout in seconds for an answer of an engine, including compilation.
PATIENCE = 120.0
LONG_PATIENCE = 600.0
# Number of timeouts after which an engine gets no further requests.
HANGS = 2
# Seconds of warm-up, in which the system schedules resumed threads and caches fill.
WARM = 0.02

Name = TypeVar("Name")


def in_turns(able: Callable[[], Sequence[Name]], rounds: int) -> Iterator[Name]:
    """Yield each engine once per round, in alternating order; `able` lists the engines that still run."""
    for turn in range(rounds):
        yield from able() if turn % 2 else reversed(able())


def calls_of(seconds: float, turn: float, most: int) -> int:
    """Return the number of calls in an engine's turn; a call may be shorter than the clock resolution."""
    return most if seconds * most <= turn else max(1, int(turn / seconds))


def difference(a: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """Return the largest difference relative to the larger of max(abs(expected)) and `least`; inf for NaN."""
    if a.shape != expected.shape:
        return float("inf")
    worst = float(np.abs(a - expected).max() / max(float(np.abs(expected).max()), least))
    return worst if np.isfinite(worst) else float("inf")


def serve(make: Callable[[], Any], connection: Connection) -> None:
    """Answer requests with the methods of a server until the stop request; errors are sent as answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server: Any = None
    while True:
        try:
            request: dict[str, Any] = json.loads(connection.recv_bytes())
        except EOFError:
            return
        op = request.pop("op")
        if op == "stop":
            return
        answer: dict[str, Any]
        try:
            server = server or make()
            answer = {"value": getattr(server, op)(**request)}
        except Exception as error:
            # Catch any error; the other engines continue, and the report states the reason. The process can
            # continue if no kernel failed.
            harmless = isinstance(error, XplstmError | ImportError) or "out of memory" in str(error).lower()
            answer = {"error": describe(error), "broken": not harmless}
        connection.send_bytes(json.dumps(answer, default=_encode).encode())


def _encode(a: np.ndarray) -> dict[str, str]:
    """Encode the elements of a float32 array for JSON."""
    return {"float32": base64.b64encode(np.ascontiguousarray(a, dtype=np.float32).tobytes()).decode()}


def describe(error: Exception) -> str:
    """Format an error as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


class Worker:
    """Handle of a process that serves one engine; the process starts with the first request.

    The process calls `target` with `arguments` and a connection, under `environment`. With `suspend`, the
    process is suspended between requests if the system supports this.
    """

    def __init__(
        self,
        name: str,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        environment: Mapping[str, str] | None = None,
        suspend: bool = False,
    ) -> None:
        self.name, self._target, self._arguments = name, target, arguments
        self._environment, self._suspend = environment or {}, suspend
        self._process: Any = None
        self._hangs = 0

    def _start(self) -> None:
        before = {variable: os.environ.get(variable) for variable in self._environment}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._target, args=(*self._arguments, theirs), daemon=True)
        os.environ.update(self._environment)
        try:
            self._process.start()
        finally:
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value
        theirs.close()

    def _end(self) -> None:
        """Kill the process, which also frees its device memory."""
        self._process.kill()
        self._process.join()
        self._process = None

    def _signal(self, name: str) -> None:
        """Send a signal to suspend or resume the process, if the system supports it."""
        if self._suspend and hasattr(signal, name):
            os.kill(self._process.pid, getattr(signal, name))

    def ask(self, op: str, *, patience: float = PATIENCE, **request: Any) -> Any:
        """Return the answer to a request; raise if the process reports an error, times out or ends."""
        if self._hangs == HANGS:
            msg = f"{self.name} did not answer {HANGS} times and gets no further requests"
            raise KernelError(msg)
        if self._process is None:
            self._start()
        try:
            self._signal("SIGCONT")
            self._connection.send_bytes(json.dumps({"op": op, **request}).encode())
            if not self._connection.poll(patience):
                self._end()
                self._hangs += 1
                msg = f"no answer to {op} within {patience:.0f} s; the process of {self.name} was ended"
                raise KernelError(msg)
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, BrokenPipeError):
            self._process.join()
            msg = f"the process of {self.name} ended with code {self._process.exitcode} in {op}"
            self._process = None
            raise KernelError(msg) from None
        if "error" in answer and answer["broken"]:
            self._end()
        else:
            self._signal("SIGSTOP")
        if "error" in answer:
            raise KernelError(answer["error"])
        return answer["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is None:
            return
        if self._process.is_alive():
            self._signal("SIGCONT")
            self._connection.send_bytes(json.dumps({"op": "stop"}).encode())
            self._process.join(10)
        self._end()


class Server:
    """One library of `bench` in its process, with a method for each request."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._work: Work | None = None

    def build(self, shape: list[int]) -> bool:
        """Prepare a shape; return whether the engine can train it."""
        self._work = builder(self._name)(Shape(*shape), self._threads)
        return self._work.train is not None

    def _call(self, what: str) -> Callable[[], np.ndarray]:
        assert self._work is not None, "build comes first"
        call = self._work.train if what == "train" else self._work.forward
        assert call is not None, "build has said that it cannot train"
        return call

    def result(self, what: str) -> np.ndarray:
        """Return y or dx."""
        return self._call(what)()

    def time(self, what: str, calls: int) -> float:
        """Return the seconds of a call."""
        return _time(self._call(what), calls)

    def product(self) -> float:
        """Return the seconds of the fastest of several large matrix products."""
        call = product(self._name, self._threads)
        return min(_time(call, 1) for _ in range(10))


def _time(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call, after at least one warm-up call."""
    end = time.perf_counter() + WARM
    call()
    while time.perf_counter() < end:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def serve_library(name: str, threads: int, connection: Connection) -> None:
    """Answer the requests of `bench` on one processor for each thread."""
    if hasattr(os, "sched_setaffinity"):
        # Some thread pools use all available processors and ignore their settings.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    serve(lambda: Server(name, threads), connection)


class Engine(Worker):
    """Process of one library on the CPU with a number of threads."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        environment = dict.fromkeys(VARIABLES, str(threads))
        super().__init__(name, serve_library, (name, threads), environment, suspend=True)

    def build(self, shape: Shape) -> bool:
        """Prepare a shape; return whether the engine can train it."""
        return bool(self.ask("build", patience=LONG_PATIENCE, shape=shape))

    def result(self, what: str) -> np.ndarray:
        """Return flat y or dx."""
        encoded = self.ask("result", patience=LONG_PATIENCE, what=what)["float32"]
        return np.frombuffer(base64.b64decode(encoded), dtype=np.float32)

    def time(self, what: str, calls: int) -> float:
        """Return the seconds of a call."""
        return float(self.ask("time", patience=LONG_PATIENCE, what=what, calls=calls))

    def product(self) -> float:
        """Return the GFLOP/s of a large matrix product."""
        return 2e-9 * PRODUCT**3 / float(self.ask("product", patience=LONG_PATIENCE))
