"""Evaluate constant parts of a graph on the host, with one budget for the file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from xplstm import _array
from xplstm._errors import FormatError, XplstmError
from xplstm.io._contents import Tensor, show, unreadable
from xplstm.io.onnx._cost import most_numbers
from xplstm.io.onnx._graph import Graph, Node, brief
from xplstm.io.onnx._model import FAILURES, RUNNABLE, why_not_node
from xplstm.io.onnx._nodes import Place
from xplstm.io.onnx._operator import QUANTIZED, RUNTIME

# Budget in addition to a multiple of the file size, for the trial arrays of small models.
FLOOR = 1 << 26
TIMES_FILE = 8
# Smallest cost of a node.
NODE = 1 << 10


class BudgetError(FormatError):
    """The evaluation of a graph exceeds the budget for its file size."""


class Evaluator:
    """Evaluator of values that depend only on the constants of a graph, with a budget."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.left = FLOOR + TIMES_FILE * graph.size
        self._place = Place(_array.named_namespace("numpy"), None, graph.opset)
        self._makers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._kept: dict[str, np.ndarray] = {}
        self.constant = self._constant_names()

    def _constant_names(self) -> set[str]:
        """Return the names of all values that depend only on initialisers."""
        known = {"", *self.graph.constants}
        for node in self.graph.nodes:
            if node.op in RUNNABLE and known.issuperset(node.inputs) and why_not_node(node) is None:
                known |= {*node.outputs}
        return known - {""}

    def value(self, name: str) -> np.ndarray:
        """Return a value that depends only on initialisers; `name` must be in `constant`."""
        needed: dict[int, Node] = {}
        wanted = [name]
        while wanted:
            one = wanted.pop()
            node = self._makers.get(one)
            if one and one not in self._kept and node is not None and id(node) not in needed:
                needed[id(node)] = node
                wanted += node.inputs
        nodes = [node for node in self.graph.nodes if id(node) in needed] if needed else []
        values = self.run(nodes, {})
        self._kept |= {one: values[one] for node in nodes for one in node.outputs if one}
        return self._known_value(name)

    def _known_value(self, name: str) -> np.ndarray:
        """Return an initialiser, or a value that was evaluated before."""
        if not name:
            msg = f"{self.graph.where}: a required input of a node is missing"
            raise FormatError(msg)
        if name not in self._kept:
            self.spend(math.prod(self.graph.constants[name].shape), name)
            self._kept[name] = np.asarray(self.graph.constants[name].array())
        return self._kept[name]

    def run(self, nodes: Iterable[Node], values: dict[str, Any]) -> dict[str, Any]:
        """Run nodes in order; inputs that are not in `values` are initialisers."""
        values = {"": None, **values}
        for node in nodes:
            given = [values[name] if name in values else self._known_value(name) for name in node.inputs]
            try:
                self.spend(most_numbers(node, given), node.label)
                with np.errstate(all="ignore"):  # users of a value check that it is finite
                    outputs = RUNNABLE[node.op].run(self._place, node, given)
            except XplstmError:
                raise
            except FAILURES as error:
                msg = f"{self.graph.where}: {node.label} cannot be evaluated: {error}"
                raise FormatError(msg) from error
            values |= dict(zip(node.outputs, outputs, strict=False))
        return values

    def spend(self, numbers: int, what: str) -> None:
        """Subtract the cost of a number of elements from the budget, before they are computed."""
        self.left -= NODE + 8 * numbers
        if self.left < 0:
            allowed = FLOOR + TIMES_FILE * self.graph.size
            msg = (
                f"{self.graph.where}: the evaluation of the graph up to {show(what)} needs more than "
                f"{allowed} bytes, the limit for a file of {self.graph.size} bytes"
            )
            raise BudgetError(msg)


