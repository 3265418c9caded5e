"""Convert recorded steps into programs of elementwise CuPy kernels and matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from xplstm._typing import CuPyArray
from xplstm.kernels._cuda.recorded import (
    BOTH,
    COLUMN,
    CONCAT,
    CONSTANT,
    INPUT,
    NUMBER,
    PRODUCT,
    ROW,
    Matrix,
    Node,
    Recorder,
    Value,
)


class Kernel(NamedTuple):
    """One launch, with a thread for each batch entry and column."""

    inputs: tuple[tuple[int, str], ...]
    """Register and type of each input."""
    outputs: tuple[tuple[int, int], ...]
    """Register and number of columns of each output. An output without given memory is allocated."""
    columns: int
    body: str


class Product(NamedTuple):
    """One matrix product."""

    source: int
    matrix: Matrix
    result: int


class Program(NamedTuple):
    """A recorded step. Its registers hold first the input arrays, then the computed arrays."""

    steps: tuple[Kernel | Product, ...]
    registers: int
    outputs: tuple[int, ...]
    """The register of each output."""

    def uses(self, register: int) -> bool:
        """Return whether a step or the caller reads a register."""
        read = [k for step in self.steps if isinstance(step, Kernel) for k, _ in step.inputs]
        read += [step.source for step in self.steps if isinstance(step, Product)]
        return register in read or register in self.outputs


class Run:
    """A program with the parameters, batch size and dtype of one call."""

    def __init__(self, program: Program, constants: Sequence[CuPyArray], B: int, dtype: Any) -> None:
        import cupy as cp

        self.cp, self.B, self.dtype, self.program = cp, B, dtype, program
        self.constants = list(constants)
        self.steps: list[tuple[Any, ...]] = []
        for step in program.steps:
            if isinstance(step, Product):
                self.steps.append(
                    (None, step.source, step.matrix.of(constants[step.matrix.slot]), step.result)
                )
            else:
                read = [k for k, _ in step.inputs]
                self.steps.append((compile_kernel(step), read, step.outputs, B * step.columns))

    def __call__(self, arrays: Sequence[CuPyArray], into: Mapping[int, CuPyArray]) -> list[CuPyArray]:
        """Run one step on the given arrays; `into` maps numbers of outputs to arrays that receive them."""
        program = self.program
        values: list[Any] = [*self.constants, *arrays]
        values += [None] * (program.registers - len(values))
        for k, array in into.items():
            values[program.outputs[k]] = array
        for kernel, source, what, last in self.steps:
            if kernel is None:
                values[last] = values[source] @ what
                continue
            for register, width in what:
                if values[register] is None:
                    values[register] = self.cp.empty((self.B, width), dtype=self.dtype)
            if last:
                kernel(*[values[k] for k in source], *[values[k] for k, _ in what], size=last)
        return [values[k] for k in program.outputs]


@cache
def compile_kernel(kernel: Kernel) -> Any:
    """Return CuPy's kernel, which the first launch on each device compiles."""
    import cupy as cp

    inputs = ", ".join(f"raw {kind} a{k}" for k, (_, kind) in enumerate(kernel.inputs))
    outputs = ", ".join(f"raw T b{k}" for k in range(len(kernel.outputs)))
    return cp.ElementwiseKernel(inputs, outputs, kernel.body, "xplstm_step")


class Write(NamedTuple):
    """A value that is stored in memory, at some columns of a register."""

    value: Value
    register: int
    first: int
    total: int


