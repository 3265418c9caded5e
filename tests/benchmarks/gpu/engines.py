"""Define the engines of the GPU benchmark as functions of a shape: CuPy kernels, and other libraries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import xplstm
from tests.benchmarks.gpu import cudnn, loop
from xplstm._array import dtype_from_name
from xplstm.cli.peers import Shape, scan_lstm

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
LIBRARY, DEVICE = "cupy", "cuda"
# The number of input sets: enough to exceed the cache, up to this limit.
MOST_SETS = 256
SAMPLES = 16384

Results = dict[str, Any]
"""Arrays by name, on the device: y, or dx and dweight_hh."""


class Work(NamedTuple):
    """Operations of an engine; the argument selects the input set."""

    forward: Callable[[int], Results]
    train: Callable[[int], Results]
    host: Callable[[Any, np.ndarray], np.ndarray]
    """Some elements of an array, as float32 on the host."""
    sets: int
    wait: Callable[[Results], object] | None = None
    """What waits until results are there, for engines on streams of their own."""


class Inputs(NamedTuple):
    """Parameters, and an array that contains every input set; the same in every process."""

    shape: Shape
    params: dict[str, np.ndarray]
    numbers: np.ndarray
    sets: int
    stride: int

    def parts(self, flat: Any) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
        """Return views of `flat`, the numbers in some library and dtype: x and dy of a set."""
        T, B, I, H = self.shape

        def part(first: int, width: int) -> Any:
            return flat[first : first + T * B * width].reshape(T, B, width)

        return lambda k: part(k * self.stride, I), lambda k: part((k + 1) * self.stride, H)


def inputs(shape: Shape, cache: int) -> Inputs:
    """Return enough input sets to exceed twice the size of the cache."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = xplstm.LSTM(shape.I, shape.H, rng=rng).params
    # Offsets are multiples of 64 numbers, so every set has the alignment of a new array.
    stride = -(-shape.T * shape.B * max(shape.I, shape.H) // 64) * 64
    sets = min(MOST_SETS, max(1, -(-2 * cache // (4 * stride))))
    # The period is a prime number, so equal numbers are never in the same column of neighbouring rows.
    numbers = rng.standard_normal(1048583, dtype=np.float32)
    return Inputs(shape, params, np.resize(numbers, (sets + 1) * stride), sets, stride)


def dtype_of(precision: str) -> str:
    """Return the name of the dtype in which a precision is stored."""
    return "float32" if precision == "tf32" else precision


def _from_cupy(a: Any, at: np.ndarray) -> np.ndarray:
    """Return some elements as float32 on the host."""
    import cupy as cp

    return np.asarray(cp.asnumpy(a.reshape(-1)[cp.asarray(at)].astype(np.float32)))


def _uploaded(given: Inputs, precision: str) -> Any:
    """Return the numbers as a CuPy array."""
    import cupy as cp

    return cp.asarray(given.numbers).astype(dtype_from_name(cp, dtype_of(precision)), copy=False)


def kernel(name: str) -> Callable[[Inputs, str], Work]:
    """Build a kernel of xplstm."""

    def build(given: Inputs, precision: str) -> Work:
        import cupy as cp

        xplstm.use_kernel(name)
        I, H, dtype = given.shape.I, given.shape.H, dtype_of(precision)
        lstm = xplstm.LSTM(I, H, xp=LIBRARY, dtype=dtype, precision="tf32" if precision == "tf32" else None)
        stored = dtype_from_name(cp, dtype)
        lstm.load_state_dict({n: cp.asarray(a).astype(stored, copy=False) for n, a in given.params.items()})
        frozen = lstm.freeze()
        x, dy = given.parts(_uploaded(given, precision))

        def train(k: int) -> Results:
            dx, _, gradients = lstm.vjp(x(k))[2](dy(k))
            return {"dx": dx, "dweight_hh": gradients["weight_hh_l0"]}

        return Work(lambda k: {"y": frozen(x(k))[0]}, train, _from_cupy, given.sets)

    return build


def direct(algorithm: str) -> Callable[[Inputs, str], Work]:
    """Build one algorithm of cuDNN."""

    def build(given: Inputs, precision: str) -> Work:
        import cupy as cp

        dtype = dtype_from_name(cp, dtype_of(precision))
        layer = cudnn.Layer(cp, given.shape, algorithm, precision, given.params, dtype)
        x, dy = given.parts(_uploaded(given, precision))

        def train(k: int) -> Results:
            return {"dx": layer.train(x(k), dy(k)), "dweight_hh": layer}

        return Work(lambda k: {"y": layer.forward(x(k))}, train, _from_cudnn, given.sets)

    return build


def _from_cudnn(a: Any, at: np.ndarray) -> np.ndarray:
    """Return the requested gradient from the single gradient buffer of cuDNN."""
    return _from_cupy(a.gradient() if isinstance(a, cudnn.Layer) else a, at)


def build_torch(given: Inputs, precision: str) -> Work:
    """Build PyTorch's LSTM, which uses cuDNN; TF32 is off only for float32."""
    import torch

    _allow_tf32(torch, precision != "float32")
    dtype = getattr(torch, dtype_of(precision))
    module = torch.nn.LSTM(given.shape.I, given.shape.H)
    module.load_state_dict({name: torch.tensor(a) for name, a in given.params.items()})
    module = module.to(DEVICE, dtype)
    x, dy = given.parts(torch.tensor(given.numbers, device=DEVICE).to(dtype))

    def forward(k: int) -> Results:
        with torch.inference_mode():
            return {"y": module(x(k))[0]}

    def train(k: int) -> Results:
        module.zero_grad()
        leaf = x(k).detach().requires_grad_()
        module(leaf)[0].backward(dy(k))
        return {"dx": leaf.grad, "dweight_hh": module.weight_hh_l0.grad}

    def host(a: Any, at: np.ndarray) -> np.ndarray:
        return np.asarray(a.reshape(-1)[torch.tensor(at, device=DEVICE)].float().cpu().numpy())

    return Work(forward, train, host, given.sets)


def _allow_tf32(torch: Any, allowed: bool) -> None:
    """Set TF32 with the interface of this version of PyTorch, which rejects a mixture of interfaces."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "rnn"):
        cudnn.rnn.fp32_precision = "tf32" if allowed else "ieee"
    else:
        cudnn.allow_tf32 = allowed


def build_jax(given: Inputs, precision: str) -> Work:
    """Build a compiled loop in JAX."""
    import jax
    from jax import numpy as jnp

    dtype = dtype_of(precision)
    device = jax.devices(DEVICE)[0]
    params = {n: jax.device_put(a, device).astype(dtype) for n, a in given.params.items()}
    # By default JAX computes float32 products in TF32.
    accuracy = "highest" if precision == "float32" else "default"

    forward = jax.jit(scan_lstm)
    train = jax.jit(lambda p, x, dy: jax.vjp(scan_lstm, p, x)[1](dy))
    x, dy = given.parts(jax.device_put(given.numbers, device).astype(dtype))
    sets = [(x(k), dy(k)) for k in range(given.sets)]

    def run_forward(k: int) -> Results:
        with jax.default_matmul_precision(accuracy):
            return {"y": forward(params, sets[k][0])}

    def run_train(k: int) -> Results:
        with jax.default_matmul_precision(accuracy):
            gradients, dx = train(params, *sets[k])
        return {"dx": dx, "dweight_hh": gradients["weight_hh_l0"]}

    def host(a: Any, at: np.ndarray) -> np.ndarray:
        return np.asarray(a.reshape(-1)[jnp.asarray(at)].astype("float32"))

    return Work(run_forward, run_train, host, given.sets, jax.block_until_ready)


def documents(given: Inputs, precision: str) -> Work:
    """Build the loop of the documents in CuPy, in float32."""
    import cupy as cp

    x, dy = given.parts(cp.asarray(given.numbers))
    forward, train = loop.Forward(cp, given.params), loop.Training(cp, given.params)
    return Work(
        lambda k: {"y": forward(x(k))},
        lambda k: {"dweight_hh": train(x(k), dy(k))},
        _from_cupy,
        given.sets,
    )


class Engine(NamedTuple):
    """Function that prepares an engine, the packages that it needs, and its precisions."""

    build: Callable[[Inputs, str], Work]
    needs: tuple[str, ...]
    precisions: tuple[str, ...] = PRECISIONS


OURS = ("cupy_block", "cupy_persistent", "cupy_fused")
ENGINES = {
    **{name: Engine(kernel(name), ()) for name in OURS},
    "torch": Engine(build_torch, ("torch",)),
    **{f"cudnn_{name}": Engine(direct(name), ()) for name in cudnn.ALGORITHMS},
    # JAX compiles every shape again, so it runs only in these precisions.
    "jax": Engine(build_jax, ("jax",), ("float32", "bfloat16")),
    "cupy_elementwise": Engine(kernel("cupy_elementwise"), ()),
    "reference": Engine(kernel("reference"), (), ("float32",)),
    "documents": Engine(documents, (), ("float32",)),
}
# The judge is the first of these that ran: other implementations before xplstm's own.
JUDGES = ("torch", "cudnn_standard", "jax", "reference")


def available() -> list[str]:
    """Return the engines whose packages are installed; all of them need CuPy."""
    return [name for name, engine in ENGINES.items() if all(map(importlib.util.find_spec, engine.needs))]


def sample(work: Work, shape: Shape, found: Results) -> dict[str, np.ndarray]:
    """Return some elements of every result, the same in every process."""
    T, B, I, H = shape
    sizes = {"y": T * B * H, "dx": T * B * I, "dweight_hh": 4 * H * H}
    rng = np.random.default_rng(0)
    places = {name: rng.integers(0, size, SAMPLES) for name, size in sizes.items()}
    return {name: work.host(a, places[name]) for name, a in found.items()}


def before_import() -> None:
    """Set variables that libraries read once; by default JAX reserves most of the device's memory."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
