"""Record one step of a cell as products and elementwise kernels, so that no code repeats its equations.

A cell's equations run once on `Value` objects instead of arrays. The operations between two matrix products
become one kernel. Its body is the recorded expressions in CUDA C++, which CuPy's ``ElementwiseKernel``
compiles. An operation that is not elementwise, such as a mean, raises `NotElementwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from xplstm._typing import CuPyArray

FUNCTIONS = {"exp": "exp", "expm1": "expm1", "log1p": "log1p", "tanh": "tanh", "sqrt": "sqrt", "abs": "fabs"}
"""Names of functions in the array API standard, and in C++."""

NUMBER, FLAG = "T", "bool"
BOTH, ROW, COLUMN = "both", "row", "column"


class NotElementwise(Exception):
    """A cell uses an operation that is not elementwise. The argument is the name of the operation."""


class Batch:
    """The unknown size of the batch axis; a recorded step works for every size, so no code may use it."""


BATCH = Batch()


class Node(NamedTuple):
    """One operation. Nodes are compared by value, so a repeated expression is recorded once."""

    operation: str
    """A C++ format with ``{0}``, ``{1}``, ... for the arguments, or INPUT, PRODUCT, CONCAT or CONSTANT."""
    arguments: tuple[int, ...]
    width: int
    """Number of columns of the value; 1 for a value that all columns share."""
    kind: str
    slot: int = -1
    """Number of an input."""
    axes: str = BOTH
    """Axes that index an input."""
    first: int = 0
    """First column of the value in an input or a product."""
    matrix: Matrix | None = None
    """Matrix of a product."""
    number: float = 0.0
    """Value of a constant."""


INPUT, PRODUCT, CONCAT, CONSTANT = "input", "product", "concat", "constant"


class Recorder:
    """The nodes of one recorded step. Recorded equations use this object as the array library."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.known: dict[Node, int] = {}
        self.widths: list[int] = []
        self.slices: dict[tuple[int, int, int], Value] = {}

    def add(self, node: Node) -> Value:
        """Return the value of a node."""
        if node not in self.known:
            self.known[node] = len(self.nodes)
            self.nodes.append(node)
        return Value(self, self.known[node])

    def slot(self, width: int) -> int:
        """Return the number of a new input array."""
        self.widths.append(width)
        return len(self.widths) - 1

    def array(self, width: int, kind: str = NUMBER) -> Value:
        """Return an input of shape (B, width)."""
        return self.add(Node(INPUT, (), width, kind, self.slot(width)))

    def row(self, width: int) -> Value:
        """Return an input of shape (width,), which all batch entries share."""
        return self.add(Node(INPUT, (), width, NUMBER, self.slot(width), COLUMN))

    def flags(self) -> Value:
        """Return a boolean input of shape (B, 1)."""
        return self.add(Node(INPUT, (), 1, FLAG, self.slot(1), ROW))

    def matrix(self, shape: tuple[int, int]) -> Matrix:
        """Return an input that is only used in products."""
        return Matrix(self.slot(0), shape)

    def constant(self, number: float, width: int = 1) -> Value:
        """Return a constant that every element has."""
        if not math.isfinite(number):
            msg = f"the constant {number}"
            raise NotElementwise(msg)
        return self.add(Node(CONSTANT, (), width, NUMBER, number=float(number)))

    def apply(self, operation: str, *arguments: Any, kind: str = NUMBER) -> Value:
        """Apply an elementwise operation, separately to the parts of a concatenation."""
        values = [a if isinstance(a, Value) else self.constant(a) for a in arguments]
        bounds = next((v.bounds() for v in values if v.node.operation == CONCAT), None)
        if bounds is None:
            width = max(v.width for v in values)
            return self.add(Node(operation, tuple(v.at for v in values), width, kind))
        parts = [self.apply(operation, *(v.columns(*b) for v in values), kind=kind) for b in bounds]
        return self.concat(parts)

    # Functions of the array API standard that the equations call.

    def where(self, condition: Value, a: Any, b: Any) -> Any:
        """Return `a` where the condition is True, else `b`."""
        if isinstance(b, Value) and b.width == 0:
            return b
        same = isinstance(a, Value) and isinstance(b, Value) and a.at == b.at
        return a if same else self.apply("{0} ? {1} : {2}", condition, a, b)

    def concat(self, values: Sequence[Value], axis: int = -1) -> Value:
        """Concatenate values along the columns, and flatten nested concatenations."""
        assert axis == -1
        parts = [part for v in values for part in v.parts()]
        return self.add(Node(CONCAT, tuple(p.at for p in parts), sum(p.width for p in parts), NUMBER))

    def zeros_like(self, like: Value) -> Value:
        """Return 0 for every element."""
        return self.constant(0.0, like.width)

    def ones_like(self, like: Value) -> Value:
        """Return 1 for every element."""
        return self.constant(1.0, like.width)

    def full_like(self, like: Value, number: float) -> Value:
        """Return a number for every element."""
        return self.constant(number, like.width)

    def __getattr__(self, name: str) -> Callable[[Value], Value]:
        if name not in FUNCTIONS:
            raise NotElementwise(name)
        return lambda value: self.apply(f"{FUNCTIONS[name]}({{0}})", value)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a recorded product: an input or a range of its rows, optionally transposed."""

    slot: int
    shape: tuple[int, int]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def T(self) -> Matrix:
        """The transpose."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    def __getitem__(self, key: tuple[slice, slice]) -> Matrix:
        rows, columns = key
        assert columns == slice(None)
        assert self.rows is None
        assert not self.transposed
        start, stop, _ = rows.indices(self.shape[0])
        return replace(self, shape=(stop - start, self.shape[1]), rows=(start, stop))

    def of(self, array: CuPyArray) -> CuPyArray:
        """Return the corresponding view of an array."""
        part = array if self.rows is None else array[self.rows[0] : self.rows[1]]
        return part.T if self.transposed else part


