"""Export models as ONNX graphs; the method ``export_to`` of a model adds the nodes around its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xplstm import _array
from xplstm._errors import ArgumentError
from xplstm.io.onnx._export import open_network
from xplstm.io.onnx._graph import import_onnx
from xplstm.nn import LSTM, Embedding, Linear


@runtime_checkable
class Exportable(Protocol):
    """Interface of a model with one network, ``lstm``, that can be exported."""

    lstm: LSTM

    def export_to(self, graph: ModelGraph, softmax: bool) -> None:
        """Add the nodes, inputs and outputs of the model to a graph."""
        ...


class ModelGraph:
    """Builder of the graph of a model. Values are names; their axes are (T, B, features)."""

    def __init__(self, model: Exportable) -> None:
        if model.lstm.batch_first:
            msg = f"lstm={model.lstm!r} of the model must be time-major (batch_first=False) for an export"
            raise ArgumentError(msg)
        self.builder, self._layers = open_network(model.lstm, "lstm")
        self.stack = self.builder.stack
        self._inputs: dict[str, list[Any]] = {}
        self._outputs: dict[str, list[Any]] = {}
        self._integers = False
        self._lengths = ""

    def ids(self, name: str) -> str:
        """Add an integer input (T, B)."""
        self._inputs[name], self._integers = ["T", "B"], True
        return name

    def features(self, name: str, count: int | None = None) -> str:
        """Add an input (T, B, count); the input size of the network if `count` is None."""
        self._inputs[name] = ["T", "B", self.stack.input_size if count is None else count]
        return name

    def future(self, name: str, steps: int, count: int) -> str:
        """Add an input (steps, B, count) with the values after the last step of each batch entry."""
        self._inputs[name] = [steps, "B", count]
        return name

    def columns(self, x: str, chosen: Sequence[int], name: str) -> str:
        """Select columns of the last axis."""
        places = self.builder.constant(f"{name}.columns", np.asarray(chosen, dtype=np.int64))
        return self.builder.add("Gather", [x, places], name, axis=-1)

    def split_last(self, x: str, last: Sequence[int], name: str) -> str:
        """Split the last axis of `x` (T, B, N)."""
        return self.builder.add("Reshape", [x, self.builder.integers(0, 0, *last)], name)

    def join_ahead(self, x: str, known: str, future: str, steps: int) -> str:
        """Join the known columns of the next `steps` steps to `x` (T, B, N) at each step.

        `future` (steps, B, K) continues `known` (T, B, K) after the length of each entry, given by the input
        lengths.
        """
        b = self.builder
        self._lengths = b.lengths(x)
        ends = b.add("Cast", [self._lengths], "ends", to=import_onnx().TensorProto.INT64)
        T = f"{b.start}T"
        zero, last, both = b.integers(0), b.integers(steps - 1), b.add("Shape", [known], "shape_of_known")
        later = b.add("Concat", [known, future], "known_and_future", axis=0)
        parts = [x]
        for j in range(1, steps + 1):
            step = b.add("Add", [self._steps(), b.integers(j)], f"after_{j}")
            past = b.add("Sub", [step, ends], f"past_end_{j}")
            inside = b.add("Min", [b.add("Max", [past, zero], f"from_end_{j}"), last], f"of_future_{j}")
            behind = b.add("Add", [inside, T], f"behind_{j}")
            place = b.add("Where", [b.add("Less", [step, ends], f"exists_{j}"), step, behind], f"place_{j}")
            places = b.add(
                "Expand", [b.add("Unsqueeze", [place, b.integers(-1)], f"places_{j}"), both], f"all_{j}"
            )
            parts.append(b.add("GatherElements", [later, places], f"ahead_{j}", axis=0))
        return b.add("Concat", parts, "entered", axis=-1)

    def in_order(self, raw: str, count: int) -> str:
        """Convert the last axis of `raw` to `count` quantiles that cannot cross."""
        b, middle = self.builder, count // 2
        gaps = b.add("Softplus", [raw], "gaps")

        def one(x: str, k: int, name: str) -> str:
            return b.add("Slice", [x, b.integers(k), b.integers(k + 1), b.integers(-1)], f"{name}_{k}")

        names = {middle: one(raw, middle, "raw")}
        for k in range(middle + 1, count):
            names[k] = b.add("Add", [names[k - 1], one(gaps, k, "gap")], f"quantile_{k}")
        for k in range(middle - 1, -1, -1):
            names[k] = b.add("Sub", [names[k + 1], one(gaps, k, "gap")], f"quantile_{k}")
        return b.add("Concat", [names[k] for k in range(count)], "in_order", axis=-1)

    def embed(self, layer: Embedding, ids: str) -> str:
        """Add the look-up of an embedding."""
        table = self.builder.constant("embedding.weight", _array.to_numpy(layer.params["weight"]))
        return self.builder.add("Gather", [table, ids], "embedded")

    def recur(self, x: str) -> str:
        """Add the network on `x`, and its final states as outputs."""
        self._lengths = self._lengths or self.builder.lengths(x)
        return self.builder.run(self._layers, x, self._lengths)

    def recur_on_ids(self, layer: Embedding, name: str) -> str:
        """Add the network on the embedding of an input of ids; ids after the lengths are ignored."""
        b, ids = self.builder, self.ids(name)
        self._lengths = b.lengths(ids)
        exists = self._existing("id_exists")
        if layer.padding_idx is not None:
            padding = b.constant(f"{b.start}padding_idx", np.asarray(layer.padding_idx, dtype=np.int64))
            filled = b.add("Not", [b.add("Equal", [ids, padding], "is_padding")], "is_no_padding")
            exists = b.add("And", [exists, filled], "id_counts")
        ids = b.add("Where", [exists, ids, b.integers(0)], "cleared_ids")
        if layer.padding_idx is not None:
            ids = self._in_front(ids, exists)
        return self.recur(self.embed(layer, ids))

    def _in_front(self, ids: str, exists: str) -> str:
        """Move the ids that exist to the front in order, and set the lengths to their number.

        Padding may be at any position. Its removal does not change the final state, the mean or the maximum.
        """
        b, TensorProto = self.builder, import_onnx().TensorProto
        counts = b.add("Cast", [exists], "counts", to=TensorProto.INT64)
        T = f"{b.start}T"
        # Sort keys: padding gets its position plus T, which sorts it after all other ids.
        late = b.add("Mul", [b.add("Sub", [b.integers(1), counts], "is_missing"), T], "late")
        order = b.add("Add", [late, self._steps()], "order")
        names = [f"{b.start}order_in_front", f"{b.start}places"]
        _, places = b.add_many("TopK", [order, T], "in_front", names, axis=0, largest=0)
        total = b.add("ReduceSum", [counts, b.integers(0)], "number_of_ids", keepdims=0)
        self._lengths = b.add("Cast", [total], "lengths_of_ids", to=TensorProto.INT32)
        return b.add("GatherElements", [ids, places], "ids_in_front", axis=0)

    def pool(self, kind: str, y: str) -> str:
        """Return the mean or maximum of y over the valid steps, (B, features)."""
        b = self.builder
        exists = b.add("Unsqueeze", [self._existing("y_exists"), b.integers(-1)], "y_exists_by_unit")
        zero = self.number(f"{b.start}zero", np.zeros(()))
        if kind == "mean":
            shown = b.add("Where", [exists, y, zero], "y_or_zero")
            total = b.add("ReduceSum", [shown, b.integers(0)], "total", keepdims=0)
            kind = import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
            count = b.add("Cast", [self._lengths], "steps_of_mean", to=kind)
            at_least = b.add("Max", [count, self.number(f"{b.start}one", np.ones(()))], "divisor")
            return b.add("Div", [total, b.add("Unsqueeze", [at_least, b.integers(1)], "divisors")], "mean")
        lowest = self.number(f"{b.start}lowest", np.asarray(-np.inf))
        shown = b.add("Where", [exists, y, lowest], "y_or_lowest")
        largest = b.add("ReduceMax", [shown], "largest", axes=[0], keepdims=0)
        empty = b.add("Equal", [self._lengths, f"{b.start}no_steps"], "nothing_to_pool")
        return b.add("Where", [b.add("Unsqueeze", [empty, b.integers(1)], "nothing"), zero, largest], "max")

    def _existing(self, name: str) -> str:
        """Return booleans (T, B), True for valid steps."""
        b = self.builder
        ends = b.add("Cast", [self._lengths], f"{name}_before", to=import_onnx().TensorProto.INT64)
        return b.add("Less", [self._steps(), ends], name)

    def _steps(self) -> str:
        """Return the step indices, (T, 1)."""
        b, name = self.builder, f"{self.builder.start}steps"
        if not any(name in node.output for node in b.nodes):
            first, by = (b.constant(f"{b.start}step_{k}", np.asarray(k, dtype=np.int64)) for k in (0, 1))
            T = b.add("Squeeze", [f"{b.start}T"], "T_of_steps")
            b.add("Unsqueeze", [b.add("Range", [first, T, by], "range"), b.integers(1)], "steps")
        return name

    def last(self) -> str:
        """Return the joined final h of all directions of the last layer, (B, features)."""
        stack, b = self.stack, self.builder
        D, states = len(stack.reverse), stack.num_layers * len(stack.reverse)
        bounds = [b.integers(states - D), b.integers(states), b.integers(0)]
        own = b.add("Slice", ["h_n", *bounds], "last_layer")
        by_entry = b.add("Transpose", [own], "last_by_entry", perm=[1, 0, 2])
        return b.add("Reshape", [by_entry, b.integers(0, D * stack.output_size)], "last")

    def linear(self, layer: Linear, x: str) -> str:
        """Add a linear layer."""
        host = {name: _array.to_numpy(a) for name, a in layer.params.items()}
        y = self.builder.add(
            "MatMul", [x, self.builder.constant("linear.weight", host["weight"].T)], "product"
        )
        if "bias" not in host:
            return y
        return self.builder.add("Add", [y, self.builder.constant("linear.bias", host["bias"])], "linear")

    def apply(self, op: str, a: str, b: str, name: str) -> str:
        """Add a node with two operands."""
        return self.builder.add(op, [a, b], name)

    def number(self, name: str, value: Any) -> str:
        """Add a constant with the dtype of the model."""
        return self.builder.constant(name, _array.to_numpy(value).astype(self.builder.dtype))

    def leave(self, value: str, name: str, shape: list[Any]) -> None:
        """Add a value as an output."""
        self.builder.add("Identity", [value], name, made=name)
        self._outputs[name] = shape

    def leave_logits(self, logits: str, shape: list[Any], softmax: bool, link: str = "Softmax") -> None:
        """Add logits as an output, or probabilities from the operator `link`."""
        if softmax:
            axis: dict[str, Any] = {"axis": -1} if link == "Softmax" else {}
            self.leave(self.builder.add(link, [logits], link.lower(), **axis), "probabilities", shape)
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
