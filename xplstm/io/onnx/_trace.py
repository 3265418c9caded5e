"""Find what a graph does around its recurrent nodes, by following names and by trials.

A path of nodes that move numbers is run once on an array of distinct numbers. The result shows what the path
does, however it is written. Nothing is taken for harmless because it is not understood.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from xplstm._stack import _merge
from xplstm.io.onnx._fold import FAILURES, BudgetError, Evaluator
from xplstm.io.onnx._graph import Graph, Node
from xplstm.io.onnx._model import RUNNABLE, why_not_node
from xplstm.io.onnx._nodes import OPERATIONS
from xplstm.io.onnx._operator import OPERATORS

# Between layers there are a handful of nodes, and only small constants.
LONGEST_PATH = 64
LARGEST_CONSTANT = 64
# Sizes of time and of the batch in trials, where the model has none of its own.
FREE = (2, 3)
LARGEST_TRIED = 1 << 20
# Operators that only move the numbers of their first input.
MOVERS = {
    "Identity",
    "Cast",
    "Dropout",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Reshape",
    "Flatten",
    "Expand",
    "Tile",
    "Slice",
    "Gather",
    "Split",
    "ReverseSequence",
}
# Of these, the ones that can drop, repeat or reorder what they move.
_CHOOSING = {"Slice", "Gather", "Split", "ReverseSequence", "Expand", "Tile"}
# With one operand that is constant, these change the numbers and keep their places.
_SCALING = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Where"}
# These make each place of their output of the same place of their inputs.
_IN_PLACE = _SCALING | {
    "Identity",
    "Cast",
    "Dropout",
    "Relu",
    "Tanh",
    "Sigmoid",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "Erf",
    "Sqrt",
    "Pow",
    "Clip",
    "Abs",
    "Exp",
    "Neg",
    "PRelu",
}
# These compute each number by itself, too.
_BY_ELEMENT = {
    *("Abs", "Neg", "Exp", "Log", "Sqrt", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "Pow"),
    *("Not", "And", "Or", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
}
# In the place of the operator of a malformed node.
OPAQUE = "opaque"
MEASURING = {"Shape", "Size"}


class Path(NamedTuple):
    """The one value that another is made of, and how."""

    start: str
    nodes: tuple[Node, ...]
    """In the order in which they run."""
    measured: frozenset[str]
    """Values of which only the shape is used."""


class Trace:
    """A graph whose names can be followed backwards and forwards."""

    def __init__(self, graph: Graph) -> None:
        # What is no proper node of its operator says nothing about its inputs.
        nodes = (n._replace(op=OPAQUE) if n.op in RUNNABLE and why_not_node(n) else n for n in graph.nodes)
        self.graph = graph = graph._replace(nodes=tuple(nodes))
        self.evaluator = Evaluator(graph)
        self.inputs = {i.name: i for i in graph.inputs}
        self.lengths: dict[str, str | tuple[int, ...]] = {}
        """Which input of the model, or which constants, each sequence_lens was proved to be."""
        self._paths: dict[tuple[str, bool], Path | None] = {}
        self._of_sizes = self._names_of_sizes()
        self._makers = {name: k for k, node in enumerate(graph.nodes) for name in node.outputs if name}
        self._users: dict[str, set[int]] = defaultdict(set)
        for k, node in enumerate(graph.nodes):
            for name in node.inputs:
                self._users[name].add(k)

    def _names_of_sizes(self) -> set[str]:
        """Find every value that depends on the shapes of others and constants alone."""
        known: set[str] = set()
        for node in self.graph.nodes:
            given = [name for name in node.inputs if not self.is_constant(name)]
            if node.op in MEASURING or (given and node.op in RUNNABLE and known.issuperset(given)):
                known |= {*node.outputs}
        return known

    def maker(self, name: str) -> Node | None:
        """Return the node that makes a value."""
        return self.graph.nodes[self._makers[name]] if name in self._makers else None

    def is_constant(self, name: str) -> bool:
        """Return whether a value depends on initialisers alone."""
        return name == "" or name in self.evaluator.constant

    def path(self, name: str, by_element: bool = False) -> Path | None:
        """Return the one value that `name` is made of, constants apart; None if there are several.

        The path goes through nodes that move numbers. Those that compute each number by itself are
        followed too if `by_element` is set.
        """
        if (name, by_element) not in self._paths:
            followed = {*OPERATIONS, *(_BY_ELEMENT if by_element else ())}
            self._paths[name, by_element] = self._followed(name, followed)
        return self._paths[name, by_element]

    def _followed(self, name: str, followed: set[str]) -> Path | None:
        wanted, found, starts, measured = [name], set(), set(), set()
        while wanted:
            one = wanted.pop()
            if self.is_constant(one):
                # Its nodes are run with the others: their cost is in the same budget.
                k = self._makers.get(one)
                if k is not None and k not in found and one not in self.graph.constants:
                    found.add(k)
                    wanted += self.graph.nodes[k].inputs
                continue
            node = self.maker(one)
            if node is None or node.op not in followed or why_not_node(node) or self._is_table(node):
                starts.add(one)
            elif self._makers[one] not in found:
                found.add(self._makers[one])
                if node.op in MEASURING and node.inputs[0] not in self._of_sizes:
                    measured.add(node.inputs[0])
                else:
                    wanted += node.inputs
            if len(found) > LONGEST_PATH or len(starts) > 1:
                return None
        nodes = tuple(self.graph.nodes[k] for k in sorted(found))
        # Without a start it is made of shapes alone.
        return (
            Path(starts.pop() if starts else "", nodes, frozenset(measured)) if starts or measured else None
        )

    def _is_table(self, node: Node) -> bool:
        """Return whether a node is a layer with weights: a look-up in a table, or a product with a matrix."""
        large = [name for name in node.inputs if self._is_large(name)]
        return node.op == "MatMul" or (
            node.op == "Gather" and (bool(large) or self.is_constant(node.inputs[0]))
        )

    def _is_large(self, name: str) -> bool:
        constant = self.graph.constants.get(name)
        return constant is not None and math.prod(constant.shape) > LARGEST_CONSTANT

    def tried(self, path: Path, a: np.ndarray, end: str, large: bool = False) -> np.ndarray | None:
        """Return what a path makes of `a`; None if that fails, or takes constants that are too `large`."""
        if not large and any(self._is_large(name) for node in path.nodes for name in node.inputs):
            return None
        for measured in self._measured(path, a):
            try:
                made: np.ndarray = self.evaluator.run(path.nodes, {path.start: a, **measured})[end]
            except BudgetError:
                raise
            # Then these nodes are none of those that belong between layers.
            except FAILURES:
                continue
            return made
        return None

    def _measured(self, path: Path, a: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Return arrays for the values of which only the shape is used: of this time and batch."""
        made = {name for node in path.nodes for name in node.outputs} | {path.start}
        free = path.measured - made
        if not free:
            return [{}]
        if a.ndim < 3:
            return []
        shapes = [(a.shape[0], a.shape[-2], 1), (a.shape[-2], a.shape[0], 1)]
        return [{name: np.zeros(shape, np.float32) for name in free} for shape in shapes]

    def is_alone(self, start: str, path: Iterable[Node], user: Node) -> bool:
        """Return whether `start`, and what `path` makes of it, is used for the input X of `user` alone."""
        inside = [*path]
        moved = {start, *(name for node in inside if node.op not in MEASURING for name in node.outputs)}
        data = {name for name in moved if not self.is_constant(name)}
        allowed = {id(node) for node in inside}
        for name in data:
            if name in self.graph.outputs or name in user.inputs[1:]:
                return False
            others = (self.graph.nodes[k] for k in self._users[name])
            if any(o is not user and id(o) not in allowed and o.op not in MEASURING for o in others):
                return False
        return True

    def merge_after(self, Y: str, D: int, H: int, end: str, layout: int, between: bool = False) -> str | None:
        """Return how the directions of `Y` are merged in `end`; None if unknown.

        An output of the model may have time and the batch in either order. The input of another layer,
        `between`, must have them as the layer below had them.
        """
        path = self.path(end)
        if path is None or path.start != Y:
            return None
        node = self.graph.nodes[self._makers[Y]]
        T, B = self._sizes(path.nodes, node.inputs[0], layout, D * H)
        y = np.arange(1.0, T * B * D * H + 1, dtype=np.float32).reshape(T, B, D * H)
        apart = y.reshape(T, B, D, H)
        given = apart.swapaxes(0, 1) if layout else apart.transpose(0, 2, 1, 3)
        made = self.tried(path, given, end)
        if made is None:
            return None
        for merge, wanted in _ways(y, apart).items():
            both = [wanted, np.moveaxis(wanted, -3, -2)]
            if between:
                both = both[1:] if layout else both[:1]
            if any(made.shape == one.shape and np.array_equal(made, one) for one in both):
                return merge
        return None

    def _sizes(self, nodes: Iterable[Node], X: str, layout: int, width: int) -> tuple[int, int]:
        """Return sizes of time and batch for a trial: the model's own where a Reshape may contain them."""
        own = self.own_sizes(X, layout) if any(node.op == "Reshape" for node in nodes) else None
        return own if own and math.prod(own) * width <= LARGEST_TRIED else FREE

    def own_sizes(self, X: str, layout: int, depth: int = 0) -> tuple[int, int] | None:
        """Return time and batch of the input of a recurrent node, where the model fixes them."""
        path = self.path(X)
        shape = self._own_shape(path.start, depth) if path else None
        if path is None or shape is None or math.prod(shape) > LARGEST_TRIED:
            return None
        made = self.tried(path, np.zeros(shape, np.float32), X)
        if made is None or made.ndim != 3:
            return None
        first, second, _ = made.shape
        return (second, first) if layout else (first, second)

    def _own_shape(self, name: str, depth: int) -> tuple[int, ...] | None:
        """Return the fixed shape of an input of the model, or of the first output of a recurrent node."""
        node = self.maker(name)
        if node is None:
            shape = (self.inputs[name].shape if name in self.inputs else None) or ()
            fixed = tuple(n for n in shape if isinstance(n, int) and n > 0)
            return fixed if fixed and len(fixed) == len(shape) else None
        if node.op not in OPERATORS or name != node.outputs[0] or why_not_node(node) or depth > LONGEST_PATH:
            return None
        layout = node.attributes.get("layout", 0)
        sizes = self.own_sizes(node.inputs[0], layout, depth + 1)
        recurrent = self.graph.constants.get(node.inputs[2])
        if sizes is None or recurrent is None or len(recurrent.shape) != 3:
            return None
        (T, B), (D, _, H) = sizes, recurrent.shape
        return (B, T, D, H) if layout else (T, D, B, H)

    def moved_from(self, name: str) -> tuple[str, list[Node]]:
        """Follow first inputs back through nodes that only move numbers: the value before, and the nodes."""
        nodes: list[Node] = []
        while len(nodes) <= LONGEST_PATH:
            node = self.maker(name)
            if node is None or node.op not in MOVERS or self._is_table(node) or self.is_constant(name):
                break
            nodes.append(node)
            name = node.inputs[0]
        return name, nodes

    def scaled_from(self, name: str) -> str | None:
        """Return the input of the model that movers and arithmetic with constants make `name` of, if one."""
        for _ in range(LONGEST_PATH):
            node = self.maker(name)
            if node is None:
                return name if name in self.inputs else None
            if node.op not in MOVERS | _SCALING or self._is_table(node):
                return None
            data = [one for one in node.inputs if not self.is_constant(one)]
            if node.op in MOVERS:
                data = data[:1]
            if len(data) != 1:
                return None
            name = data[0]
        return None

    def rearranged_from(self, name: str) -> str | None:
        """Return the input of the model of which `name` is put together from parts, if one."""
        path = self.path(name)
        known = MOVERS | _SCALING | MEASURING | {"Concat"}
        return (
            path.start
            if path and path.start in self.inputs and known.issuperset(n.op for n in path.nodes)
            else None
        )

    def chooses(self, nodes: Iterable[Node]) -> Node | None:
        """Return the first of some nodes that may drop, repeat or reorder numbers."""
        return next((node for node in nodes if node.op in _CHOOSING), None)

    def keeps_order(self, name: str, ends: Mapping[str, bool]) -> bool:
        """Return whether `name` has the axes of the model's inputs, and nothing on the way moves one.

        `ends` are outputs of recurrent nodes of which the same is known, or not.
        """
        wanted, seen = [name], set()
        while wanted:
            one = wanted.pop()
            if self.is_constant(one) or one in seen or ends.get(one):
                continue
            seen.add(one)
            node = self.maker(one)
            if node is None:
                if one not in self.inputs or len(seen) > LONGEST_PATH:
                    return False
                continue
            if not self._is_in_place(node) or len(seen) > LONGEST_PATH:
                return False
            wanted += node.inputs[:1] if node.op == "Squeeze" else node.inputs
        return True

    def _is_in_place(self, node: Node) -> bool:
        """Return whether a node keeps time and batch where they are."""
        if node.op == "Gather":
            return self.is_constant(node.inputs[0]) and node.attributes.get("axis", 0) == 0
        if node.op == "MatMul":
            return len(node.inputs) == 2 and self.is_constant(node.inputs[1])
        if node.op == "LayerNormalization":
            return node.attributes.get("axis", -1) == -1
        if node.op == "Squeeze":  # of the directions of Y
            before = self.maker(node.inputs[0])
            return before is not None and before.op in OPERATORS
        return node.op in _IN_PLACE


def _ways(y: np.ndarray, apart: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return what each merge makes of two directions; of one there is nothing to merge."""
    if apart.shape[2] == 1:
        return {"concat": y}
    ways = {merge: _merge.forward(merge, y) for merge in ("concat", "sum", "mean", "product")}
    return ways | {"none": np.moveaxis(apart, 2, 0)}