def _binary(symbol: str, kind: str = NUMBER, *, swapped: bool = False) -> Callable[[Value, Any], Value]:
    """Return the method of a binary operator."""
    operation = f"{{1}} {symbol} {{0}}" if swapped else f"{{0}} {symbol} {{1}}"
    return lambda self, other: self.recorder.apply(operation, self, other, kind=kind)


class Value:
    """A placeholder for an array while a step is recorded."""

    def __init__(self, recorder: Recorder, at: int) -> None:
        self.recorder, self.at = recorder, at
        self.node = recorder.nodes[at]
        self.width = self.node.width

    @property
    def shape(self) -> tuple[Any, ...]:
        """The unknown batch size, and the number of columns."""
        return (BATCH, self.width)

    def parts(self) -> list[Value]:
        """Return the parts of a concatenation, or a list of only the value."""
        joined = self.node.operation == CONCAT
        return [Value(self.recorder, k) for k in self.node.arguments] if joined else [self]

    def bounds(self) -> list[tuple[int, int]]:
        """Return the bounds of the columns of each part."""
        starts = [0]
        for part in self.parts():
            starts.append(starts[-1] + part.width)
        return list(pairwise(starts))

    def columns(self, start: int, stop: int) -> Value:
        """Return a range of columns, by slices of the inputs."""
        if self.width == 1 or (start, stop) == (0, self.width):
            return self
        key = self.at, start, stop
        if key not in self.recorder.slices:
            self.recorder.slices[key] = self._columns(start, stop)
        return self.recorder.slices[key]

    def _columns(self, start: int, stop: int) -> Value:
        recorder, node = self.recorder, self.node
        if node.operation == CONCAT:
            pieces = [
                part.columns(max(start, lo) - lo, min(stop, hi) - lo)
                for part, (lo, hi) in zip(self.parts(), self.bounds(), strict=True)
                if max(start, lo) < min(stop, hi)
            ]
            return pieces[0] if len(pieces) == 1 else recorder.concat(pieces)
        if node.operation in (INPUT, PRODUCT, CONSTANT):
            return recorder.add(node._replace(width=stop - start, first=node.first + start))
        arguments = [Value(recorder, k).columns(start, stop) for k in node.arguments]
        return recorder.apply(node.operation, *arguments, kind=node.kind)

    def __getitem__(self, key: Any) -> Value:
        start, stop, step = (key[-1] if isinstance(key, tuple) else key).indices(self.width)
        assert step == 1
        return self.columns(start, stop)

    def __matmul__(self, matrix: Matrix) -> Value:
        return self.recorder.add(Node(PRODUCT, (self.at,), matrix.shape[1], NUMBER, matrix=matrix))

    def __pow__(self, exponent: int) -> Value:
        if exponent != 2:
            msg = f"the power {exponent}"
            raise NotElementwise(msg)
        return self * self

    def __neg__(self) -> Value:
        return self.recorder.apply("-{0}", self)

    __add__, __radd__ = _binary("+"), _binary("+", swapped=True)
    __sub__, __rsub__ = _binary("-"), _binary("-", swapped=True)
    __mul__, __rmul__ = _binary("*"), _binary("*", swapped=True)
    __truediv__, __rtruediv__ = _binary("/"), _binary("/", swapped=True)
    __lt__, __le__ = _binary("<", FLAG), _binary("<=", FLAG)
    __gt__, __ge__ = _binary(">", FLAG), _binary(">=", FLAG)
    __or__, __and__ = _binary("||", FLAG), _binary("&&", FLAG)
