"""Check the ONNX operators LSTM and RNN as functions, against ONNX Runtime and on every array library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import _array
from xplstm.io import onnx as ours

# Constants where ONNX Runtime has none of its own, or others than the operators.
FUNCTIONS = {
    "Relu": ((), ()),
    "Tanh": ((), ()),
    "Sigmoid": ((), ()),
    "Affine": ((0.7,), (0.1,)),
    "LeakyRelu": ((0.2,), ()),
    "ThresholdedRelu": ((0.1,), ()),
    "ScaledTanh": ((0.8,), (1.3,)),
    "HardSigmoid": ((0.3,), (0.4,)),
    "Elu": ((0.9,), ()),
    "Softsign": ((), ()),
    "Softplus": ((), ()),
}
SIDES = {"forward": 1, "reverse": 1, "bidirectional": 2}


def arrays(rng: np.random.Generator, op: str, direction: str, dtype: str = "float32") -> dict[str, Any]:
    """Return inputs of a node; T, B, I, H and D all differ."""
    D, gates = SIDES[direction], {"LSTM": 4, "RNN": 1}[op]
    T, B, I, H = 6, 4, 5, 3
    shapes = {
        "X": (T, B, I),
        "W": (D, gates * H, I),
        "R": (D, gates * H, H),
        "B": (D, 2 * gates * H),
        "initial_h": (D, B, H),
    }
    if op == "LSTM":
        shapes |= {"initial_c": (D, B, H), "P": (D, 3 * H)}
    # Small: several of the functions grow without end.
    found = {name: 0.3 * rng.normal(size=shape) for name, shape in shapes.items()}
    found = {name: a.astype(dtype) for name, a in found.items()}
    return found | {"sequence_lens": rng.integers(1, T + 1, size=B).astype("int32")}


def attributes(rng: np.random.Generator, op: str, direction: str) -> dict[str, Any]:
    """Return random attributes, with constants only for functions that have constants."""
    names = [str(n) for n in rng.choice(list(FUNCTIONS), size={"LSTM": 3, "RNN": 1}[op] * SIDES[direction])]
    chosen: dict[str, Any] = {"direction": direction, "hidden_size": 3, "activations": names}
    for place, letter in enumerate(("alpha", "beta")):
        values = [v for name in names for v in FUNCTIONS[name][place]]
        chosen |= {f"activation_{letter}": values} if values else {}
    if rng.integers(2):
        chosen["clip"] = float(rng.uniform(0.2, 1.5))
    if op == "LSTM":
        chosen["input_forget"] = int(rng.integers(2))
    return chosen


def by_runtime(op: str, inputs: dict[str, np.ndarray], chosen: dict[str, Any]) -> list[np.ndarray]:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    make = onnx.helper
    names = [name if name in inputs else "" for name in order[: 8 if op == "LSTM" else 6]]
    node = make.make_node(op, names, outputs, **chosen)
    given = [
        make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    made = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = make.make_graph([node], "one", given, made)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


@pytest.mark.parametrize("op", ["LSTM", "RNN"])
@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_onnx_runtime(op: str, direction: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, chosen = arrays(rng, op, direction), attributes(rng, op, direction)
    for name in rng.choice(["B", "initial_h", "sequence_lens"], size=seed % 3, replace=False):
        del inputs[str(name)]
    found = getattr(ours, op.lower())(**inputs, **chosen)
    for got, want in zip(found, by_runtime(op, inputs, chosen), strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            got, want, rtol=0, atol=3e-6 * max(1, float(np.abs(want).max())), err_msg=str(chosen)
        )


@pytest.mark.parametrize("op", ["LSTM", "RNN"])
@pytest.mark.parametrize("direction", SIDES)
def test_every_library(op: str, direction: str, xp: Any) -> None:
    """Compare batch-major results with NumPy's time-major results, both in float64."""
    rng = np.random.default_rng(3)
    inputs, chosen = arrays(rng, op, direction, "float64"), attributes(rng, op, direction)
    run = getattr(ours, op.lower())
    wanted = run(**inputs, **chosen)
    turned = {
        name: a.swapaxes(0, 1) if name in ("X", "initial_h", "initial_c") else a for name, a in inputs.items()
    }
    Y, *ends = run(**xp.arrays(turned), **chosen, layout=1)
    np.testing.assert_allclose(_array.to_numpy(Y), wanted[0].transpose(2, 0, 1, 3), rtol=0, atol=1e-13)
    for got, want in zip(ends, wanted[1:], strict=True):
        np.testing.assert_allclose(_array.to_numpy(got), want.swapaxes(0, 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes(dtype: str) -> None:
    inputs = arrays(np.random.default_rng(0), "LSTM", "bidirectional", "float64")
    low = {name: a.astype(dtype) if name != "sequence_lens" else a for name, a in inputs.items()}
    found = ours.lstm(**low, direction="bidirectional")
    assert {a.dtype.name for a in found} == {dtype}
    wanted = ours.lstm(**inputs, direction="bidirectional")
    atol = {"float64": 0, "float32": 1e-5, "float16": 2e-2}[dtype]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_a_row_without_steps_holds_its_state() -> None:
    inputs = arrays(np.random.default_rng(0), "LSTM", "bidirectional")
    Y, Y_h, Y_c = ours.lstm(**inputs | {"sequence_lens": [6, 0, 2, 3]}, direction="bidirectional")
    assert not Y[:, :, 1].any()
    assert np.array_equal(Y_h[:, 1], inputs["initial_h"][:, 1])
    assert np.array_equal(Y_c[:, 1], inputs["initial_c"][:, 1])


def test_constants_that_come_too_late_are_the_operators_own() -> None:
    inputs = arrays(np.random.default_rng(0), "LSTM", "forward")
    names = ["HardSigmoid", "LeakyRelu", "Elu"]
    short = ours.lstm(**inputs, activations=names, activation_alpha=[0.3])
    whole = ours.lstm(**inputs, activations=names, activation_alpha=[0.3, 0.01, 1.0], activation_beta=[0.5])
    assert all(np.array_equal(a, b) for a, b in zip(short, whole, strict=True))


@pytest.mark.parametrize(
    ("name", "constants", "missing"),
    [
        ("Affine", {}, "alpha"),
        ("Affine", {"activation_alpha": [0.5]}, "beta"),
        ("ScaledTanh", {"activation_beta": [0.5]}, "alpha"),
        ("ThresholdedRelu", {}, "alpha"),
    ],
)
def test_a_constant_without_a_common_default_must_be_written(name: str, constants: Any, missing: str) -> None:
    inputs = arrays(np.random.default_rng(0), "LSTM", "forward")
    with pytest.raises(xplstm.ArgumentError, match=f"{name}' without activation_{missing}, whose default"):
        ours.lstm(**inputs, activations=["Sigmoid", "Tanh", name], **constants)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", SIDES)
def test_gradients(direction: str, layout: int) -> None:
    rng = np.random.default_rng(5)
    inputs = arrays(rng, "LSTM", direction, "float64")
    if layout:
        inputs |= {name: inputs[name].swapaxes(0, 1) for name in ("X", "initial_h", "initial_c")}
    chosen: dict[str, Any] = {"direction": direction, "layout": layout, "input_forget": 1}
    *outputs, pullback = ours.lstm_vjp(**inputs, **chosen)
    for got, want in zip(outputs, ours.lstm(**inputs, **chosen), strict=True):
        assert np.array_equal(got, want)
    weights = [rng.normal(size=a.shape) for a in outputs]
    gradients = pullback(*weights)
    assert gradients.keys() == inputs.keys() - {"sequence_lens"}
    for name, gradient in gradients.items():
        step = 1e-6 * rng.normal(size=gradient.shape)
        ends = [
            sum(
                float(np.sum(w * a))
                for w, a in zip(weights, ours.lstm(**inputs | {name: moved}, **chosen), strict=True)
            )
            for moved in (inputs[name] + step, inputs[name] - step)
        ]
        np.testing.assert_allclose(np.sum(gradient * step), (ends[0] - ends[1]) / 2, rtol=1e-6, atol=1e-12)


def test_left_out_gradients_are_zeros() -> None:
    inputs = arrays(np.random.default_rng(0), "LSTM", "forward")
    *_, pullback = ours.lstm_vjp(**inputs)
    assert not any(a.any() for a in pullback().values())


def changed(**given: Any) -> Any:
    return lambda: ours.lstm(**arrays(np.random.default_rng(0), "LSTM", "forward") | given)


WRONG = [
    (changed(direction="backward"), xplstm.ArgumentError, "direction='backward' must be one of"),
    (changed(layout=2), xplstm.ArgumentError, "layout=2 must be at most 1"),
    (changed(input_forget=3), xplstm.ArgumentError, "input_forget=3 must be at most 1"),
    (changed(clip=0.0), xplstm.ArgumentError, "clip=0.0 must be above 0"),
    (changed(hidden_size=4), xplstm.ShapeError, r"W has shape \(1, 12, 5\), expected \(1, 16, 5\)"),
    (
        changed(direction="bidirectional"),
        xplstm.ShapeError,
        r"W has shape \(1, 12, 5\), expected \(2, 12, 5\)",
    ),
    (
        changed(B=np.zeros((1, 12), "float32")),
        xplstm.ShapeError,
        r"B has shape \(1, 12\), expected \(1, 24\)",
    ),
    (
        changed(X=np.zeros((6, 4, 7), "float32")),
        xplstm.ShapeError,
        r"X has shape \(6, 4, 7\), expected \(T, B, 5\)",
    ),
    (changed(initial_c=np.zeros((1, 4, 3))), xplstm.DTypeError, "initial_c has dtype float64"),
    (changed(activations=["Tanh"]), xplstm.ArgumentError, r"must have 3 names for direction='forward'"),
    (changed(activations=["Tanh", "Tanh", "Gelu"]), xplstm.ArgumentError, "has 'Gelu', expected one of"),
    (changed(activation_alpha=[0.5]), xplstm.ArgumentError, r"activation_alpha has unused values \[0.5\]"),
    (
        lambda: ours.lstm_vjp(*[np.zeros((1, 1, 1))] * 3, linear=1),
        xplstm.ArgumentError,
        "linear= is not an attribute",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_what_is_wrong_is_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
