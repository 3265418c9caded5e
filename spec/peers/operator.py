"""Build the model of one ONNX operator LSTM, forward only, that every engine of ONNX runs."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused, Unsupported

# Names of ONNX, and the defaults of alpha and beta.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "relu": ("Relu", ()),
    "affine": ("Affine", (1.0, 0.0)),
    "leaky_relu": ("LeakyRelu", (0.01,)),
    "thresholded_relu": ("ThresholdedRelu", (1.0,)),
    "scaled_tanh": ("ScaledTanh", (1.0, 1.0)),
    "hard_sigmoid": ("HardSigmoid", (0.2, 0.5)),
    "elu": ("Elu", (1.0,)),
    "softsign": ("Softsign", ()),
    "softplus": ("Softplus", ()),
}


PARAMETERS = ("W", "R", "B", "P")


class Results(NamedTuple):
    """Outputs of the operator: Y (T, D, B, H), and the final states (D, B, H)."""

    y: np.ndarray
    h_n: np.ndarray
    c_n: np.ndarray


class Operator(Peer, ABC):
    """One node in a separate model for every call."""

    offered = ("peepholes", "weight_ch", "coupled", "activations", "gate_clip")
    title: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        variant, dtype = config.get("variant", {}), arrays["x"].dtype.name
        names = [name for name, *_ in variant.get("activations", [])]
        self.declare(
            config,
            arrays,
            {
                "ONNX has no activation that is the identity": "identity" in names,
                f"{self.title} has no gradient of LSTM": op.endswith("_vjp"),
                "the operator LSTM has no masks with holes": bool(config.get("mask")),
                "the operator LSTM has no projection": bool(config.get("proj_size")),
                "the operator LSTM is one layer": config.get("num_layers", 1) > 1,
                "the operator LSTM takes both biases as one array": one_bias(arrays),
                f"{self.title} computes the operator LSTM in {' and '.join(self.dtypes)} only": dtype
                not in self.dtypes,
            },
        )
        if op == "layer":
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    @abstractmethod
    def compute(self, model: Any, inputs: Arrays) -> Results:
        """Run a model on its inputs."""

    def run(self, config: Config, arrays: Arrays) -> Arrays:
        onnx = importlib.import_module("onnx")
        directions = ("_l0", "_l0_reverse") if config.get("bidirectional") else ("_l0",)
        try:
            inputs = self.inputs(config, arrays, directions)
        except ValueError as error:
            msg = f"parameters of these shapes do not fit into the operator's arrays: {error}"
            raise Unsupported(msg) from error
        side = "reverse" if config.get("reverse") else "forward"
        node = onnx.helper.make_node(
            "LSTM",
            list(inputs),
            Results._fields,
            hidden_size=config["hidden_size"],
            direction="bidirectional" if len(directions) == 2 else side,
            **attributes(config.get("variant", {}), len(directions)),
        )
        given = {name: a for name, a in inputs.items() if name not in PARAMETERS}
        y, h_n, c_n = self.compute(self.model(onnx, node, inputs), given)
        if y.ndim != len(("T", "D", "B", "H")):
            # For an x with two axes, some runtimes return results with other axes.
            return {"y": y, "h_n": h_n, "c_n": c_n}
        T, D, B, H = y.shape
        return {"y": np.moveaxis(y, 1, 2).reshape(T, B, D * H), "h_n": h_n, "c_n": c_n}

    def model(self, onnx: Any, node: Any, inputs: Arrays) -> Any:
        """Return the node with its parameters as constants, as in files of trained networks."""
        make = onnx.helper
        given = [
            make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in inputs.items()
            if name not in PARAMETERS
        ]
        parameters = [onnx.numpy_helper.from_array(inputs[n], n) for n in PARAMETERS if n in inputs]
        results = [
            make.make_tensor_value_info(name, given[0].type.tensor_type.elem_type, None)
            for name in node.output
        ]
        graph = make.make_graph([node], "lstm", given, results, parameters)
        return make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)

    def inputs(self, config: Config, a: Arrays, directions: tuple[str, ...]) -> Arrays:
        """Return the inputs in order: gates i, o, f, c, both biases in one row, peepholes i, o, f."""

        def stacked(name: str) -> np.ndarray:
            return np.stack(
                [np.concatenate([np.split(a[name + d], 4)[k] for k in (0, 3, 1, 2)]) for d in directions]
            )

        T, B = a["x"].shape[:2]
        bias = np.zeros((len(directions), 8 * config["hidden_size"]), a["x"].dtype)
        if config.get("bias", True):
            bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        lengths = config.get("lengths") or [T] * B
        # The operator's type of sequence_lens; NumPy would wrap what it cannot hold, or raise its own error.
        if any(abs(n) >= 2**31 for n in lengths):
            raise Refused("other", f"the operator has lengths of 32 bits, not {lengths}")
        parameters = {"W": stacked("weight_ih"), "R": stacked("weight_hh"), "B": bias}
        found = {"X": a["x"], **parameters, "lengths": np.asarray(lengths, "int32")}
        found |= {"h": a["h_0"], "c": a["c_0"]}
        if "weight_ch_l0" in a:
            blocks = [np.split(a[f"weight_ch{d}"], 3) for d in directions]
            found["P"] = np.stack([np.concatenate([i, o, f]) for i, f, o in blocks])
        return found


def attributes(variant: Config, directions: int) -> dict[str, Any]:
    """Return the node's attributes; alpha and beta are lists for the functions that have them."""
    found: dict[str, Any] = {}
    if "gate_clip" in variant:
        found["clip"] = float(variant["gate_clip"])
    if variant.get("coupled"):
        found["input_forget"] = 1
    if "activations" in variant:
        given = variant["activations"] * (1 if len(variant["activations"]) == 3 * directions else directions)
        found["activations"] = [ACTIVATIONS[name][0] for name, *_ in given]
        settings = [[*map(float, values), *ACTIVATIONS[name][1][len(values) :]] for name, *values in given]
        if any(len(spec) > 1 for spec in given):
            found["activation_alpha"] = [values[0] for values in settings if values]
            found["activation_beta"] = [values[1] for values in settings if len(values) > 1]
    return {name: value for name, value in found.items() if value != []}
