"""Engines of `bench`: the kernels of this package and installed peers, as functions for one shape."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

import xplstm
from xplstm import Variant, _dispatch
from xplstm.kernels import native


class Shape(NamedTuple):
    """Sizes of one float32 layer with one direction; T = 1 is a single streaming step."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shape of a text such as "100,1,3,8"."""
        return cls(*map(int, text.split(",")))

    def multiply_adds(self) -> int:
        """Return the number of multiply-adds in the matrix products of one step."""
        return self.B * 4 * self.H * (self.I + self.H)


class Work(NamedTuple):
    """Functions of an engine; None if the engine does not support one."""

    forward: Callable[[], np.ndarray]
    """Return y."""
    train: Callable[[], np.ndarray] | None
    """Return dx after a forward and a backward pass."""


SHARED = {
    "peepholes": Variant(peepholes=True),
    "coupled": Variant(coupled=True),
    "hard_sigmoid": Variant(activations=("hard_sigmoid", "tanh", "tanh")),
    "gate_clip": Variant(gate_clip=1.0),
    "all": Variant(True, True, ("hard_sigmoid", "tanh", "tanh"), gate_clip=1.0),
}
"""Options that ONNX Runtime also has."""

VARIANTS = SHARED | {
    "zoneout": Variant(zoneout_h=0.1, zoneout_c=0.1),
    "recurrent_dropout": Variant(recurrent_dropout=0.1),
    "layer_norm": Variant(layer_norm=True),
}
"""Variants for ``--variants``; the engine ``native+peepholes`` runs the first on the kernel `native`."""

CELLS: dict[str, Callable[..., Any]] = {
    "gru": xplstm.GRU,
    "gru_reset_before": partial(xplstm.GRU, reset_after=False),
    "rnn": xplstm.RNN,
    "jordan": lambda I, H, **options: xplstm.JordanRNN(I, H, H, **options),
}
"""Other cells with the same I and H for ``--variants``."""
OPERATORS = ("gru", "gru_reset_before", "rnn")
"""Cells that ONNX Runtime also has."""

STORED: dict[str, dict[str, Any]] = {
    "bfloat16": {"weights": "bfloat16"},
    "bfloat16x16": {"weights": "bfloat16", "activations": "bfloat16"},
    "int8": {"weights": "int8"},
    "int8x8": {"weights": "int8", "activations": "int8"},
}
"""Arguments of `freeze` for ``--precisions``. The second number is the width of activations in bits."""

ALLOWED = {"bfloat16": 2e-2, "bfloat16x16": 2e-2, "int8": 2e-2, "int8x8": 8e-2}
"""Tolerance of each precision compared with float32, relative to the largest magnitude or 1."""
EQUAL = 1e-4
"""Tolerance between two float32 engines."""


def network(shape: Shape, option: str, rng: np.random.Generator) -> Any:
    """Return a float32 layer: an LSTM with a variant, or another cell."""
    if option in CELLS:
        return CELLS[option](shape.I, shape.H, rng=rng)
    return xplstm.LSTM(shape.I, shape.H, rng=rng, variant=VARIANTS.get(option))


def problem(shape: Shape, option: str = "") -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return parameters, x and dy, with the same values in every process."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = network(shape, option, rng).params
    x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
    return params, x, rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)


def kernel(name: str | None) -> Callable[[Shape, int], Work]:
    """Return the builder of one kernel, or of the default kernel for None."""

    # The process has read the number of threads from its environment.
    def build(shape: Shape, threads: int, option: str = "") -> Work:  # noqa: ARG001
        xplstm.use_kernel(name)
        stored = STORED.get(option, {})
        params, x, dy = problem(shape, option)
        layer = network(shape, option, np.random.default_rng(0))
        layer.load_state_dict(params)
        frozen = layer.freeze(**stored)
        if shape.T == 1:
            first = x[0]
            state = frozen.step(first)[1]
            zeros = type(state)(*map(np.zeros_like, state)) if isinstance(state, tuple) else 0 * state
            return Work(lambda: np.asarray(frozen.step(first, zeros)[0]), None)
        if stored:
            return Work(lambda: np.asarray(frozen(x)[0]), None)
        # Random masks are drawn only in training.
        options = VARIANTS.get(option, Variant())
        random = options.zoneout_h or options.zoneout_c or options.recurrent_dropout
        rng = np.random.default_rng(0) if random else None
        return Work(lambda: np.asarray(frozen(x)[0]), lambda: np.asarray(layer.vjp(x, rng=rng)[2](dy)[0]))

    return build


