"""Whole models as ONNX graphs. A model says in its method ``export_to`` what surrounds its network."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from xplstm import _array
from xplstm._errors import ArgumentError
from xplstm._stack import Stack
from xplstm.io.onnx._export import GraphBuilder, opened
from xplstm.nn import LSTM, Embedding, Linear


@runtime_checkable
class Exportable(Protocol):
    """A model with one network, ``lstm``, that describes its graph."""

    lstm: LSTM

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes of the model, and name its inputs and outputs."""
        ...


class ModelGraph:
    """The graph of a model in the making. Values are named by strings; the axes are (T, B, features)."""

    def __init__(self, model: Exportable) -> None:
        if model.lstm.batch_first:
            msg = f"lstm={model.lstm!r} of the model is not time-major, and cannot be exported"
            raise ArgumentError(msg)
        self._network, self._layers = opened(model.lstm, "lstm")
        self._inputs: dict[str, list[Any]] = {}
        self._outputs: dict[str, list[Any]] = {}
        self._integers = False

    @property
    def stack(self) -> Stack:
        """Description of the network."""
        return self._network.stack

    @property
    def builder(self) -> GraphBuilder:
        """The nodes so far, and methods that add to them."""
        return self._network

    def ids(self, name: str) -> str:
        """Add an input (T, B) of integers."""
        self._inputs[name], self._integers = ["T", "B"], True
        return name

    def features(self, name: str) -> str:
        """Add an input (T, B, features)."""
        self._inputs[name] = ["T", "B", self.stack.input_size]
        return name

    def embed(self, layer: Embedding, ids: str) -> str:
        """Look vectors up."""
        table = self.builder.constant("embedding.weight", _array.to_numpy(layer.params["weight"]))
        return self.builder.add("Gather", [table, ids], "embedded")

    def recur(self, x: str) -> str:
        """Run the network; its final states become outputs."""
        return self.builder.run(self._layers, x)

    def last(self) -> str:
        """Return the last layer's final h of each direction, joined: (B, features)."""
        stack, b = self.stack, self.builder
        D, states = len(stack.reverse), stack.num_layers * len(stack.reverse)
        bounds = [b.integers(states - D), b.integers(states), b.integers(0)]
        own = b.add("Slice", ["h_n", *bounds], "last_layer")
        by_entry = b.add("Transpose", [own], "last_by_entry", perm=[1, 0, 2])
        return b.add("Reshape", [by_entry, b.integers(0, D * stack.output_size)], "last")

    def linear(self, layer: Linear, x: str) -> str:
        """Multiply by the weight and add the bias."""
        host = {name: _array.to_numpy(a) for name, a in layer.params.items()}
        y = self.builder.add(
            "MatMul", [x, self.builder.constant("linear.weight", host["weight"].T)], "product"
        )
        if "bias" not in host:
            return y
        return self.builder.add("Add", [y, self.builder.constant("linear.bias", host["bias"])], "linear")

    def scaled(self, op: str, a: str, b: str, name: str) -> str:
        """Add a node of two operands."""
        return self.builder.add(op, [a, b], name)

    def number(self, name: str, value: Any) -> str:
        """Keep a constant in the dtype of the model."""
        return self.builder.constant(name, _array.to_numpy(value).astype(self.builder.dtype))

    def leave(self, value: str, name: str, shape: list[Any]) -> None:
        """Make a value an output."""
        self.builder.add("Identity", [value], name, made=name)
        self._outputs[name] = shape

    def leave_logits(self, logits: str, shape: list[Any], softmax: bool) -> None:
        """Make logits an output, or their probabilities."""
        if softmax:
            self.leave(self.builder.add("Softmax", [logits], "softmax", axis=-1), "probabilities", shape)
        else:
            self.leave(logits, "logits", shape)

    def proto(self, name: str) -> Any:
        """Return the ModelProto."""
        return self.builder.model(name, self._inputs, self._outputs, self._integers)


def whole(model: Any, softmax: bool) -> Any:
    """Return the ModelProto of a model."""
    graph = ModelGraph(model)
    model.export_to(graph, softmax)
    return graph.proto(type(model).__name__)
