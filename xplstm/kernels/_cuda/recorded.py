"""Record one step of a cell as products and elementwise kernels, so that nothing restates its equations.

A cell's equations run once on `Value`s in place of arrays. Everything between two matrix products becomes
one kernel, whose body is the recorded expressions in CUDA's C++; CuPy's ``ElementwiseKernel`` compiles it.
An operation that is not elementwise, such as a mean, raises `NotElementwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from xplstm._typing import CuPyArray

FUNCTIONS = {"exp": "exp", "expm1": "expm1", "log1p": "log1p", "tanh": "tanh", "sqrt": "sqrt", "abs": "fabs"}
"""Of the array API standard, and in C++."""

NUMBER, FLAG = "T", "bool"
BOTH, ROW, COLUMN = "both", "row", "column"


class NotElementwise(Exception):
    """A cell uses an operation that no elementwise kernel has; its name is the argument."""


class Batch:
    """The length of the batch axis: a recorded step holds for every batch, so no code may compute with it."""


BATCH = Batch()


class Node(NamedTuple):
    """One operation. Nodes are compared by what they are, so a repeated expression is recorded once."""

    operation: str
    """A format of C++ with ``{0}``, ``{1}``, ... for the arguments; or one of the words below."""
    arguments: tuple[int, ...]
    width: int
    """Columns of the value; 1 where every column has the same."""
    kind: str
    slot: int = -1
    """Of an input."""
    axes: str = BOTH
    """By which an input is indexed."""
    first: int = 0
    """Column of an input or of a product at which the value begins."""
    matrix: Matrix | None = None
    """Of a product."""
    number: float = 0.0
    """A constant's."""


INPUT, PRODUCT, CONCAT, CONSTANT = "input", "product", "concat", "constant"


class Recorder:
    """The nodes of one recorded step, and what recorded equations take for the array library."""

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
        """Return the number of the next array that a call is given."""
        self.widths.append(width)
        return len(self.widths) - 1

    def array(self, width: int, kind: str = NUMBER) -> Value:
        """Return an input of shape (B, width)."""
        return self.add(Node(INPUT, (), width, kind, self.slot(width)))

    def row(self, width: int) -> Value:
        """Return an input of shape (width,), the same for every batch entry."""
        return self.add(Node(INPUT, (), width, NUMBER, self.slot(width), COLUMN))

    def flags(self) -> Value:
        """Return an input of shape (B, 1) of booleans."""
        return self.add(Node(INPUT, (), 1, FLAG, self.slot(1), ROW))

    def matrix(self, shape: tuple[int, int]) -> Matrix:
        """Return an input that takes part in products alone."""
        return Matrix(self.slot(0), shape)

    def constant(self, number: float, width: int = 1) -> Value:
        """Return a Python number for every element."""
        if not math.isfinite(number):
            msg = f"the constant {number}"
            raise NotElementwise(msg)
        return self.add(Node(CONSTANT, (), width, NUMBER, number=float(number)))

    def apply(self, operation: str, *arguments: Any, kind: str = NUMBER) -> Value:
        """Return an elementwise operation, part by part where an argument is a concatenation."""
        values = [a if isinstance(a, Value) else self.constant(a) for a in arguments]
        bounds = next((v.bounds() for v in values if v.node.operation == CONCAT), None)
        if bounds is None:
            width = max(v.width for v in values)
            return self.add(Node(operation, tuple(v.at for v in values), width, kind))
        parts = [self.apply(operation, *(v.columns(*b) for v in values), kind=kind) for b in bounds]
        return self.concat(parts)

    # What equations call of the array API standard.

    def where(self, condition: Value, a: Any, b: Any) -> Any:
        """Return `a` where the condition holds, else `b`."""
        if isinstance(b, Value) and b.width == 0:
            return b
        same = isinstance(a, Value) and isinstance(b, Value) and a.at == b.at
        return a if same else self.apply("{0} ? {1} : {2}", condition, a, b)

    def concat(self, values: Sequence[Value], axis: int = -1) -> Value:
        """Return values side by side; nested ones are flattened."""
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
    """A weight matrix of a recorded product: an input, some of its rows, transposed or not."""

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
        """Return the view of the array that was given."""
        part = array if self.rows is None else array[self.rows[0] : self.rows[1]]
        return part.T if self.transposed else part


def _binary(symbol: str, kind: str = NUMBER, *, swapped: bool = False) -> Callable[[Value, Any], Value]:
    """Return the method of a binary operator."""
    operation = f"{{1}} {symbol} {{0}}" if swapped else f"{{0}} {symbol} {{1}}"
    return lambda self, other: self.recorder.apply(operation, self, other, kind=kind)


class Value:
    """An array's place holder while a step is recorded."""

    def __init__(self, recorder: Recorder, at: int) -> None:
        self.recorder, self.at = recorder, at
        self.node = recorder.nodes[at]
        self.width = self.node.width

    @property
    def shape(self) -> tuple[Any, ...]:
        """The batch, whose length is not known, and the columns."""
        return (BATCH, self.width)

    def parts(self) -> list[Value]:
        """Return what a concatenation is made of; else the value alone."""
        joined = self.node.operation == CONCAT
        return [Value(self.recorder, k) for k in self.node.arguments] if joined else [self]

    def bounds(self) -> list[tuple[int, int]]:
        """Return the first column of each part, and the one after its last."""
        starts = [0]
        for part in self.parts():
            starts.append(starts[-1] + part.width)
        return list(pairwise(starts))

    def columns(self, start: int, stop: int) -> Value:
        """Return some columns: the slice is moved down to the inputs."""
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
