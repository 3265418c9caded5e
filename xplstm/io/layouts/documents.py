"""Layouts of the separate gate matrices of hand-written LSTMs, converted by `xplstm.io.gates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from xplstm._typing import Array
from xplstm.cells.params import LSTMParams
from xplstm.io import gates, layers
from xplstm.io._contents import Contents, Found
from xplstm.io._written import no_place, plain
from xplstm.nn._module import Recurrent


class Matrices(NamedTuple):
    """Layout with one or two matrices for each gate."""

    name: str
    gates: str
    first: str
    """Name of the matrix that determines the sizes."""
    names: tuple[str, ...]
    joined: bool
    read: Callable[[Mapping[str, Array]], LSTMParams]
    write: Callable[[LSTMParams], dict[str, Array]]
    STATE: tuple[str, str] = ("h", "c")
    SURE: bool = False

    def find(self, contents: Contents) -> list[Found]:
        """Find all prefixes with the first matrix and the matrix of another gate."""
        ends = [name.removesuffix(self.first) for name in contents.tensors if name.endswith(self.first)]
        other = self.first.replace("f", "i")
        return [
            self._find(contents, prefix)
            for prefix in ends
            if prefix[-1:] in ("", ".") and prefix + other in contents.tensors
        ]

    def to_mapping(self, network: Recurrent) -> dict[str, Array]:
        """Return the matrices of the only layer."""
        parted = layers.split(plain(network, self.name))
        if len(parted) > 1 or len(parted[0]) > 1:
            raise no_place(self.name, "has more than one layer and direction")
        return self.write(parted[0][0])

    def _find(self, contents: Contents, prefix: str) -> Found:
        names = [name for name in self.names if prefix + name in contents.tensors]
        there = tuple(prefix + name for name in names)
        shape = contents.tensors[prefix + self.first].shape
        hidden_size, columns = shape if len(shape) == 2 else (0, 0)
        input_size = columns - hidden_size if self.joined else columns
        problem = None
        if hidden_size < 1 or input_size < 1:
            wanted = "(H, H + I)" if self.joined else "(H, I)"
            problem = f"{self.first} has shape {shape}, expected {wanted}"
        options = {"input_size": input_size, "hidden_size": hidden_size, "bias": "bf" in names}
        params = partial(self._params, contents, prefix, names)
        return Found(prefix[:-1], self.name, "LSTM", options, self.gates, there, params, problem)

    def _params(self, contents: Contents, prefix: str, names: list[str]) -> dict[str, Array]:
        return layers.join([self.read({name: contents.tensors[prefix + name].array() for name in names})])


JOINED = Matrices(
    "joined",
    "one matrix per gate, for [h, x]",
    "Wf",
    tuple(f"{kind}{gate}" for kind in "Wb" for gate in "fiCco"),
    True,
    gates.from_joined,
    gates.to_joined,
)
PARTED = Matrices(
    "parted",
    "two matrices per gate",
    "Wfx",
    (*(f"W{gate}{of}" for gate in "fico" for of in "hx"), *(f"b{gate}" for gate in "fico")),
    False,
    gates.from_parted,
    gates.to_parted,
)
