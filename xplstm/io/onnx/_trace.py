"""Analyse the graph around recurrent nodes by following names and by trial runs.

A path of nodes that rearrange elements is run on numbers of both signs and many magnitudes. Any other path
changes some of them. A node that is not understood is never treated as harmless.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xplstm._stack import _merge
from xplstm.io.onnx._fold import BudgetError, Evaluator
from xplstm.io.onnx._graph import Graph, Node
from xplstm.io.onnx._model import FAILURES, RUNNABLE, why_not_node
from xplstm.io.onnx._nodes import OPERATIONS, cuts
from xplstm.io.onnx._operator import OPERATORS

# Bounds of the nodes and constants between layers, of which there are few.
LONGEST_PATH = 64
LARGEST_CONSTANT = 64
# Numbers of steps and batch entries in trials, if the model does not fix them. A Reshape with constant sizes
# can pass one trial by coincidence, but not both.
FREE = (2, 3)
TWICE = (FREE, (5, 4))
LARGEST_TRIED = 1 << 20
# Operators by which a size can have an effect only above some size, such as min(T, 100) steps.
_BOUNDING = {"Min", "Max", "Div"}
# Bounds of a Slice from here on mean the end of the axis.
_NO_BOUND = (1 << 31) - 1
# Bits of the fraction and the largest exponent of the numbers of a trial, by dtype of the weights.
_EXACT = {"float64": (52, 60), "float32": (23, 60), "float16": (10, 12), "bfloat16": (7, 60)}
# Operators that only move elements of their first input.
MOVERS = {
    *("Identity", "Cast", "Dropout", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Expand"),
    *("Tile", "Slice", "Gather", "Split", "ReverseSequence"),
}
# Moving operators that can drop, repeat or reorder elements.
_CHOOSING = {"Slice", "Gather", "Split", "ReverseSequence", "Expand", "Tile"}
# Binary operators that, with one constant operand, change elements but not their positions.
_SCALING = {"Add", "Sum", "Sub", "Mul", "Div", "Min", "Max", "Where"}
# Elementwise operators.
_IN_PLACE = _SCALING | {
    *("Identity", "Cast", "Dropout", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Elu", "Selu", "Softplus"),
    *("Softsign", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Sqrt"),
    *("Pow", "Clip", "Abs", "Exp", "Neg", "PRelu"),
}
# Other operators that act on each element separately.
_BY_ELEMENT = {
    *("Abs", "Neg", "Exp", "Log", "Sqrt", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "Clip"),
    *("Pow", "Not", "And", "Or", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
}
# Operators of layers: they have weights, or combine the numbers of several positions.
_LAYERS = {
    *OPERATORS,
    *("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "Einsum", "Attention", "OneHot"),
    *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "Col2Im"),
    *("LayerNormalization", "BatchNormalization", "InstanceNormalization"),
    *("GroupNormalization", "RMSNormalization"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    *("MaxRoiPool", "RoiAlign", "GridSample", "Resize", "Upsample", "DFT", "STFT"),
    *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin"),
}
# Placeholder for the operator of a malformed node.
OPAQUE = "opaque"
MEASURING = {"Shape", "Size"}


class Path(NamedTuple):
    """The single value on which another value depends, and the nodes between them."""

    start: str
    nodes: tuple[Node, ...]
    """Nodes in the order of execution."""
    measured: frozenset[str]
    """Values of which only the shape is used."""


def distinct(shape: Sequence[int], dtype: str = "float32", first: int = 0) -> np.ndarray:
    """Return numbers that are exact in `dtype`, so that rounding, clipping and shifting change some of them.

    They repeat four numbers: a large and a small one of each sign. `first` selects the first number.
    """
    bits, most = _EXACT.get(dtype, _EXACT["float32"])
    k = np.random.default_rng(0).permutation(math.prod(shape)) + first
    fraction = 1 + np.round(k * 0.6180339887498949 % 1 * (1 << bits)) / (1 << bits)
    exponent = np.where(k // 2 % 2, -1, 1) * (most - k // 4 % most)
    a = np.ldexp(np.where(k % 2, -fraction, fraction), exponent).reshape(shape)
    return a if dtype == "float64" else a.astype(np.float32)


class Trace:
    """A graph with the producers and users of each value."""

    def __init__(self, graph: Graph) -> None:
        # A malformed node does not determine its inputs.
        self._ops = [node.op for node in graph.nodes]
        nodes = (n._replace(op=OPAQUE) if n.op in RUNNABLE and why_not_node(n) else n for n in graph.nodes)
        self.graph = graph = graph._replace(nodes=tuple(nodes))
        self.evaluator = Evaluator(graph)
        self.inputs = {i.name: i for i in graph.inputs}
        self.lengths: dict[str, str | tuple[int, ...]] = {}
        """Model input or constants that each sequence_lens provably equals."""
        self._paths: dict[tuple[str, bool], Path | None] = {}
        self._of_sizes = self._names_of_sizes()
        self._makers = {name: k for k, node in enumerate(graph.nodes) for name in node.outputs if name}
        self._users: dict[str, set[int]] = defaultdict(set)
        for k, node in enumerate(graph.nodes):
            for name in node.inputs:
                self._users[name].add(k)

    def _names_of_sizes(self) -> set[str]:
        """Return the names of all values that depend only on shapes and constants."""
        known: set[str] = set()
        for node in self.graph.nodes:
            given = [name for name in node.inputs if not self.is_constant(name)]
            if node.op in MEASURING or (given and node.op in RUNNABLE and known.issuperset(given)):
                known |= {*node.outputs}
        return known

    def maker(self, name: str) -> Node | None:
        """Return the node that computes a value."""
        return self.graph.nodes[self._makers[name]] if name in self._makers else None

    def is_constant(self, name: str) -> bool:
        """Return whether a value depends only on initialisers."""
        return name == "" or name in self.evaluator.constant

    def path(self, name: str, by_element: bool = False) -> Path | None:
        """Return the path to the single value on which `name` depends; None if there are several.

        Constants are ignored. The path follows nodes that move elements, and with `by_element` also nodes
        that act on each element separately.
        """
        if (name, by_element) not in self._paths:
            followed = {*OPERATIONS, *(_BY_ELEMENT if by_element else ())}
            self._paths[name, by_element] = self._follow(name, followed)
        return self._paths[name, by_element]

    def _follow(self, name: str, followed: set[str]) -> Path | None:
        wanted, found, starts, measured = [name], set(), set(), set()
        while wanted:
            one = wanted.pop()
            if self.is_constant(one):
                # These nodes run with the others, at the cost of the same budget.
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
        # Without a start, the value depends only on shapes.
        return (
            Path(starts.pop() if starts else "", nodes, frozenset(measured)) if starts or measured else None
        )

    def _is_table(self, node: Node) -> bool:
        """Return whether a node is a table look-up or a product with a matrix of weights."""
        large = [name for name in node.inputs if self._is_large(name)]
        return node.op == "MatMul" or (
            node.op == "Gather" and (bool(large) or self.is_constant(node.inputs[0]))
        )

    def _is_large(self, name: str) -> bool:
        constant = self.graph.constants.get(name)
        return constant is not None and math.prod(constant.shape) > LARGEST_CONSTANT

    def run_path(self, path: Path, a: np.ndarray, end: str, large: bool = False) -> np.ndarray | None:
        """Run a path on `a`; return None if it fails, or if a run on larger arrays could differ.

        A path with large constants is run only if `large` is True.
        """
        if not large and any(self._is_large(name) for node in path.nodes for name in node.inputs):
            return None
        if any(node.op in _BOUNDING and self._of_sizes.issuperset(node.outputs) for node in path.nodes):
            return None
        for measured in self._measure_shapes(path, a):
            try:
                values = self.evaluator.run(path.nodes, {path.start: a, **measured})
                result: np.ndarray = values[end]
                if any(self._is_bound(node, values) for node in path.nodes):
                    return None
            except BudgetError:
                raise
            # Such nodes do not occur between layers.
            except FAILURES:
                continue
            return result
        return None

    def _is_bound(self, node: Node, values: Mapping[str, np.ndarray]) -> bool:
        """Return whether a Slice of data has a bound beyond its axis and would shorten a longer axis."""
        if node.op != "Slice" or node.inputs[0] in self._of_sizes or self.is_constant(node.inputs[0]):
            return False
        given = [values[one] if one in values else self.evaluator.value(one) for one in node.inputs]
        return any(
            given[0].shape[axis] < abs(bound) < _NO_BOUND
            for axis, start, end, _ in cuts(node, given)
            for bound in (start, end)
        )

    def dtype_of(self, node: Node) -> str:
        """Return the dtype of the weights of a recurrent node; "float32" if they are not constant."""
        weight = self.graph.constants.get(node.inputs[1])
        return "float32" if weight is None else weight.dtype

    def _measure_shapes(self, path: Path, a: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Return arrays with the time and batch sizes of `a`, for values of which only the shape is used."""
        names = {name for node in path.nodes for name in node.outputs} | {path.start}
        free = path.measured - names
        if not free:
            return [{}]
        if a.ndim < 3:
            return []
        shapes = [(a.shape[0], a.shape[-2], 1), (a.shape[-2], a.shape[0], 1)]
        return [{name: np.zeros(shape, np.float32) for name in free} for shape in shapes]

    def is_alone(self, start: str, path: Iterable[Node], user: Node) -> bool:
        """Return whether `start` and the values on `path` are used only for the input X of `user`."""
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
        """Return the merge of the directions of `Y` in `end`; None if unknown.

        In a model output, time and batch may have either order. With `between`, for the input of another
        layer, they must have the order of the layer below.
        """
        path = self.path(end)
        if path is None or path.start != Y:
            return None
        node = self.graph.nodes[self._makers[Y]]
        sizes = self._sizes(path.nodes, node.inputs[0], layout, D * H)
        tried = (distinct((T, B, D, H), self.dtype_of(node)) for T, B in sizes)
        (merge, *others) = {self._merge_of(path, apart, end, layout, between) for apart in tried}
        return None if others else merge

    def _merge_of(self, path: Path, apart: np.ndarray, end: str, layout: int, between: bool) -> str | None:
        """Return the merge that a path computes from directions (T, B, D, H); None if unknown."""
        y = apart.reshape(*apart.shape[:2], -1)
        given = apart.swapaxes(0, 1) if layout else apart.transpose(0, 2, 1, 3)
        result = self.run_path(path, given, end)
        if result is None:
            return None
        for merge, wanted in _ways(y, apart).items():
            both = [wanted, np.moveaxis(wanted, -3, -2)]
            if between:
                both = both[1:] if layout else both[:1]
            if any(result.shape == one.shape and np.array_equal(result, one) for one in both):
                return merge
        return None

    def _sizes(self, nodes: Iterable[Node], X: str, layout: int, width: int) -> Sequence[tuple[int, int]]:
        """Return the sizes of time and batch for trials: the model's if a Reshape may depend on them."""
        own = self.own_sizes(X, layout) if any(node.op == "Reshape" for node in nodes) else None
        return (own,) if own and math.prod(own) * width <= LARGEST_TRIED else TWICE

    def own_sizes(self, X: str, layout: int, depth: int = 0) -> tuple[int, int] | None:
        """Return the sizes of time and batch of a recurrent node's input, if the model fixes them."""
        path = self.path(X)
        shape = self._own_shape(path.start, depth) if path else None
        if path is None or shape is None or math.prod(shape) > LARGEST_TRIED:
            return None
        result = self.run_path(path, np.zeros(shape, np.float32), X)
        if result is None or result.ndim != 3:
            return None
        first, second, _ = result.shape
        return (second, first) if layout else (first, second)

    def _own_shape(self, name: str, depth: int) -> tuple[int, ...] | None:
        """Return the fixed shape of a model input, or of the first output of a recurrent node."""
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

    def follow_moves(self, name: str) -> tuple[str, list[Node]]:
        """Follow first inputs back through nodes that only move elements; return the value and the nodes."""
        nodes: list[Node] = []
        while len(nodes) <= LONGEST_PATH:
            node = self.maker(name)
            if node is None or node.op not in MOVERS or self._is_table(node) or self.is_constant(name):
                break
            nodes.append(node)
            name = node.inputs[0]
        return name, nodes

    def find_sources(
        self, name: str, only_weighted: bool = False
    ) -> tuple[list[str], list[Node], list[Node]]:
        """Return the model inputs and the layers on which `name` directly depends, and the nodes between.

        With `only_weighted`, layers without weights are nodes between.
        """
        inputs, layers, nodes = dict[str, None](), list[Node](), list[Node]()
        wanted, seen = [name], set[str]()
        while wanted:
            one = wanted.pop(0)
            if one in seen or self.is_constant(one) or one in self._of_sizes:
                continue
            seen.add(one)
            node = self.maker(one)
            if node is None:
                inputs |= {one: None} if one in self.inputs else {}
            elif self._is_layer(node) and (self.has_weights(node) or not only_weighted):
                layers.append(node)
            else:
                nodes.append(node)
                wanted += node.inputs[:1] if node.op in MOVERS else node.inputs
        return [*inputs], layers, nodes

    def _is_layer(self, node: Node) -> bool:
        """Return whether a node is a layer; another one changes, joins or moves numbers of its inputs."""
        op = self._ops[self._makers[next(filter(None, node.outputs))]]
        weights = (self.graph.constants[name] for name in node.inputs if name in self.graph.constants)
        # Operators of other domains are known by a matrix of weights.
        own = "." in op and any(len(constant.shape) > 1 for constant in weights)
        return op in _LAYERS or own or self._is_table(node)

    def has_weights(self, node: Node) -> bool:
        """Return whether a node has constants, other than one number or a list of axes or sizes."""
        for name in filter(self.is_constant, filter(None, node.inputs)):
            constant = self.graph.constants.get(name)
            if constant is None or len(constant.shape) > 1:
                return True
            if math.prod(constant.shape) > 1 and not constant.dtype.startswith("int"):
                return True
        return False

    def depends_on_input(self, name: str) -> bool:
        """Return whether a value changes with a model input, also with one that has a default value."""
        wanted, seen = [name], set[str]()
        while wanted:
            one = wanted.pop()
            if one in self.inputs:
                return True
            node = self.maker(one)
            if node is not None and one not in seen and node.op not in MEASURING:
                seen.add(one)
                wanted += node.inputs
        return False

    def chooses(self, nodes: Iterable[Node]) -> Node | None:
        """Return the first node that may drop, repeat or reorder elements, or None."""
        return next((node for node in nodes if node.op in _CHOOSING), None)

    def has_own_order(self, name: str, ends: Mapping[str, bool]) -> bool | None:
        """Return whether time and batch are where they are in the model inputs on which `name` depends.

        False means that the two axes are exchanged, and None that the graph does not show it. `ends` maps
        outputs of recurrent nodes to this result for the output of their network.
        """
        wanted, seen, found = [(name, True)], set(), set()
        while wanted:
            one, own = wanted.pop()
            if self.is_constant(one) or (one, own) in seen:
                continue
            seen.add((one, own))
            node = self.maker(one)
            if one in ends:
                found.add(own == ends[one])
            elif node is None and one in self.inputs:
                found.add(own)
            elif node is None or len(seen) > LONGEST_PATH:
                return None
            elif node.op == "Transpose" and node.attributes.get("perm") == [1, 0, 2]:
                wanted.append((node.inputs[0], not own))
            elif (joined := self._joined_directions(node)) is not None:
                wanted.append((joined, own))
            elif self._is_in_place(node):
                wanted += [(n, own) for n in (node.inputs[:1] if node.op == "Squeeze" else node.inputs)]
            else:
                return None
        return found.pop() if len(found) == 1 else None

    def _joined_directions(self, node: Node) -> str | None:
        """Return Y of a recurrent node if `node` is the Reshape that joins its two directions, or None."""
        before = self.maker(node.inputs[0]) if node.op == "Reshape" else None
        if before is None or before.op != "Transpose" or before.attributes.get("perm") != [0, 2, 1, 3]:
            return None
        recurrent = self.maker(before.inputs[0])
        if recurrent is None or recurrent.op not in OPERATORS or not self.is_constant(node.inputs[1]):
            return None
        keeps = self.evaluator.value(node.inputs[1]).tolist()[:2] == [0, 0]
        return before.inputs[0] if keeps and not node.attributes.get("allowzero") else None

    def _is_in_place(self, node: Node) -> bool:
        """Return whether a node keeps the positions of the time and batch axes."""
        if node.op == "Gather":
            return self.is_constant(node.inputs[0]) and node.attributes.get("axis", 0) == 0
        if node.op == "MatMul":
            return len(node.inputs) == 2 and self.is_constant(node.inputs[1])
        if node.op == "LayerNormalization":
            return node.attributes.get("axis", -1) == -1
        if node.op == "Squeeze":  # removes the direction axis of Y
            before = self.maker(node.inputs[0])
            return before is not None and before.op in OPERATORS
        return node.op in _IN_PLACE


def _ways(y: np.ndarray, apart: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the result of each merge of two directions; one direction needs no merge."""
    if apart.shape[2] == 1:
        return {"concat": y}
    ways = {merge: _merge.forward(merge, y) for merge in ("concat", "sum", "mean", "product")}
    return ways | {"none": np.moveaxis(apart, 2, 0)}
