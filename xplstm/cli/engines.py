"""What `bench` times: each engine in a process of its own, which works only when it is told to.

A thread pool that spins after its work is done would slow whoever runs next in
the same process; here it can only slow itself.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

import xplstm
from xplstm import _dispatch


class Shape(NamedTuple):
    """One layer, one direction, float32."""

    T: int
    B: int
    I: int
    H: int


class Work(NamedTuple):
    """What an engine can be asked for; None what it cannot do."""

    forward: Callable[[], np.ndarray]
    """y."""
    train: Callable[[], np.ndarray] | None
    """dx after a forward and a backward pass."""


def problem(shape: Shape) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters, x and dy, the same in every process."""
    rng = np.random.default_rng(0)
    params = xplstm.LSTM(shape.I, shape.H, rng=rng).params
    x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
    return params, x, rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)


def kernel(name: str) -> Callable[[Shape, int], Work]:
    """One of our own kernels."""

    def build(shape: Shape, threads: int) -> Work:  # noqa: ARG001 - BLAS has read its environment already
        xplstm.use_kernel(name)
        params, x, dy = problem(shape)
        lstm = xplstm.LSTM(shape.I, shape.H)
        lstm.load_state_dict(params)
        frozen = lstm.freeze()
        if shape.T == 1:
            return Work(lambda: np.asarray(frozen.step(x[0])[0])[None], None)
        return Work(lambda: np.asarray(frozen(x)[0]), lambda: np.asarray(lstm.vjp(x)[2](dy)[0]))

    return build


def torch(shape: Shape, threads: int) -> Work:
    """PyTorch's LSTM on the CPU."""
    import torch

    torch.set_num_threads(threads)
    params, x, dy = problem(shape)
    module = torch.nn.LSTM(shape.I, shape.H)
    module.load_state_dict({name: torch.tensor(a) for name, a in params.items()})
    inputs, gradient = torch.tensor(x), torch.tensor(dy)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(inputs)[0].numpy())

    def train() -> np.ndarray:
        module.zero_grad()
        leaf = inputs.detach().requires_grad_()
        module(leaf)[0].backward(gradient)
        return np.asarray(leaf.grad.numpy())

    return Work(forward, None if shape.T == 1 else train)


def onnxruntime(shape: Shape, threads: int) -> Work:
    """ONNX Runtime's LSTM on the CPU, its threads asleep between calls as in a server."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    params, x, _ = problem(shape)
    H = shape.H

    def iofc(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a[:H], a[3 * H :], a[H : 2 * H], a[2 * H : 3 * H]])

    weights = {
        "W": iofc(params["weight_ih_l0"])[None],
        "R": iofc(params["weight_hh_l0"])[None],
        "B": np.concatenate([iofc(params["bias_ih_l0"]), iofc(params["bias_hh_l0"])])[None],
    }
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *weights], ["y"], hidden_size=H)],
        "lstm",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape.T, 1, shape.B, H])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Work(lambda: np.asarray(session.run(None, {"x": x})[0][:, 0]), None)


PEERS = {"torch": (torch, ("torch",)), "onnxruntime": (onnxruntime, ("onnx", "onnxruntime"))}


def available() -> list[str]:
    """Our kernels, then the peers that are installed."""
    peers = [name for name, (_, needs) in PEERS.items() if all(importlib.util.find_spec(n) for n in needs)]
    return [*_dispatch.TABLE, *peers]


def serve(name: str, threads: int, connection: Connection) -> None:
    """Answer requests until told to stop: build a shape, give a result, time a number of calls."""
    build = PEERS[name][0] if name in PEERS else kernel(name)
    work: Work | None = None
    while True:
        request: dict[str, Any] = json.loads(connection.recv_bytes())
        if request["op"] == "stop":
            return
        if request["op"] == "build":
            work = build(Shape(*request["shape"]), threads)
            connection.send_bytes(json.dumps(work.train is not None).encode())
            continue
        assert work is not None
        call = work.forward if request["what"] == "forward" else work.train
        assert call is not None
        if request["op"] == "result":
            connection.send_bytes(np.ascontiguousarray(call(), dtype=np.float32).tobytes())
        else:
            connection.send_bytes(json.dumps(_time(call, request["calls"])).encode())


def _time(call: Callable[[], np.ndarray], calls: int) -> float:
    """Seconds a call, after one that wakes the threads and warms the caches."""
    call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


class Engine(AbstractContextManager["Engine"]):
    """A process that serves one engine, seen from outside."""

    def __init__(self, name: str, threads: int) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _ask(self, **request: Any) -> bytes:
        self._connection.send_bytes(json.dumps(request).encode())
        return self._connection.recv_bytes()

    def build(self, shape: Shape) -> bool:
        """Make ready for a shape; whether the engine can train it."""
        return bool(json.loads(self._ask(op="build", shape=shape)))

    def result(self, what: str) -> np.ndarray:
        """Flat y or dx."""
        return np.frombuffer(self._ask(op="result", what=what), dtype=np.float32)

    def time(self, what: str, calls: int) -> float:
        """Seconds a call."""
        return float(json.loads(self._ask(op="time", what=what, calls=calls)))

    def __exit__(self, *exc: object) -> None:
        self._connection.send_bytes(json.dumps({"op": "stop"}).encode())
        self._process.join()