def build_torch(shape: Shape, threads: int, option: str = "") -> Work:
    """Prepare PyTorch's LSTM on the CPU, or LSTMCell for one step; ``compiled`` uses `torch.compile`."""
    import torch

    torch.set_num_threads(threads)
    params, x, dy = problem(shape, option)
    if option == "int8x8":
        return _torch_of_int8(params, shape, x)
    dtype = torch.bfloat16 if option == "bfloat16x16" else torch.float32
    kind = option.upper() if option in CELLS else "LSTM"
    prepare: Callable[[Any], Any] = torch.compile if option == "compiled" else lambda module: module
    inputs, gradient = torch.tensor(x, dtype=dtype), torch.tensor(dy, dtype=dtype)
    if shape.T == 1:
        cell = getattr(torch.nn, f"{kind}Cell")(shape.I, shape.H, dtype=dtype)
        cell.load_state_dict({name[:-3]: torch.tensor(a) for name, a in params.items()})
        first, zeros = inputs[0], torch.zeros(shape.B, shape.H, dtype=dtype)
        run, state = prepare(cell), (zeros, zeros) if kind == "LSTM" else zeros

        def step() -> np.ndarray:
            with torch.inference_mode():
                h = run(first, state)
                return np.asarray((h[0] if kind == "LSTM" else h).float().numpy())

        return Work(step, None)
    module = getattr(torch.nn, kind)(shape.I, shape.H, dtype=dtype)
    module.load_state_dict({name: torch.tensor(a) for name, a in params.items()})
    call = prepare(module)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(call(inputs)[0].float().numpy())

    def train() -> np.ndarray:
        module.zero_grad()
        leaf = inputs.detach().requires_grad_()
        call(leaf)[0].backward(gradient)
        return np.asarray(leaf.grad.numpy())

    return Work(forward, None if option == "bfloat16x16" else train)


def _torch_of_int8(params: dict[str, np.ndarray], shape: Shape, x: np.ndarray) -> Work:
    """Prepare PyTorch's dynamically quantised LSTM."""
    import torch

    holder = torch.nn.Sequential(torch.nn.LSTM(shape.I, shape.H))
    holder[0].load_state_dict({name: torch.tensor(a) for name, a in params.items()})
    with warnings.catch_warnings():
        # Deprecated in favour of another package, which does not quantise LSTMs.
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(holder, {torch.nn.LSTM})[0]
    inputs = torch.tensor(x)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(quantised(inputs)[0].numpy())

    return Work(forward, None)


def build_onnxruntime(shape: Shape, threads: int, option: str = "") -> Work:
    """Prepare ONNX Runtime's LSTM on the CPU; ``int8x8`` uses DynamicQuantizeLSTM."""
    import onnxruntime

    params, x, _ = problem(shape, option)
    model = _onnx_model(params, shape, option)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        _quantise_model(model) if option == "int8x8" else model.SerializeToString(),
        session_options,
        providers=["CPUExecutionProvider"],
    )
    return Work(lambda: np.asarray(session.run(None, {"x": x})[0][:, 0]), None)


def _onnx_model(params: dict[str, np.ndarray], shape: Shape, option: str) -> Any:
    """Return a model with one recurrent operator from x to y."""
    import onnx
    from onnx import helper, numpy_helper

    from xplstm.io.onnx._export import attributes_of
    from xplstm.io.onnx._operator import from_params

    layer = network(shape, option, np.random.default_rng(0))
    layer.load_state_dict(params)
    stack, (directions,) = layer._stack, layer._open()[1]
    weights = {name: a for name, a in from_params(directions)._asdict().items() if a is not None}
    inputs = ["x", "W", "R", "B", *(["", "", "", "P"] if "P" in weights else [])]
    graph = helper.make_graph(
        [helper.make_node(stack.cell.name, inputs, ["y"], **attributes_of(stack))],
        stack.cell.name,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [shape.T, shape.B, shape.I])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape.T, 1, shape.B, shape.H])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def _quantise_model(model: Any) -> bytes:
    """Return a model with int8 weights and a scale for each row."""
    from onnxruntime.quantization import quantize_dynamic

    # Metadata of ONNX Runtime's preprocessing, which avoids a warning; one operator needs none.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(model, file, per_channel=True)
        return file.read_bytes()


