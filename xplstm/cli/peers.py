"""What `bench` times: our kernels, and the peers that are installed, each as functions of one shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import xplstm
from xplstm import Variant, _dispatch


class Shape(NamedTuple):
    """One layer, one direction, float32; T = 1 is a single step of a stream."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))

    def multiply_adds(self) -> int:
        """Of the products of one step."""
        return self.B * 4 * self.H * (self.I + self.H)


class Work(NamedTuple):
    """What an engine can be asked for; None what it cannot do."""

    forward: Callable[[], np.ndarray]
    """y."""
    train: Callable[[], np.ndarray] | None
    """dx after a forward and a backward pass."""


SHARED = {
    "peepholes": Variant(peepholes=True),
    "coupled": Variant(coupled=True),
    "hard_sigmoid": Variant(activations=("hard_sigmoid", "tanh", "tanh")),
    "gate_clip": Variant(gate_clip=1.0),
    "all": Variant(True, True, ("hard_sigmoid", "tanh", "tanh"), gate_clip=1.0),
}
"""Options that ONNX Runtime has too."""

VARIANTS = SHARED | {
    "zoneout": Variant(zoneout_h=0.1, zoneout_c=0.1),
    "recurrent_dropout": Variant(recurrent_dropout=0.1),
}
"""Timed by ``--variants``; the engine ``native+peepholes`` runs the first on the kernel `native`."""


def problem(
    shape: Shape, variant: Variant | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters, x and dy, the same in every process."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = xplstm.LSTM(shape.I, shape.H, rng=rng, variant=variant).params
    x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
    return params, x, rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)


def kernel(name: str) -> Callable[[Shape, int], Work]:
    """One of our own kernels."""

    # Its process has read the number of threads from its environment.
    def build(shape: Shape, threads: int, variant: Variant | None = None) -> Work:  # noqa: ARG001
        xplstm.use_kernel(name)
        params, x, dy = problem(shape, variant)
        lstm = xplstm.LSTM(shape.I, shape.H, variant=variant)
        lstm.load_state_dict(params)
        frozen = lstm.freeze()
        if shape.T == 1:
            first = x[0]
            state = frozen.step(first)[1]
            zeros = type(state)(np.zeros_like(state.h), np.zeros_like(state.c))
            return Work(lambda: np.asarray(frozen.step(first, zeros)[0]), None)
        # Random masks are drawn in training alone.
        options = variant or Variant()
        random = options.zoneout_h or options.zoneout_c or options.recurrent_dropout
        rng = np.random.default_rng(0) if random else None
        return Work(lambda: np.asarray(frozen(x)[0]), lambda: np.asarray(lstm.vjp(x, rng=rng)[2](dy)[0]))

    return build


def build_torch(shape: Shape, threads: int) -> Work:
    """PyTorch's LSTM on the CPU, for a single step its LSTMCell."""
    import torch

    torch.set_num_threads(threads)
    params, x, dy = problem(shape)
    inputs, gradient = torch.tensor(x), torch.tensor(dy)
    if shape.T == 1:
        cell = torch.nn.LSTMCell(shape.I, shape.H)
        cell.load_state_dict({name[:-3]: torch.tensor(a) for name, a in params.items()})
        first, zeros = inputs[0], torch.zeros(shape.B, shape.H)

        def step() -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(cell(first, (zeros, zeros))[0].numpy())

        return Work(step, None)
    module = torch.nn.LSTM(shape.I, shape.H)
    module.load_state_dict({name: torch.tensor(a) for name, a in params.items()})

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(inputs)[0].numpy())

    def train() -> np.ndarray:
        module.zero_grad()
        leaf = inputs.detach().requires_grad_()
        module(leaf)[0].backward(gradient)
        return np.asarray(leaf.grad.numpy())

    return Work(forward, train)


def build_onnxruntime(shape: Shape, threads: int, variant: Variant | None = None) -> Work:
    """ONNX Runtime's LSTM on the CPU."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    params, x, _ = problem(shape, variant)
    H = shape.H

    def iofc(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a[:H], a[3 * H :], a[H : 2 * H], a[2 * H : 3 * H]])

    weights = {
        "W": iofc(params["weight_ih_l0"])[None],
        "R": iofc(params["weight_hh_l0"])[None],
        "B": np.concatenate([iofc(params["bias_ih_l0"]), iofc(params["bias_hh_l0"])])[None],
    }
    inputs, options = ["x", *weights], _onnx_options(variant)
    if variant is not None and variant.peepholes:
        i, f, o = np.split(params["weight_ch_l0"], 3)
        weights["P"] = np.concatenate([i, o, f])[None]
        inputs += ["", "", "", "P"]
    graph = helper.make_graph(
        [helper.make_node("LSTM", inputs, ["y"], hidden_size=H, **options)],
        "lstm",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape.T, 1, shape.B, H])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
    )
    return Work(lambda: np.asarray(session.run(None, {"x": x})[0][:, 0]), None)


def _onnx_options(variant: Variant | None) -> dict[str, Any]:
    """Return the attributes of the ONNX operator for one of VARIANTS."""
    options: dict[str, Any] = {}
    if variant is None:
        return options
    if variant.activations[0] == "hard_sigmoid":
        options |= {"activations": ["HardSigmoid", "Tanh", "Tanh"], "activation_alpha": [0.2]}
        options["activation_beta"] = [0.5]
    if variant.coupled:
        options["input_forget"] = 1
    if variant.gate_clip is not None:
        options["clip"] = variant.gate_clip
    return options


def scanned(p: dict[str, Any], x: Any) -> Any:
    """JAX's y from a state of zeros: a loop of `jax.lax.scan`, the input's product before it."""
    import jax
    from jax import numpy as jnp

    def step(state: Any, u: Any) -> Any:
        i, f, g, o = jnp.split(u + state[0] @ p["weight_hh_l0"].T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], p["weight_hh_l0"].shape[1]), x.dtype)
    u = x @ p["weight_ih_l0"].T + (p["bias_ih_l0"] + p["bias_hh_l0"])
    return jax.lax.scan(step, (zeros, zeros), u)[1]


def build_jax(shape: Shape, threads: int) -> Work:  # noqa: ARG001 - it takes the process's processors
    """JAX's loop, compiled."""
    import jax

    params, x, dy = problem(shape)
    p, inputs, gradient = jax.device_put((params, x, dy), jax.devices("cpu")[0])
    forward = jax.jit(scanned)
    train = jax.jit(lambda p, x, dy: jax.vjp(scanned, p, x)[1](dy))

    def trained() -> np.ndarray:
        gradients, dx = jax.block_until_ready(train(p, inputs, gradient))
        assert len(gradients) == len(params)
        return np.asarray(dx)

    return Work(lambda: np.asarray(forward(p, inputs)), None if shape.T == 1 else trained)


