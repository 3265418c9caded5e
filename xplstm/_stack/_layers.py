"""Describe stacked layers: sizes, options, and the names and shapes of their parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

from xplstm._stack import _merge
from xplstm._typing import Merge
from xplstm.cells import Cell, Sizes
from xplstm.cells.lstm import STANDARD


class Stack(NamedTuple):
    """Description of recurrent layers, without the values of their parameters."""

    input_size: int
    hidden_size: int
    bias: bool
    num_layers: int
    reverse: tuple[bool, ...]
    proj_size: int = 0
    dropout: float = 0.0
    batch_first: bool = False
    layer_axis: bool = True
    """Whether states have the leading axis of layers and directions."""
    cell: Cell = STANDARD
    merge: Merge = "concat"
    input_dropout: float = 0.0
    weight_dropout: float = 0.0
    precision: str | None = None
    reproducible: bool = False
    weights: str | None = None
    """Storage type of a frozen copy's matrices, or None for the dtype of the layers."""
    activations: str | None = None
    """Type that x and h are rounded to before products with these matrices, or None."""

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of a state."""
        return (self.num_layers * len(self.reverse),) if self.layer_axis else ()

    @property
    def output_size(self) -> int:
        """Number of features of h."""
        return self.proj_size or self.hidden_size

    @property
    def width(self) -> int:
        """Number of features of a layer's output inside the stack."""
        return _merge.width(self.merge, self.output_size, len(self.reverse))

    def layer_input(self, layer: int) -> int:
        """Return the number of input features of a layer."""
        return self.width if layer else self.input_size

    def sizes(self, layer: int) -> Sizes:
        """Return the sizes of one layer and direction."""
        return Sizes(self.layer_input(layer), self.hidden_size, self.proj_size, self.bias)

    def arguments(self) -> str:
        """Return the arguments of the layer's constructor as Python text, without default values."""
        cell = self.cell
        sizes = f"{self.input_size}, {self.hidden_size}, "
        sizes += f"{self.proj_size}, " if cell.output_required else ""
        given = {
            **cell.options(),
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": len(self.reverse) == 2,
            "reverse": self.reverse == (True,),
            "proj_size": 0 if cell.output_required else self.proj_size,
            "merge": self.merge,
            "input_dropout": self.input_dropout,
            "weight_dropout": self.weight_dropout,
            "precision": self.precision,
            "reproducible": self.reproducible,
            "weights": self.weights,
            "activations": self.activations,
        }
        defaults = _DEFAULTS | cell.defaults
        named = [f"{name}={value!r}" for name, value in given.items() if value != defaults.get(name)]
        return f"({sizes}{', '.join([f'num_layers={self.num_layers}', *named])})"


_DEFAULTS: dict[str, Any] = {
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "reverse": False,
    "proj_size": 0,
    "merge": "concat",
    "input_dropout": 0.0,
    "weight_dropout": 0.0,
    "reproducible": False,
}


def names(stack: Stack) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return the parameter names by layer and direction, in the order of the cell's tuple."""
    suffixes = ("", "_reverse")[: len(stack.reverse)]
    fields = stack.cell.Params._fields
    return tuple(
        tuple(tuple(f"{field}_l{layer}{suffix}" for field in fields) for suffix in suffixes)
        for layer in range(stack.num_layers)
    )


def shapes(stack: Stack) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the stack, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(stack.num_layers):
        of_one = stack.cell.shapes(stack.sizes(layer))
        for suffix in ("", "_reverse")[: len(stack.reverse)]:
            found |= {f"{name}_l{layer}{suffix}": shape for name, shape in of_one.items()}
    return found