def scan_lstm(p: dict[str, Any], x: Any) -> Any:
    """Return y from a zero state with `jax.lax.scan`, after one product for the inputs of all steps."""
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


def build_jax(shape: Shape, threads: int, option: str = "") -> Work:  # noqa: ARG001 - one signature
    """Prepare the compiled JAX loop."""
    import jax

    params, x, dy = problem(shape)
    p, inputs, gradient = jax.device_put((params, x, dy), jax.devices("cpu")[0])
    forward = jax.jit(scan_lstm)
    train = jax.jit(lambda p, x, dy: jax.vjp(scan_lstm, p, x)[1](dy))

    def trained() -> np.ndarray:
        gradients, dx = jax.block_until_ready(train(p, inputs, gradient))
        assert len(gradients) == len(params)
        return np.asarray(dx)

    return Work(lambda: np.asarray(forward(p, inputs)), None if shape.T == 1 else trained)


def build_openvino(shape: Shape, threads: int, option: str = "") -> Work:
    """Prepare OpenVINO's LSTMSequence on the CPU, with the precision `option` or float32."""
    import openvino
    from openvino import opset13 as op

    params, x, _ = problem(shape)
    H = shape.H

    def fico(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a[H : 2 * H], a[:H], a[2 * H : 3 * H], a[3 * H :]])[None]

    source = op.parameter([shape.B, shape.T, shape.I], np.float32)
    zeros = op.constant(np.zeros((shape.B, 1, H), np.float32))
    lengths = op.constant(np.full(shape.B, shape.T, np.int32))
    matrices = (op.constant(fico(params[f"weight_{name}_l0"])) for name in ("ih", "hh"))
    bias = op.constant(fico(params["bias_ih_l0"] + params["bias_hh_l0"]))
    layer = op.lstm_sequence(source, zeros, zeros, lengths, *matrices, bias, H, "forward")
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if option else "f32",
    }
    model = openvino.Model([layer.output(0)], [source])
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    batch_first = np.ascontiguousarray(x.swapaxes(0, 1))

    def forward() -> np.ndarray:
        request.infer([batch_first], share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data[:, 0].swapaxes(0, 1))

    return Work(forward, None)


def build_mlx(shape: Shape, threads: int, option: str = "") -> Work:  # noqa: ARG001 - one signature
    """Prepare MLX's LSTM on the CPU."""
    import mlx.core as mx
    from mlx import nn

    mx.set_default_device(mx.cpu)
    params, x, dy = problem(shape)
    layer = nn.LSTM(shape.I, shape.H)
    names = {"Wx": "weight_ih_l0", "Wh": "weight_hh_l0"}
    weights = {name: mx.array(params[ours]) for name, ours in names.items()}
    weights["bias"] = mx.array(params["bias_ih_l0"] + params["bias_hh_l0"])
    inputs, gradient = (mx.array(np.ascontiguousarray(a.swapaxes(0, 1))) for a in (x, dy))

    def run(x: Any, *weights_of: Any) -> Any:
        layer.update(dict(zip(weights, weights_of, strict=True)))
        return layer(x)[0]

    def forward() -> np.ndarray:
        return np.asarray(run(inputs, *weights.values())).swapaxes(0, 1)

    def train() -> np.ndarray:
        _, gradients = mx.vjp(run, [inputs, *weights.values()], [gradient])
        mx.eval(gradients)
        return np.asarray(gradients[0]).swapaxes(0, 1)

    return Work(forward, None if shape.T == 1 else train)


def on_torch(name: str, shape: Shape, threads: int) -> Work:
    """Prepare a kernel of this package on PyTorch tensors, with autograd."""
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
    """Prepare a kernel of this package on JAX arrays, with `jax.vjp`."""
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
"""Engines for ``--arrays``; ``native@torch`` is the kernel `native` on PyTorch tensors."""