def on_torch(name: str, shape: Shape, threads: int) -> Work:
    """Prepare one of our kernels on arrays of PyTorch, differentiated by its autograd."""
    import torch

    torch.set_num_threads(threads)
    xplstm.use_kernel(name)
    params, x, dy = problem(shape)
    inputs, gradient = torch.tensor(x), torch.tensor(dy)
    lstm: Any = xplstm.LSTM(shape.I, shape.H, xp="torch")
    lstm.load_state_dict({n: torch.tensor(a) for n, a in params.items()})
    frozen: Any = lstm.freeze()
    if shape.T == 1:
        zeros = type(frozen.step(inputs[0])[1])(*(torch.zeros(1, shape.B, shape.H) for _ in "hc"))
        return Work(lambda: np.asarray(frozen.step(inputs[0], zeros)[0].numpy()), None)
    lstm.params = {n: a.requires_grad_() for n, a in lstm.params.items()}

    def train() -> np.ndarray:
        for a in lstm.params.values():
            a.grad = None
        leaf = inputs.detach().requires_grad_()
        lstm(leaf)[0].backward(gradient)
        return np.asarray(leaf.grad.numpy())

    return Work(lambda: np.asarray(frozen(inputs)[0].numpy()), train)


def on_jax(name: str, shape: Shape, threads: int) -> Work:  # noqa: ARG001 - it takes the process's processors
    """Prepare one of our kernels on arrays of JAX, differentiated by `jax.vjp`."""
    import jax

    xplstm.use_kernel(name)
    params, x, dy = problem(shape)
    p, inputs, gradient = jax.device_put((params, x, dy), jax.devices("cpu")[0])
    lstm = xplstm.LSTM(shape.I, shape.H, xp="jax")
    lstm.load_state_dict(p)
    frozen = lstm.freeze()
    if shape.T == 1:
        state = frozen.step(inputs[0])[1]
        zeros = type(state)(0 * state.h, 0 * state.c)
        return Work(lambda: np.asarray(frozen.step(inputs[0], zeros)[0]), None)

    def of(params: Any, x: Any) -> Any:
        lstm.params = params
        return lstm(x)[0]

    def train() -> np.ndarray:
        _, dx = jax.block_until_ready(jax.vjp(of, p, inputs)[1](gradient))
        return np.asarray(dx)

    return Work(lambda: np.asarray(frozen(inputs)[0]), train)


ON_ARRAYS = {"torch": on_torch, "jax": on_jax}
"""Timed by ``--arrays``; the engine ``native@torch`` is the kernel `native` on arrays of PyTorch."""

PEERS = {
    "onnxruntime": (build_onnxruntime, ("onnx", "onnxruntime")),
    "torch": (build_torch, ("torch",)),
    "jax": (build_jax, ("jax",)),
}


def available() -> list[str]:
    """Our kernels that run here, fastest first, then the peers that are installed."""
    ours = [name for name in ("native", "numpy_inplace") if not _dispatch.why_missing(name)]
    peers = [name for name, (_, needs) in PEERS.items() if all(importlib.util.find_spec(n) for n in needs)]
    return [*ours, *peers]


def available_variants() -> list[str]:
    """Return the fastest of our kernels, that kernel with each of VARIANTS, and ONNX Runtime with SHARED."""
    ours, *rest = available()
    peers = (name for name in rest if name == "onnxruntime")
    theirs = (f"{name}+{option}" for name in peers for option in SHARED)
    return [ours, *(f"{ours}+{option}" for option in VARIANTS), *theirs]


def available_arrays() -> list[str]:
    """Return the fastest of our kernels, it on arrays of PyTorch and JAX, and their own LSTMs."""
    ours, *rest = available()
    pairs = ((f"{ours}@{name}", name) for name in ON_ARRAYS if name in rest)
    return [ours, *(name for pair in pairs for name in pair)]


def builder(name: str) -> Callable[[Shape, int], Work]:
    """Return the function that prepares an engine for a shape and a number of threads."""
    base, _, library = name.partition("@")
    if library:
        return partial(ON_ARRAYS[library], base)
    base, _, option = name.partition("+")
    build: Callable[..., Work] = PEERS[base][0] if base in PEERS else kernel(base)
    return partial(build, variant=VARIANTS[option]) if option else build


# Rows and columns of the matrices whose product is the machine's measure.
PRODUCT = 768


def product(name: str, threads: int) -> Callable[[], Any]:
    """Multiply two large matrices with PyTorch or NumPy."""
    a = np.ones((PRODUCT, PRODUCT), dtype=np.float32)
    if name != "torch":
        return lambda: a @ a
    import torch

    torch.set_num_threads(threads)
    b = torch.tensor(a)
    return lambda: b @ b