def dequantise(graph: Graph) -> Graph:
    """Return the graph with an LSTM node in place of each DynamicQuantizeLSTM node, which has 8-bit weights.

    W and R of that operator are (D, I, 4H) and (D, H, 4H), with a scale and a zero point for each direction
    or for each gate row. ONNX Runtime's list of contributed operators defines the operator.
    """
    taken = {*graph.constants, *(i.name for i in graph.inputs), *(o for n in graph.nodes for o in n.outputs)}
    nodes: list[Node] = []
    constants = dict(graph.constants)
    for k, node in enumerate(graph.nodes):
        if node.op != f"{RUNTIME}.{QUANTIZED}" or len(node.inputs) != 12 or not all(node.inputs[8:]):
            nodes.append(node)
            continue
        X, W, R, *others = node.inputs[:8]
        start = f"dequantized_{k}"
        while any(name.startswith(start) for name in taken):
            start += "_"
        shape = np.asarray([0, 1, -1], dtype=np.int64)
        constants[f"{start}.shape"] = Tensor((3,), "int64", partial(np.asarray, shape))
        names = []
        for letter, name, scale, zero in (("W", W, *node.inputs[8:10]), ("R", R, *node.inputs[10:])):
            nodes += _float_nodes(f"{start}.{letter}", name, scale, zero, f"{start}.shape")
            names.append(f"{start}.{letter}.whole")
        nodes.append(node._replace(op="LSTM", inputs=(X, *names, *others)))
    return graph._replace(nodes=tuple(nodes), constants=constants)


def _float_nodes(start: str, name: str, scale: str, zero: str, shape: str) -> list[Node]:
    """Return the nodes that compute ``(a - zero) * scale`` from 8-bit values and swap the last two axes."""
    steps: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = [
        ("Cast", (zero,), "zero_float", {"to": 1}),
        ("Cast", (name,), "float", {"to": 1}),
        ("Reshape", (f"{start}.zero_float", shape), "zero", {}),
        ("Reshape", (scale, shape), "scale", {}),
        ("Sub", (f"{start}.float", f"{start}.zero"), "centred", {}),
        ("Mul", (f"{start}.centred", f"{start}.scale"), "scaled", {}),
        ("Transpose", (f"{start}.scaled",), "whole", {"perm": [0, 2, 1]}),
    ]
    return [Node(op, "", given, (f"{start}.{end}",), attributes) for op, given, end, attributes in steps]


def decide_branches(graph: Graph) -> Graph:
    """Return the graph with each If node of constant condition replaced by the taken branch."""
    evaluator = Evaluator(graph)
    live, dropped = {*graph.outputs}, set[str]()
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        outputs = {*node.outputs} - {""}
        if outputs & dropped and not outputs & live:
            dropped.update(node.inputs)
            continue
        taken = _branch(evaluator, node)
        if taken is None:
            nodes.append(node)
            live.update(node.inputs)
            continue
        dropped.update(node.inputs)
        live.update(taken)
        pairs = zip(node.outputs, taken, strict=True)
        nodes += [Node("Identity", "", (name,), (end,), {}) for end, name in pairs if end]
    return graph._replace(nodes=tuple(reversed(nodes))) if dropped else graph


def _branch(evaluator: Evaluator, node: Node) -> tuple[str, ...] | None:
    """Return the outputs of the taken branch of an If node; None for other nodes or unknown conditions."""
    if node.op != "If" or why_not_node(node) is not None or node.inputs[0] not in evaluator.constant:
        return None
    try:
        condition = evaluator.value(node.inputs[0])
    except BudgetError:
        raise
    except FAILURES:
        return None
    half = len(node.outputs)
    if condition.size != 1 or condition.dtype != bool:
        return None
    return node.inputs[1 : 1 + half] if condition.all() else node.inputs[1 + half :]


def fold_constants(graph: Graph, names: Iterable[str]) -> Graph:
    """Return the graph with the values of `names` that depend only on initialisers added as constants."""
    tensors: dict[str, Tensor] = {}
    evaluator = Evaluator(graph)
    for name in dict.fromkeys(names):
        if not name or name in graph.constants or name not in evaluator.constant:
            continue
        try:
            a = evaluator.value(name)
        except FAILURES as error:
            tensors[name] = unreadable(f"{graph.where}: {brief(name)} cannot be evaluated: {error}")
        else:
            tensors[name] = Tensor(a.shape, _array.dtype_name(a.dtype), partial(np.asarray, a))
    return graph._replace(constants={**graph.constants, **tensors})