class Peer(NamedTuple):
    """Another library: the function that prepares its LSTM, required packages, and options."""

    build: Callable[..., Work]
    needs: tuple[str, ...]
    options: tuple[str, ...] = ()


PEERS = {
    "onnxruntime": Peer(build_onnxruntime, ("onnx", "onnxruntime"), (*SHARED, *OPERATORS, "int8x8")),
    "torch": Peer(build_torch, ("torch",), ("gru", "rnn", "bfloat16x16", "int8x8")),
    "torch_compiled": Peer(partial(build_torch, option="compiled"), ("torch",)),
    "jax": Peer(build_jax, ("jax",)),
    "openvino": Peer(build_openvino, ("openvino",), ("bfloat16x16",)),
    "mlx": Peer(build_mlx, ("mlx",)),
}


CHOICES = ("chosen", "native=1", "native=rows", "native=panels", "numpy_inplace")
"""Engines for ``--choices``: the automatic choice, and `native` on one thread and with each partition."""


def choice(name: str, shape: Shape, threads: int) -> Work:
    """Prepare the automatic choice, or `native` with the settings in CHOICES."""
    base, _, way = name.partition("=")
    if way in native.SHARES:
        native.pin_shares(way)
    elif way:
        xplstm.use_threads(int(way))
    return kernel(base if way else None)(shape, threads)


OURS = ("native", "numpy_inplace")


def engine_names() -> list[str]:
    """Return the names of all kernels and peers, without and with their options."""
    options = {OURS[0]: (*VARIANTS, *CELLS, *STORED), **{n: peer.options for n, peer in PEERS.items()}}
    return [*OURS, *PEERS, *(f"{name}+{option}" for name, own in options.items() for option in own)]


def available() -> list[str]:
    """Return the available kernels, fastest first, followed by the installed peers."""
    ours = [name for name in OURS if not _dispatch.why_missing(name)]
    return [*ours, *(n for n, peer in PEERS.items() if all(importlib.util.find_spec(x) for x in peer.needs))]


def with_options(options: dict[str, Any]) -> list[str]:
    """Return the fastest kernel, without and with each of `options`, and the peers with their options."""
    ours, *rest = available()
    peers = (f"{n}+{option}" for n in rest if n in PEERS for option in PEERS[n].options if option in options)
    return [ours, *(f"{ours}+{option}" for option in options), *peers]


available_variants = partial(with_options, {**VARIANTS, **CELLS})
"""Return the engines for ``--variants``."""
available_precisions = partial(with_options, STORED)
"""Return the engines for ``--precisions``."""


def available_arrays() -> list[str]:
    """Return the fastest kernel, on its own and on arrays of PyTorch and JAX, and the LSTMs of both."""
    ours, *rest = available()
    pairs = ((f"{ours}@{name}", name) for name in ON_ARRAYS if name in rest)
    return [ours, *(name for pair in pairs for name in pair)]


def available_choices() -> list[str]:
    """Return the engines for ``--choices``."""
    ours = available()
    return [name for name in CHOICES if name == "chosen" or name.partition("=")[0] in ours]


def option_of(name: str) -> str:
    """Return the option in the name of an engine, or ""."""
    return name.partition("+")[2]


def builder(name: str) -> Callable[[Shape, int], Work]:
    """Return the function that prepares an engine for a shape and a number of threads."""
    base, _, library = name.partition("@")
    if library:
        return partial(ON_ARRAYS[library], base)
    if name == "chosen" or "=" in name:
        return partial(choice, name)
    base, _, option = name.partition("+")
    build: Callable[..., Work] = PEERS[base].build if base in PEERS else kernel(base)
    return partial(build, option=option) if option else build


# Size of the square matrices whose product measures the peak of the machine.
PRODUCT = 768


def product(name: str, threads: int) -> Callable[[], Any]:
    """Return the function that multiplies two large matrices with PyTorch or NumPy."""
    a = np.ones((PRODUCT, PRODUCT), dtype=np.float32)
    if name != "torch":
        return lambda: a @ a
    import torch

    torch.set_num_threads(threads)
    b = torch.tensor(a)
    return lambda: b @ b
