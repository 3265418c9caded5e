"""Bound the number of array elements that a node computes on the host, before the node runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xplstm import _array
from xplstm.io.onnx._graph import Node
from xplstm.io.onnx._nodes import _numbers

# Operators whose output has the broadcast shape of the inputs.
_BROADCASTING = frozenset(
    {
        *("Where", "Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Equal", "Pow", "Clip"),
        "LayerNormalization",
        *("And", "Or", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)
# Terms of a sum that take about the time of an element.
_TERMS = 64


def most_numbers(node: Node, values: list[Any]) -> int:
    """Return a bound on the elements, with intermediates, that a node computes from NumPy arrays."""
    shapes = [() if a is None else tuple(a.shape) for a in values]
    given = sum(math.prod(shape) for shape in shapes)
    if node.op == "ConstantOfShape":
        return _product(_numbers(values[0]))
    if node.op == "Tile":
        return given * _product(_numbers(values[1]))
    if node.op == "Gather":
        axis = node.attributes.get("axis", 0)
        along = shapes[0][axis] if -len(shapes[0]) <= axis < len(shapes[0]) else 1
        return math.prod(shapes[0]) * math.prod(shapes[1]) // max(along, 1)
    if node.op == "Pad":
        return _of_pad(shapes[0], values)
    if node.op == "Conv":
        return _of_conv(node, shapes)
    if node.op == "Range":
        return _of_range(values)
    if node.op == "Expand":
        shapes = [shapes[0], tuple(max(n, 1) for n in _numbers(values[1]))]
    if node.op in ("Expand", "MatMul", "Gemm") or node.op in _BROADCASTING:
        try:
            product = node.op in ("MatMul", "Gemm")
            return _of_product(node, shapes) if product else math.prod(np.broadcast_shapes(*shapes))
        except ValueError:  # the node raises its own error
            return given
    return given


def _of_product(node: Node, shapes: list[tuple[int, ...]]) -> int:
    """Bound the cost of a matrix product, with that of its sums and of adding a third input."""
    a, b = (shape if len(shape) > 1 else (*shape, 1, 1)[:2] for shape in shapes[:2])
    rows, terms = a[-2:] if not node.attributes.get("transA", 0) else a[:-3:-1]
    columns = b[-2 if node.attributes.get("transB", 0) else -1]
    made = (*np.broadcast_shapes(a[:-2], b[:-2]), rows, columns)
    return math.prod(np.broadcast_shapes(made, *shapes[2:])) * (1 + terms // _TERMS)


def _of_pad(shape: tuple[int, ...], values: list[Any]) -> int:
    """Bound the cost of a Pad, in which each axis grows by at most the sum of the counts."""
    more = sum(abs(n) for n in _numbers(values[1]))
    return math.prod(n + more for n in shape)


def _of_conv(node: Node, shapes: list[tuple[int, ...]]) -> int:
    """Bound the cost of a Conv, which computes the columns of the kernel and their products."""
    if len(shapes[0]) != 3 or len(shapes[1]) != 3:
        return sum(math.prod(shape) for shape in shapes)
    (B, C, L), (M, _, kernel) = shapes[:2]
    more = sum(abs(n) for name in ("pads", "dilations") for n in node.attributes.get(name, [1]))
    return B * (C + M) * (L + more * (kernel + 1)) * max(kernel, 1)


def _of_range(values: list[Any]) -> int:
    """Bound the cost of a Range; 0 if the node raises an error for its inputs."""
    start, limit, step = (float(np.reshape(_array.to_numpy(a), (-1,))[0]) for a in values)
    count = abs(limit - start) / abs(step) if step else 0.0
    return math.ceil(count) if math.isfinite(count) else 0


def _product(sizes: list[int]) -> int:
    """Return the product of sizes, with 1 in place of 0."""
    return math.prod(max(abs(n), 1) for n in sizes)
