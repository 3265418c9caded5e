"""Adapt LiteRT's operator UNIDIRECTIONAL_SEQUENCE_LSTM on the CPU, in float32, forward only."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from spec.peers.peer import Peer, as_layer, as_module, one_bias
from spec.subject import Arrays, Config, Refused

TANH = 4
"""The operator's usual activation, by its number."""


class Subject(Peer):
    """Model of one operator for every call; its single bias is the sum of the two biases."""

    name = "litert"
    kernel = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    packages = ("ai_edge_litert",)
    offered = ("peepholes", "weight_ch", "cell_clip")

    def call(self, op: str, config: Config, arrays: Arrays) -> Arrays:
        self.declare(
            config,
            arrays,
            {
                "LiteRT has no gradients": op.endswith("_vjp"),
                "LiteRT's operator has no lengths and no masks": bool(
                    config.get("mask") or config.get("lengths") is not None
                ),
                "LiteRT's operator is one layer": config.get("num_layers", 1) > 1,
                "LiteRT's operator is one direction": bool(
                    config.get("bidirectional") or config.get("reverse")
                ),
                "LiteRT's operator has no dropout": bool(config.get("dropout")),
                "LiteRT's operator has one bias": one_bias(arrays),
                "LiteRT's operator is float32 only": arrays["x"].dtype.name != "float32",
            },
        )
        if op == "layer":
            return as_layer(self.run(*as_module(config, arrays)))
        return self.run(config, arrays)

    def run(self, config: Config, a: Arrays) -> Arrays:
        try:
            content, places = model(config, a)
            interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
                model_content=content, num_threads=1
            )
            interpreter.allocate_tensors()
            # The states are variables of the model. They are written before the call and read after it.
            for name, value in (("x", a["x"]), ("h", a["h_0"][0]), ("c", a["c_0"][0])):
                interpreter.set_tensor(places[name], value)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise Refused("shape", str(error)) from error
        y, h, c = (interpreter.get_tensor(places[name]) for name in ("y", "h", "c"))
        return {"y": y, "h_n": h[None], "c_n": c[None]}


def inputs(config: Config, a: Arrays) -> dict[str, Any]:
    """Return the operator's 24 inputs in order: parameters, shapes of x and of the states, or None."""
    biases = [a[name] for name in ("bias_ih_l0", "bias_hh_l0") if name in a]
    # Without this check, the sum of biases of different shapes would be broadcast.
    bias = np.stack(biases).sum(0) if biases else np.zeros(4 * config["hidden_size"], np.float32)
    found: dict[str, Any] = {"x": a["x"].shape}
    found |= {f"W{k}": v for k, v in enumerate(np.split(a["weight_ih_l0"], 4))}
    found |= {f"R{k}": v for k, v in enumerate(np.split(a["weight_hh_l0"], 4))}
    peepholes = np.split(a["weight_ch_l0"], 3) if "weight_ch_l0" in a else [None] * 3
    found |= {f"p{k}": v for k, v in enumerate(peepholes)}
    found |= {f"b{k}": v for k, v in enumerate(np.split(bias, 4))}
    found |= {"projection": a.get("weight_hr_l0"), "projection_bias": None}
    found |= {"h": a["h_0"].shape[1:], "c": a["c_0"].shape[1:]}
    return found | dict.fromkeys(("norm_i", "norm_f", "norm_g", "norm_o"))


def model(config: Config, a: Arrays) -> tuple[bytes, dict[str, int]]:
    """Return a model as a flat buffer, and the numbers of its tensors by name."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    graph, found = schema.SubGraphT(), schema.ModelT()
    graph.tensors, found.buffers, places = [], [schema.BufferT()], {}
    y_shape = (*a["x"].shape[:2], a["h_0"].shape[2])
    given = inputs(config, a)
    for name, value in (given | {"y": y_shape}).items():
        if value is None:
            places[name] = -1
            continue
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, schema.TensorType.FLOAT32
        tensor.shape = [*(value.shape if isinstance(value, np.ndarray) else value)]
        tensor.buffer, tensor.isVariable = 0, name in ("h", "c")
        if isinstance(value, np.ndarray):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            tensor.buffer = len(found.buffers)
            found.buffers.append(buffer)
        places[name] = len(graph.tensors)
        graph.tensors.append(tensor)
    graph.operators = [operator(schema, config, [places[name] for name in given], places["y"])]
    graph.inputs, graph.outputs = [places["x"]], [places["y"]]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM
    found.version, found.operatorCodes, found.subgraphs = 3, [code], [graph]
    builder = importlib.import_module("flatbuffers").Builder()
    builder.Finish(found.Pack(builder), b"TFL3")
    return bytes(builder.Output()), places


def operator(schema: Any, config: Config, given: list[int], y: int) -> Any:
    """Return the node; its cell clip of 0 means no clip."""
    found, options = schema.OperatorT(), schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction, options.timeMajor = TANH, True
    options.cellClip = float(config.get("variant", {}).get("cell_clip", 0))
    found.opcodeIndex, found.inputs, found.outputs = 0, given, [y]
    found.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
    found.builtinOptions = options
    return found
