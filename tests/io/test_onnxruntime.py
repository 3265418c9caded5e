"""Compare random LSTMs with ONNX Runtime: peepholes, clip, coupling, functions and lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xplstm
from xplstm import Variant

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# The operator's names of our activations, and constants where a function takes some.
ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "Sigmoid": ("sigmoid",),
    "Tanh": ("tanh",),
    "Relu": ("relu",),
    "Affine": ("affine", 0.7, 0.1),
    "LeakyRelu": ("leaky_relu", 0.2),
    "ThresholdedRelu": ("thresholded_relu", 0.1),
    "ScaledTanh": ("scaled_tanh", 0.8, 1.3),
    "HardSigmoid": ("hard_sigmoid", 0.3, 0.4),
    "Elu": ("elu", 0.9),
    "Softsign": ("softsign",),
    "Softplus": ("softplus",),
}


def blocks(a: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.split(a, len(order))[k] for k in order])


def attributes(variant: Variant, directions: int) -> dict[str, Any]:
    """Return the operator's attributes for a variant with the activation names of ACTIVATIONS."""
    names = {value[0]: name for name, value in ACTIVATIONS.items()}
    found: dict[str, Any] = {
        "input_forget": int(variant.coupled),
        "activations": [names[a[0]] for a in variant.activations] * directions,
        "activation_alpha": [a[1] for a in variant.activations if len(a) > 1] * directions,
        "activation_beta": [a[2] for a in variant.activations if len(a) > 2] * directions,
    }
    if variant.gate_clip is not None:
        found["clip"] = variant.gate_clip
    return {name: value for name, value in found.items() if value != []}


def run(
    lstm: xplstm.LSTM, variant: Variant, x: np.ndarray, state: Any, lengths: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Run one layer as the operator, with gates in the order i, o, f, c and peepholes i, o, f."""
    sides = ("", "_reverse") if "weight_ih_l0_reverse" in lstm.params else ("",)
    p, order = lstm.params, (0, 3, 1, 2)
    inputs = {
        "X": x,
        "W": np.stack([blocks(p[f"weight_ih_l0{s}"], order) for s in sides]),
        "R": np.stack([blocks(p[f"weight_hh_l0{s}"], order) for s in sides]),
        "B": np.stack(
            [np.concatenate([blocks(p[f"bias_{k}_l0{s}"], order) for k in ("ih", "hh")]) for s in sides]
        ),
        "sequence_lens": lengths.astype(np.int32),
        "initial_h": state[0],
        "initial_c": state[1],
    }
    if variant.peepholes:
        inputs["P"] = np.stack([blocks(p[f"weight_ch_l0{s}"], (0, 2, 1)) for s in sides])
    make = onnx.helper
    node = make.make_node(
        "LSTM",
        list(inputs),
        ["Y", "Y_h", "Y_c"],
        hidden_size=state[1].shape[2],
        direction="bidirectional" if len(sides) == 2 else "forward",
        **attributes(variant, len(sides)),
    )
    given = [
        make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    results = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output]
    graph = make.make_graph([node], "lstm", given, results)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    y, h_n, c_n = session.run(None, inputs)
    T, D, B, H = y.shape
    return np.moveaxis(y, 1, 2).reshape(T, B, D * H), h_n, c_n


@pytest.mark.parametrize("seed", range(30))
def test_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T, B, I, H = (int(n) for n in rng.integers(1, 9, size=4))
    kinds = list(ACTIVATIONS.values())
    chosen = [kinds[k] for k in rng.integers(len(kinds), size=3)] if seed % 2 else kinds[:2] + kinds[1:2]
    variant = Variant(
        peepholes=bool(rng.integers(2)),
        coupled=bool(rng.integers(2)),
        activations=tuple(chosen),
        gate_clip=float(rng.uniform(0.2, 1.5)) if rng.integers(2) else None,
    )
    lstm = xplstm.LSTM(I, H, variant=variant, bidirectional=bool(rng.integers(2)), rng=seed)
    D = 2 if "weight_ih_l0_reverse" in lstm.params else 1
    x = rng.normal(size=(T, B, I)).astype("float32")
    state = tuple(rng.normal(size=(D, B, H)).astype("float32") for _ in range(2))
    lengths = rng.integers(1, T + 1, size=B)
    y, (h_n, c_n) = lstm(x, state, lengths=lengths)
    for got, want in zip((y, h_n, c_n), run(lstm, variant, x, state, lengths), strict=True):
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * scale, err_msg=str(variant))