class Builder:
    """The plan of one program: which values are stored in memory, and which kernel writes each value."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.registers = len(recorder.widths)
        self.products: dict[tuple[int, Matrix], int] = {}
        self.writes: list[Write] = []
        self.levels: dict[int, int] = {}
        self.planned: set[int] = set()
        self.stored: dict[int, tuple[int, int, int]] = {}
        """For each stored value, its register, first column, and the columns of the register."""
        self.ready: dict[tuple[int, int], int] = {}
        """For each value and register, the level of the kernel that writes the value."""

    def fresh(self) -> int:
        """Return the number of a new register."""
        self.registers += 1
        return self.registers - 1

    def write(self, value: Value) -> int:
        """Plan to store a value; return its register."""
        register, total = self.fresh(), value.width
        for part, (lo, _) in zip(value.parts(), value.bounds(), strict=True):
            self.writes.append(Write(part, register, lo, total))
            self.stored.setdefault(part.at, (register, lo, total))
        if not self.in_memory(value):
            self.stored[value.at] = register, 0, total
        return register

    def plan_products(self, value: Value) -> None:
        """Plan the products that a value needs, and the stores of their operands."""
        if value.at in self.planned:
            return
        self.planned.add(value.at)
        for k in value.node.arguments:
            self.plan_products(Value(self.recorder, k))
        if value.node.matrix is not None and _key(value.node) not in self.products:
            operand = Value(self.recorder, value.node.arguments[0])
            if not self.in_memory(operand):
                self.write(operand)
            self.products[_key(value.node)] = self.fresh()

    def in_memory(self, value: Value) -> bool:
        """Return whether the value fills a whole register."""
        node = value.node
        if node.operation == INPUT:
            return node.axes == BOTH and node.width == self.recorder.widths[node.slot]
        if node.matrix is not None:
            return node.width == node.matrix.shape[1]
        return value.at in self.stored and self.stored[value.at][1:] == (0, node.width)

    def register(self, value: Value) -> int:
        """Return the register of a value in memory."""
        node = value.node
        if node.operation == INPUT:
            return node.slot
        if node.operation == PRODUCT:
            return self.products[_key(node)]
        return self.stored[value.at][0]

    def level(self, value: Value) -> int:
        """Return the number of consecutive products that a value depends on."""
        if value.at not in self.levels:
            below = max((self.level(Value(self.recorder, k)) for k in value.node.arguments), default=0)
            self.levels[value.at] = below + (value.node.operation == PRODUCT)
        return self.levels[value.at]

    def launch_level(self, write: Write) -> int:
        """Return the level of a write's kernel: the value's level, or a later level that saves a launch."""
        operands = {self.register(Value(self.recorder, operand)) for operand, _ in self.products}
        alike = [w for w in self.writes if w.value.width == write.value.width]
        level = self.level(write.value)
        due = {self.level(w.value) for w in alike if w.register in operands}
        return level if level in due else max(self.level(w.value) for w in alike)

    def steps(self) -> list[Kernel | Product]:
        """Return the steps in order: the kernels of each level, then its products."""
        launches: list[Kernel | Product] = []
        recorder = self.recorder
        pending = {key: self.level(Value(recorder, key[0])) for key in self.products}
        writes = [(w, self.launch_level(w)) for w in self.writes]
        self.ready = {(w.value.at, w.register): level for w, level in writes}
        last = max([level for _, level in writes] + list(pending.values()), default=0)
        for level in range(last + 1):
            here = [w for w, its in writes if its == level]
            for width in sorted({w.value.width for w in here} - {0}):
                launches.append(Body(self, level, width).kernel([w for w in here if w.value.width == width]))
            for (operand, matrix), its in pending.items():
                if its == level:
                    source = self.register(Value(recorder, operand))
                    launches.append(Product(source, matrix, self.products[operand, matrix]))
        return launches


class Body:
    """The C++ code of one kernel."""

    def __init__(self, builder: Builder, level: int, width: int) -> None:
        self.builder, self.level, self.width = builder, level, width
        self.inputs: dict[int, str] = {}
        self.lines: list[str] = []
        self.names: dict[int, str] = {}

    def kernel(self, writes: Sequence[Write]) -> Kernel:
        """Return the kernel that stores these values."""
        outputs: dict[int, int] = {}
        ends = []
        for w in writes:
            outputs.setdefault(w.register, w.total)
            target = f"b{list(outputs).index(w.register)}[{self.index(w.first, w.total)}]"
            ends.append(f"{target} = {self.expression(w.value)};")
        lines = self.lines + ends
        if any("column" in line for line in lines):
            lines.insert(0, f"const unsigned int column = (unsigned int)i % {self.width};")
        if any("row" in line for line in lines):
            lines.insert(0, f"const unsigned int row = (unsigned int)i / {self.width};")
        return Kernel(tuple(self.inputs.items()), tuple(outputs.items()), self.width, "\n".join(lines))

    def index(self, first: int, total: int, axes: str = BOTH) -> str:
        """Return the index of this thread's element in an array with `total` columns."""
        if axes == ROW:
            return "row"
        if axes == COLUMN:
            return f"column + {first}"
        return "i" if (first, total) == (0, self.width) else f"row * {total} + column + {first}"

    def load(self, register: int, place: str, kind: str = NUMBER) -> str:
        """Return the expression that reads an element of an input."""
        self.inputs.setdefault(register, kind)
        return f"a{list(self.inputs).index(register)}[{place}]"

    def expression(self, value: Value) -> str:
        """Return the name of a value, and append the lines that compute it."""
        if value.at in self.names:
            return self.names[value.at]
        node, builder = value.node, self.builder
        if node.operation == CONSTANT:
            return f"T({node.number})"
        stored = builder.stored.get(value.at)
        if node.operation == INPUT:
            place = self.index(node.first, builder.recorder.widths[node.slot], node.axes)
            text = self.load(node.slot, place, node.kind)
        elif node.matrix is not None:
            text = self.load(builder.register(value), self.index(node.first, node.matrix.shape[1]))
        elif stored is not None and builder.ready[value.at, stored[0]] < self.level:
            register, first, total = stored
            text = self.load(register, self.index(first, total))
        else:
            assert node.operation != CONCAT
            arguments = [self.expression(Value(builder.recorder, k)) for k in node.arguments]
            text = node.operation.format(*arguments)
        self.names[value.at] = f"v{len(self.names)}"
        self.lines.append(f"const {node.kind} {self.names[value.at]} = {text};")
        return self.names[value.at]


def _key(node: Node) -> tuple[int, Matrix]:
    """Return the operands of a product, which all slices of its columns share."""
    assert node.matrix is not None
    return node.arguments[0], node.matrix


def build(recorder: Recorder, outputs: Sequence[Value], stored: Sequence[bool]) -> Program:
    """Return the program for these outputs; outputs with `stored` True can be written to a given array."""
    builder = Builder(recorder)
    registers = {k: builder.write(value) for k, value in enumerate(outputs) if stored[k]}
    for value in outputs:
        builder.plan_products(value)
    for k, value in enumerate(outputs):
        if k not in registers:
            registers[k] = builder.register(value) if builder.in_memory(value) else builder.write(value)
    return Program(
        tuple(builder.steps()), builder.registers, tuple(registers[k] for k in range(len(outputs)))
    )
