"""What stands between the recurrent nodes of a graph: found by following names, understood by trying it out.

A path of nodes that only move numbers about is run once on an array of distinct numbers. What comes out says
what the path does, however it is spelt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xplstm import _array, _merge
from xplstm._errors import XplstmError
from xplstm.io.onnx._graph import Graph, Node
from xplstm.io.onnx._model import why_not_node
from xplstm.io.onnx._nodes import OPERATIONS, Place
from xplstm.io.onnx._operator import OPERATORS

# Between layers there are a handful of nodes, and only small constants. Bounds keep a hostile graph cheap.
LONGEST_PATH = 64
LARGEST_CONSTANT = 64
_FOLLOWED = OPERATIONS.keys() - {"ConstantOfShape", "Expand", "MatMul"}
# Sizes of the arrays that are tried, of time and of the batch, where the nodes have none of their own.
FREE = (2, 3)
LARGEST_TRIED = 1 << 22


class Trace:
    """A graph whose names can be followed back."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._origins: dict[str, tuple[str, list[Node]] | None] = {}
        self._makers = {name: k for k, node in enumerate(graph.nodes) for name in node.outputs}

    def origin(self, name: str) -> tuple[str, list[Node]] | None:
        """The one value that `name` is made of, beside constants, and the nodes that make it; or None."""
        if name not in self._origins:
            self._origins[name] = self._followed(name)
        return self._origins[name]

    def _followed(self, name: str) -> tuple[str, list[Node]] | None:
        """The same, found anew."""
        wanted, found, origins = [name], set(), set()
        while wanted:
            one = wanted.pop()
            k = self._makers.get(one)
            if one == "" or one in self.graph.constants:
                continue
            if k is None or self.graph.nodes[k].op not in _FOLLOWED or why_not_node(self.graph.nodes[k]):
                origins.add(one)
            elif k not in found:
                found.add(k)
                wanted += self.graph.nodes[k].inputs
            if len(found) > LONGEST_PATH or len(origins) > 1:
                return None
        return (origins.pop(), [self.graph.nodes[k] for k in sorted(found)]) if origins else None

    def tried(self, start: str, nodes: list[Node], a: np.ndarray, end: str) -> np.ndarray | None:
        """What the nodes make of `a`; None if that fails, or takes large constants."""
        place = Place(_array.named_namespace("numpy"), None, self.graph.opset)
        values: dict[str, Any] = {"": None, start: a}
        used = {name for node in nodes for name in node.inputs if name in self.graph.constants}
        if any(np.prod(self.graph.constants[name].shape) > LARGEST_CONSTANT for name in used):
            return None
        try:
            values |= {name: self.graph.constants[name].array() for name in used}
            for node in nodes:
                made = OPERATIONS[node.op].run(place, node, [values[name] for name in node.inputs])
                values |= dict(zip(node.outputs, made, strict=False))
        except (
            XplstmError,
            ValueError,
            TypeError,
        ):  # then these nodes are none of those that stand between layers
            return None
        found: np.ndarray = values[end]
        return found

    def own_start(self, name: str) -> bool:
        """Whether `name` is made of constants that are not zero: a state that a model brings along."""
        wanted, seen = [name], 0
        while wanted and seen <= LONGEST_PATH:
            one, seen = wanted.pop(), seen + 1
            if one in self.graph.constants:
                tensor = self.graph.constants[one]
                if tensor.dtype.startswith(("float", "bfloat")) and np.any(np.asarray(tensor.array())):
                    return True
            elif one in self._makers:
                node = self.graph.nodes[self._makers[one]]
                wanted += node.inputs if node.op == "Concat" else node.inputs[: node.op in _MOVING]
        return False

    def merge_after(self, Y: str, D: int, H: int, end: str, layout: int) -> str | None:
        """How the directions of `Y` stand in `end`, with time or the batch first; None if untold."""
        origin = self.origin(end)
        if origin is None or origin[0] != Y:
            return None
        node = self.graph.nodes[self._makers[Y]]
        T, B = self._sizes(origin[1], node.inputs[0], layout, D * H)
        y = np.arange(1.0, T * B * D * H + 1, dtype=np.float32).reshape(T, B, D * H)
        apart = y.reshape(T, B, D, H)
        given = apart.swapaxes(0, 1) if layout else apart.transpose(0, 2, 1, 3)
        made = self.tried(Y, origin[1], given, end)
        if made is None:
            return None
        for merge, wanted in _ways(y, apart).items():
            both = (wanted, np.moveaxis(wanted, -3, -2))
            if any(made.shape == one.shape and np.array_equal(made, one) for one in both):
                return merge
        return None

    def _sizes(self, nodes: list[Node], X: str, layout: int, width: int) -> tuple[int, int]:
        """Sizes of time and batch to try: any, or the model's own where a Reshape may have them in it."""
        own = self._own_sizes(X, layout) if any(node.op == "Reshape" for node in nodes) else None
        return own if own and math.prod(own) * width <= LARGEST_TRIED else FREE

    def _own_sizes(self, X: str, layout: int, depth: int = 0) -> tuple[int, int] | None:
        """Time and batch of what a recurrent node is given, where the model's input has them fixed."""
        origin = self.origin(X)
        shape = self._own_shape(origin[0], depth) if origin else None
        if origin is None or shape is None or math.prod(shape) > LARGEST_TRIED:
            return None
        made = self.tried(origin[0], origin[1], np.zeros(shape, np.float32), X)
        if made is None or made.ndim != 3:
            return None
        first, second, _ = made.shape
        return (second, first) if layout else (first, second)

    def _own_shape(self, name: str, depth: int) -> tuple[int, ...] | None:
        """The fixed shape of an input of the model, or of the first output of a recurrent node."""
        node = self.graph.nodes[self._makers[name]] if name in self._makers else None
        if node is None:
            shape = next((i.shape for i in self.graph.inputs if i.name == name), None) or ()
            fixed = tuple(n for n in shape if isinstance(n, int) and n > 0)
            return fixed if fixed and len(fixed) == len(shape) else None
        if node.op not in OPERATORS or name != node.outputs[0] or why_not_node(node) or depth > LONGEST_PATH:
            return None
        layout = node.attributes.get("layout", 0)
        sizes = self._own_sizes(node.inputs[0], layout, depth + 1)
        recurrent = self.graph.constants.get(node.inputs[2])
        if sizes is None or recurrent is None or len(recurrent.shape) != 3:
            return None
        (T, B), (D, _, H) = sizes, recurrent.shape
        return (B, T, D, H) if layout else (T, D, B, H)

    def batch_first(self, X: str, I: int, layout: int) -> bool:
        """Whether the model is given the batch before time, as far as that can be seen."""
        origin = self.origin(X)
        if origin is None or all(i.name != origin[0] for i in self.graph.inputs):
            return bool(layout)
        first, second = self._sizes(origin[1], X, 1, I)
        x = np.arange(first * second * I, dtype=np.float32).reshape(first, second, I)
        made = self.tried(origin[0], origin[1], x, X)
        moved = x.swapaxes(0, 1)
        # Of one step and one row, both ways look alike.
        if (
            first * second > 1
            and made is not None
            and made.shape == moved.shape
            and np.array_equal(made, moved)
        ):
            return not layout
        return bool(layout)


# What passes the numbers of its first input on.
_MOVING = {
    "Identity",
    "Expand",
    "Slice",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Reshape",
    "Split",
    "Cast",
}


def _ways(y: np.ndarray, apart: np.ndarray) -> Mapping[str, np.ndarray]:
    """What each merge makes of two directions side by side; of one there is nothing to make."""
    if apart.shape[2] == 1:
        return {"concat": y}
    ways = {merge: _merge.forward(merge, y) for merge in ("concat", "sum", "mean", "product")}
    return ways | {"none": np.moveaxis(apart, 2, 0)}
